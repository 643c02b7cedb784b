#!/usr/bin/env python3
"""Conversations over many times the window: writes their requests, and reads what inflight-serve measured of them.

    rounds.py write TEXT [GAP] > rounds.jsonl   8 conversations of 20 rounds, equal prompt lengths; requests arrive GAP
                                                iterations apart (40: one at a time), else all at once
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
            # The first token of a conversation, <s>, comes beside its first prompt.
            prompt = text[at : at + PROMPT - (r == 0)]
            line = {"id": f"{c}.{r + 1}", "prompt": prompt, "max_tokens": OUT, "arrival": gap * (r * CONVERSATIONS + c)}
            line["conversation" if r == 0 else "continue"] = f"conversation {c}"
            print(json.dumps(line))


def read(lines):
    results = {x["id"]: x for x in map(json.loads, lines) if "id" in x}
    for r in range(1, ROUNDS + 1):
        rows = [results[f"{c}.{r}"] for c in range(CONVERSATIONS)]
        assert all(x["outcome"] == "done" for x in rows)
        # Every token once: r prompts and r answers, but for the last token, which enters with the next round.
        entered = {x["stream_length"] for x in rows}
        assert entered == {r * (PROMPT + OUT) - 1}, entered
        # From its slot to its first token: rounds of other conversations share the batches.
        times = [1e3 * (x["first_token_s"] - x["waited_s"]) for x in rows]
        speed = statistics.median(x["tokens_per_s"] for x in rows)
        print(f"round {r:2}: first token after {statistics.median(times):6.2f} ms ({min(times):.2f} to {max(times):.2f}), "
              f"{speed:6.1f} tokens/s, {rows[0]['stream_length']:5} tokens entered")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(open(sys.argv[2], encoding="ascii", errors="replace").read(), int((sys.argv[3:] or [0])[0]))
    else:
        read(open(sys.argv[2], encoding="utf-8"))
