#!/usr/bin/env python3
"""Speed of inflight-serve beside llama-stream on the same model: one sequence, and eight at a time.

    speed.py SERVE STREAM MODEL TEXT [--threads N] [--tokens N] [--answer N] [--repeat N] [--kv-dtype T]

The programs take turns, so that other work on the machine meets both. Printed are medians of the runs: milliseconds of
wall time for each token, milliseconds of processor time, which other work changes less, and ratios within a run. A
token is one of the prompt or of the answer. Processor time includes the start of the program.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile

SINK, WINDOW, PROMPT = 4, 252, 4


def timed(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(out.splitlines()[-1]), after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def serve(args, n):
    """Wall and processor time for each token, `n` sequences at a time, in ms.

    Where an answer ends early, as those of random models do, the next request takes the sequence.
    """
    count = n * max(1, args.tokens // args.answer)
    with open(args.text, "rb") as file:
        text = file.read()[-64 * (count + 1) :]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "requests.jsonl")
        with open(path, "w", encoding="ascii") as file:
            for i in range(count):
                prompt = [b + 3 for b in text[64 * i : 64 * i + PROMPT]]
                # At a temperature, so that the answers differ.
                request = {"id": str(i), "tokens": prompt, "max_tokens": args.answer, "temperature": 1.0, "seed": i}
                file.write(json.dumps(request) + "\n")
        totals, cpu = timed([args.serve, "--model", args.model, "--requests", path, "--max-seqs", str(n), "--sink",
                             str(SINK), "--window", str(WINDOW), "--kv-dtype", args.kv_dtype, "--threads",
                             str(args.threads), "--json", "--quiet"])
    totals = totals["totals"]
    tokens = totals["context_tokens"] + totals["decode_tokens"]
    return 1e3 * totals["seconds"] / tokens, 1e3 * cpu / tokens


def stream(args):
    totals, cpu = timed([args.stream, "--model", args.model, "--file", args.text, "--tokens", str(args.tokens),
                         "--chunk", "1", "--sink", str(SINK), "--window", str(WINDOW), "--kv-dtype", args.kv_dtype,
                         "--threads", str(args.threads), "--json"])
    return totals["ms_per_token"], 1e3 * cpu / args.tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("serve", "stream", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--answer", type=int, default=1000, help="tokens of an answer; 100 for a random model")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--kv-dtype", default="f16")
    args = parser.parse_args()
    runs = [(stream(args), serve(args, 1), serve(args, 8)) for _ in range(args.repeat)]
    for kind, what in enumerate(("wall", "processor")):
        of_stream, one, eight = (statistics.median(run[i][kind] for run in runs) for i in range(3))
        ratio = statistics.median(run[1][kind] / run[0][kind] for run in runs)
        gain = statistics.median(run[1][kind] / run[2][kind] for run in runs)
        print(f"{what} time for a token: llama-stream {of_stream:.3f} ms; inflight-serve {one:.3f} ms, {ratio:.2f} x; "
              f"of 8 sequences {eight:.3f} ms, {gain:.2f} x the tokens/s of one")


if __name__ == "__main__":
    main()
