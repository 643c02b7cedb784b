#!/usr/bin/env python3
"""Times decoding with a whole model: recompute, StreamingLLM in PyTorch, an ordinary cache, this library.

    SINKCACHE_LIBRARY=.../libsinkcache.so benches/gpu/llama.py --out FOLDER [--budget SECONDS]
        Llama-2-7B's shape, a GPU
    ... --device cpu --tiny
        a test with a tiny shape

Writes FOLDER/llama.json, after every row. First all contenders stream the same tokens and must give the same logits
until the cache is full, those that stream also beyond. Then they are timed with full caches. The exit code is 1 if
logits differ. With --resume, rows that FOLDER/llama.json has from this device and commit are not timed again.
"""

import argparse
import dataclasses
import datetime
import gc
import json
import os
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch

from llama_model import LLAMA_2_7B, TINY, Model, Ordinary, Recompute, Sinkcache, Streaming, StreamingFixed
from measure import first_line
from platforms import open_platform
from run import commit

# Timed in this order for every size of the cache.
TIMED = (
    (Sinkcache, "graph"),
    (Streaming, "eager"),
    (Recompute, "eager"),
    (StreamingFixed, "graph"),
    (Sinkcache, "eager"),
    (Ordinary, "graph"),
    (Ordinary, "eager"),
)
N_SINK = 4
# Largest ||a - b|| / ||b|| of logits, by the type of all weights and activations.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


def stream(kind, mode, model, platform, cached, tokens):
    """-> (index of the first token with logits, logits after it and every later one). A decoder that starts full takes
    over the state of StreamingLLM when that is full."""
    decoder, first = kind(model, platform, N_SINK, cached), 0
    try:
        if kind.starts_full:
            before, first = Streaming(model, platform, N_SINK, cached), cached
            for token in tokens[:first]:
                before.feed(token)
            decoder.adopt(before)
        token, logits = torch.zeros_like(tokens[0]), torch.zeros(model.shape.vocabulary, device=model.device)

        def step():
            logits.copy_(decoder.feed(token))

        # No eager warm-up before the capture: earlier contenders have initialised the libraries.
        call, found = platform.capture(step) if mode == "graph" else step, []
        for each in tokens[first:]:
            token.copy_(each)
            call()
            found.append(logits.clone())
        decoder.check()
        return first, torch.stack(found)
    finally:
        decoder.close()


def compare(model, platform, cached, n_tokens, seed=3):
    """Streams the same tokens through all contenders. -> rows with the largest difference from StreamingLLM's logits"""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.shape.vocabulary, (n_tokens, 1), generator=generator).to(model.device)
    rows = []
    _, want = stream(Streaming, "eager", model, platform, cached, tokens)
    for kind, mode in TIMED:
        # `Ordinary` keeps its length on the host: a graph of it repeats the same step.
        if kind is Streaming or (kind, mode) == (Ordinary, "graph"):
            continue
        # Contenders that do not stream compute another function once the cache is full.
        n = cached if kind in (Ordinary, Recompute) else n_tokens
        about = {"contender": kind.name, "mode": mode}
        try:
            first, got = stream(kind, mode, model, platform, cached, tokens[:n])
        except Exception as e:
            rows.append({**about, "holds": False, "note": f"{type(e).__name__}: {first_line(e)}"})
            continue
        for part, begin, end in (("before eviction", first, min(cached, n)), ("after eviction", max(first, cached), n)):
            if begin < end:
                reference = want[begin:end]
                difference = (
                    ((got[begin - first : end - first] - reference).norm(dim=-1) / reference.norm(dim=-1)).max().item()
                )
                rows.append(
                    {
                        **about,
                        "part": part,
                        "tokens": end - begin,
                        "difference": difference,
                        "holds": bool(difference <= TOLERANCE[model.dtype]),
                    }
                )
    return rows


def captured(decoder, platform, token):
    """A captured step: it reads its token from `token` and writes the next one there."""

    def step():
        token.copy_(decoder.feed(token).argmax().view(1))

    # Twice eagerly first: libraries create their handles, and the allocator its blocks.
    for _ in range(2):
        step()
    return platform.capture(step)


def time_decoder(kind, mode, model, platform, cached, seconds):
    """-> a row. Before timing starts the cache is full and has wrapped."""
    decoder = kind(model, platform, N_SINK, cached)
    try:
        decoder.fill()
        token = torch.zeros(1, dtype=torch.long, device=model.device)

        def eager():
            token.copy_(decoder.feed(token).argmax().view(1))

        call = captured(decoder, platform, token) if mode == "graph" else eager
        for _ in range(3):
            call()
        decoder.check()
        platform.synchronize()
        samples, until = [], time.perf_counter() + seconds
        while len(samples) < 3 or (time.perf_counter() < until and len(samples) < 500):
            samples.append(platform.mean_seconds(call, 1) * 1e3)
        decoder.check()
        if not 0 <= int(token) < model.shape.vocabulary:
            raise RuntimeError(f"token {int(token)} was chosen")
        return {"status": "ok", "ms": statistics.median(samples), "samples": len(samples)}
    finally:
        decoder.close()


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--budget", type=float, default=150, help="seconds after which no row is started")
    p.add_argument("--seconds", type=float, default=1.0, help="spent on timing a row")
    p.add_argument("--cached", default="4096,2048,256,1024", help="tokens of the cache, the most valuable first")
    p.add_argument("--resume", action="store_true", help="leave out what has been timed")
    p.add_argument("--tiny", action="store_true", help="a tiny shape in float32")
    return p.parse_args()


def timed_before(file, record):
    """{(contender, mode, cached): row} of a run of the same shape, device and commit."""
    try:
        before = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if any(before.get(key) != json.loads(json.dumps(record[key])) for key in ("device", "commit", "shape", "dtype")):
        return {}
    return {(r["contender"], r["mode"], r["cached"]): r for r in before["rows"] if r["status"] == "ok"}


def main():
    o = options()
    torch.set_grad_enabled(False)
    until = time.perf_counter() + o.budget
    o.out.mkdir(parents=True, exist_ok=True)
    platform = open_platform(o.device)
    shape, dtype = (TINY, torch.float32) if o.tiny else (LLAMA_2_7B, torch.float16)
    model = Model(shape, platform.torch_device, dtype)
    record = {
        "device": platform.describe(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "shape": dataclasses.asdict(shape),
        "weights": shape.weights,
        "dtype": str(dtype),
        "checks": [],
        "rows": [],
    }

    before = timed_before(o.out / "llama.json", record) if o.resume else {}

    def write():
        temporary = o.out / "llama.json.new"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, o.out / "llama.json")

    print(f"{record['device']['name']}, {shape.weights / 1e9:.3f} billion weights, {dtype}", flush=True)
    cached = 24 if o.tiny else 32
    try:
        record["checks"] = compare(model, platform, cached, 2 * cached + 5)
    except Exception as e:
        record["checks"] = [
            {"contender": Streaming.name, "holds": False, "note": f"{type(e).__name__}: {first_line(e)}"}
        ]
    for row in record["checks"]:
        print(f"{'same' if row['holds'] else 'DIFFERS'}: {row}", flush=True)
    write()
    windows = [24] if o.tiny else [int(w) for w in o.cached.split(",")]
    for window in windows:
        for kind, mode in TIMED:
            row = {"contender": kind.name, "mode": mode, "cached": window}
            if found := before.get((kind.name, mode, window)):
                record["rows"].append(found)
                continue
            if time.perf_counter() > until:
                row |= {"status": "left out", "note": "time"}
            else:
                try:
                    row |= time_decoder(kind, mode, model, platform, window, o.seconds)
                except Exception as e:
                    row |= {"status": "error", "note": f"{type(e).__name__}: {first_line(e)}"}
                gc.collect()
            record["rows"].append({**row, "clocks": platform.clocks()})
            write()
            result = f"{row['ms']:9.3f} ms" if row["status"] == "ok" else f"{row['status']}: {row['note']}"
            print(f"{window:6} cached  {kind.name:38} {mode:6} {result}", flush=True)
    write()
    errors = [r for r in record["rows"] if r["status"] == "error"]
    return 1 if errors or not record["checks"] or not all(r["holds"] for r in record["checks"]) else 0


if __name__ == "__main__":
    sys.exit(main())
