#!/usr/bin/env python3
"""Time to the first token of a parked conversation, beside one that kept its slot and one that is read again.

    parking.py SERVE MODEL TEXT [--rounds N] [--kv-dtype T] [--repeat N]

SERVE is inflight-serve. Conversations of many rounds run one at a time; the last round of each is measured, from its
arrival to its first token. With one slot every round first parks another conversation. "Read
again" is a new sequence: all tokens of the conversation, or only as many as the cache holds.
"""
import argparse
import json
import statistics
import subprocess
import tempfile

CONVERSATIONS, PROMPT, OUT, LAST_PROMPT = 8, 128, 32, 16
SINK, WINDOW, BYTE_OFFSET, BOS = 4, 252, 3, 1
# Iterations between two requests: a request ends before the next arrives.
GAP = 2 * OUT


def lines_of(requests):
    return "".join(json.dumps(r) + "\n" for r in requests)


def run(args, folder, requests, options):
    path = f"{folder}/requests.jsonl"
    with open(path, "w", encoding="ascii") as file:
        file.write(lines_of(requests))
    command = [args.serve, "--model", args.model, "--requests", path, "--json", "--quiet", "--budget", "512",
               "--chunk", "256", "--sink", str(SINK), "--window", str(WINDOW), "--kv-dtype", args.kv_dtype, *options]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    results = [json.loads(line) for line in out.splitlines()]
    assert all(r["outcome"] == "done" for r in results[:-1]), [r for r in results[:-1] if r["outcome"] != "done"][:1]
    return {r["id"]: r for r in results[:-1]}, results[-1]["totals"]


def conversations(text, rounds):
    """All rounds, one request at a time, and the tokens of each prompt."""
    requests = []
    for r in range(rounds + 1):
        for c in range(CONVERSATIONS):
            at, n = (c * (rounds + 1) + r) * PROMPT, LAST_PROMPT if r == rounds else PROMPT
            request = {"id": f"{c}.{r}", "prompt": text[at : at + n], "arrival": GAP * len(requests),
                       "max_tokens": OUT}
            request["conversation" if r == 0 else "continue"] = f"conversation {c}"
            requests.append(request)
    return requests


def read_again(requests, results, rounds, most):
    """The last rounds as new sequences whose prompts are the last `most` tokens of the conversations."""
    prompts = {r["id"]: [byte + BYTE_OFFSET for byte in r["prompt"].encode("ascii")] for r in requests}
    again = []
    for c in range(CONVERSATIONS):
        tokens = [t for r in range(rounds) for t in prompts[f"{c}.{r}"] + results[f"{c}.{r}"]["tokens"]]
        tokens = tokens[-most:] if most else tokens
        # The program puts <s> before the prompt of a new sequence.
        again.append({"id": f"{c}.{rounds}", "tokens": tokens + prompts[f"{c}.{rounds}"], "arrival": 10 * GAP * c,
                      "max_tokens": OUT})
    return again


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("serve", "model", "text"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kv-dtype", default="f32")
    args = parser.parse_args()
    with open(args.text, encoding="ascii", errors="replace") as file:
        requests = conversations(file.read().replace("\ufffd", "?"), args.rounds)
    last = [f"{c}.{args.rounds}" for c in range(CONVERSATIONS)]
    with tempfile.TemporaryDirectory() as folder:
        slots, one = ["--max-seqs", str(CONVERSATIONS)], ["--max-seqs", "1"]
        results, _ = run(args, folder, requests, slots)
        length = results[last[0]]["stream_length"]
        whole, held = (read_again(requests, results, args.rounds, most) for most in (0, SINK + WINDOW))
        kinds = {"kept its slot": lambda: run(args, folder, requests, slots),
                 "parked in memory": lambda: run(args, folder, requests, one + ["--park-memory", "1G"]),
                 "parked on disk": lambda: run(args, folder, requests, one + [
                     "--park-dir", f"{folder}/parked-{len(times['parked on disk'])}", "--park-disk", "1G"]),
                 "read again, what the cache holds": lambda: run(args, folder, held, one),
                 "read again, all of it": lambda: run(args, folder, whole, one)}
        times, waits, same, parked = {k: [] for k in kinds}, {k: [] for k in kinds}, {}, 0
        for _ in range(args.repeat):
            for kind, measure in kinds.items():
                got, totals = measure()
                times[kind] += [1e3 * got[i]["first_token_s"] for i in last]
                waits[kind] += [1e3 * got[i]["waited_s"] for i in last]
                same[kind] = sum(got[i]["tokens"] == results[i]["tokens"] for i in last)
                if kind == "parked on disk":
                    parked = totals["parking"]["disk_bytes"] / totals["parking"]["on_disk"]
                for i in last if "parked" in kind else []:
                    assert got[i].get("restored_from") in ("memory", "disk"), got[i]
    print(f"{CONVERSATIONS} conversations of {length} tokens, a prompt of {LAST_PROMPT} tokens, K and V in "
          f"{args.kv_dtype}, {parked / 1024:.0f} KiB each when parked; milliseconds, medians of {args.repeat} runs")
    for kind in kinds:
        print(f"{kind:34} first token {statistics.median(times[kind]):7.2f} ({min(times[kind]):.2f} to "
              f"{max(times[kind]):.2f}), of which parking another {statistics.median(waits[kind]):5.2f}; "
              f"{same[kind]} of {CONVERSATIONS} with the same tokens")


if __name__ == "__main__":
    main()
