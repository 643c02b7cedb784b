#!/usr/bin/env python3
"""Conversations many times longer than the window: writes requests, and reads the times that inflight-serve measured.

    rounds.py write TEXT [GAP] > rounds.jsonl   8 conversations of 20 rounds, equal prompt lengths; requests arrive GAP
                                                iterations apart (40: one at a time); default 0: all in the first
    inflight-serve --requests rounds.jsonl --json ... > rounds.out
    rounds.py read rounds.out                   time to first token by round
"""
import json
import statistics
import sys

CONVERSATIONS, ROUNDS, PROMPT, OUT = 8, 20, 160, 32


def write(text, gap):
    for r in range(ROUNDS):
        for c in range(CONVERSATIONS):
            at = (c * ROUNDS + r) * PROMPT
            # One byte less in the first round, whose prompt begins with <s>.
            prompt = text[at : at + PROMPT - (r == 0)]
            line = {"id": f"{c}.{r + 1}", "prompt": prompt, "max_tokens": OUT, "arrival": gap * (r * CONVERSATIONS + c)}
            line["conversation" if r == 0 else "continue"] = f"conversation {c}"
            print(json.dumps(line))


def read(lines):
    results = {x["id"]: x for x in map(json.loads, lines) if "id" in x}
    for r in range(1, ROUNDS + 1):
        rows = [results[f"{c}.{r}"] for c in range(CONVERSATIONS)]
        assert all(x["outcome"] == "done" for x in rows)
        # Every token is fed once: r prompts and r outputs, but the last token, which the next round feeds.
        lengths = {x["stream_length"] for x in rows}
        assert lengths == {r * (PROMPT + OUT) - 1}, lengths
        # From slot to first token. Rounds of other conversations share the batches.
        times = [1e3 * (x["first_token_s"] - x["waited_s"]) for x in rows]
        speed = statistics.median(x["tokens_per_s"] for x in rows)
        print(f"round {r:2}: first token after {statistics.median(times):6.2f} ms "
              f"({min(times):.2f} to {max(times):.2f}), "
              f"{speed:6.1f} tokens/s, {rows[0]['stream_length']:5} tokens in the sequence")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(open(sys.argv[2], encoding="ascii", errors="replace").read(), int((sys.argv[3:] or [0])[0]))
    else:
        read(open(sys.argv[2], encoding="utf-8"))
