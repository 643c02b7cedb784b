#!/usr/bin/env python3
"""Perplexity over position in transformers: SinkCache, DynamicCache and the SinkCache that transformers had before
version 5, with the bundled model, which was trained on 256 tokens, and the bundled text.

  python3 benches/transformers/perplexity.py OUT.json        runs them and draws OUT.svg
  python3 benches/transformers/perplexity.py --draw OUT.json draws alone

Needs sinkcache, PyTorch, transformers and matplotlib; one thread. The program stream (examples/stream) measures the
same in Rust, on the same tokens with --skip 0.
"""
import argparse
import datetime
import json
import math
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "python" / "tests"))
BIN = 500
SINKS, LENGTH = 4, 256
# Name in the file: label, PyTorch's type, tokens of a forward, tokens in all as a share of --tokens. The cache of old
# takes one token at a time, and DynamicCache's time per token grows.
RUNS = {
    "sink": ("SinkCache, 4 + 252", "float32", 64, 1.0),
    "dynamic": ("DynamicCache: all tokens", "float32", 64, 0.2),
    "old bf16": ("the cache of old, 4 + 252, bf16", "bfloat16", 1, 0.3),
    "sink bf16": ("SinkCache, 4 + 252, bf16", "bfloat16", 64, 1.0),
    "old": ("the cache of old, 4 + 252", "float32", 1, 0.3),
}
COLORS = {"sink": "#0072B2", "sink bf16": "#56B4E9", "old": "#141414", "old bf16": "#999999", "dynamic": "#D55E00"}


def tokens_of(count):
    from tiny_llama import ids
    return ids(count + 1)


def losses(name, count):
    """Of each token but the first: the negative logarithm of its probability. And bytes of keys and values held."""
    import torch
    from torch_caches import OldSinkCache
    from sinkcache.transformers import SinkCache, cache_argument
    from tiny_llama import load
    from transformers import DynamicCache

    torch.set_num_threads(1)
    _, kind, chunk, _ = RUNS[name]
    model = load(getattr(torch, kind))
    if name.startswith("sink"):
        cache = SinkCache(model, LENGTH, SINKS)
    elif name.startswith("old"):
        cache = OldSinkCache(model, LENGTH, SINKS)
    else:
        cache = DynamicCache()
    x, found = tokens_of(count), []
    with torch.no_grad():
        for piece, following in zip(x[:, :-1].split(chunk, 1), x[:, 1:].split(chunk, 1)):
            logits = model(piece, **{cache_argument(model): cache}).logits[0].float()
            found += torch.nn.functional.cross_entropy(logits, following[0], reduction="none").tolist()
    held = (cache.kv.nbytes if hasattr(cache, "kv") else
            sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values)))
    return found, held


def run_one(name, count):
    """Printed by a process of its own."""
    found, held = losses(name, count)
    bins = [math.fsum(found[i:i + BIN]) / len(found[i:i + BIN]) for i in range(0, len(found), BIN)]
    print(json.dumps({"tokens": len(found), "bytes": held, "loss": [round(x, 5) for x in bins]}))


def measure(count):
    import torch
    import transformers
    result = {"date": datetime.date.today().isoformat(), "machine": processor(), "torch": torch.__version__,
              "transformers": transformers.__version__, "bin": BIN, "sinks": SINKS, "length": LENGTH, "runs": {}}
    for name, (label, _, _, share) in RUNS.items():
        n = round(count * share)
        done = subprocess.run([sys.executable, __file__, "--one", name, "--tokens", str(n)], stdout=subprocess.PIPE,
                              text=True, check=True)
        result["runs"][name] = {"label": label} | json.loads(done.stdout)
        print(summary(name, result), flush=True)
    return result


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def perplexity(run, first, end):
    """Of the bins from `first` to before `end`, all of the same length."""
    losses = run["loss"][first:end]
    return math.exp(math.fsum(losses) / len(losses))


def summary(name, result):
    """Over the positions of the run, without the first bin, and SinkCache in f32 on the same ones."""
    run, sink = result["runs"][name], result["runs"]["sink"]
    end = run["tokens"] // result["bin"]
    return (f"{name:10} tokens {result['bin']} to {end * result['bin']}: perplexity {perplexity(run, 1, end):.4f} "
            f"(sink {perplexity(sink, 1, end):.4f}), keys and values {run['bytes'] / 2**20:.1f} MiB")


def draw(result, path):
    import matplotlib
    matplotlib.use("svg")
    from matplotlib import pyplot
    # The same numbers give the same file.
    matplotlib.rcParams |= {"svg.hashsalt": "sinkcache", "svg.fonttype": "none", "font.size": 11}
    figure, axes = pyplot.subplots(figsize=(9.6, 5))
    n = result["bin"]
    for name, run in result["runs"].items():
        places = [min(i * n + n / 2, run["tokens"]) for i in range(len(run["loss"]))]
        dashed = "--" if name.startswith("old") else "-"
        axes.plot(places, [math.exp(x) for x in run["loss"]], dashed, color=COLORS[name], label=run["label"],
                  linewidth=3.5 if name == "sink" else 1.5)
    axes.set_yscale("log")
    axes.set_yticks(ticks := [2, 3, 5, 10, 20, 50, 100], [str(x) for x in ticks])
    axes.minorticks_off()
    axes.set_ylim(2, 130)
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set(xlabel=f"position (means of {n} tokens)", ylabel="perplexity per byte",
             title=f"A Llama that was trained on {result['length']} tokens, in transformers {result['transformers']}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--draw", action="store_true", help="the file is there")
    parser.add_argument("--one", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one, options.tokens)
        sys.exit()
    if options.out is None:
        parser.error("which file?")
    if not options.draw:
        options.out.write_text(json.dumps(measure(options.tokens), indent=1) + "\n")
    data = json.loads(options.out.read_text())
    print("\n".join(summary(name, data) for name in data["runs"]))
    draw(data, options.out.with_suffix(".svg"))
