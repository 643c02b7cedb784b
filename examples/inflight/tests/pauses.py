#!/usr/bin/env python3
"""Requests through a pipe that pauses: each is answered before the next is written, and a request that comes while
another runs joins it.

    pauses.py SERVE MODEL
"""
import json
import subprocess
import sys


def request(name, tokens):
    return {"id": name, "tokens": [1, 80, 81, 82], "max_tokens": tokens}


def main():
    serve, model = sys.argv[1:]
    command = [serve, "--model", model, "--requests", "/dev/stdin", "--max-seqs", "2", "--json", "--quiet", "--stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        def write(line):
            process.stdin.write(line + "\n")
            process.stdin.flush()

        def results(until):
            """Of the lines up to the result of a request: the ids of results."""
            found = []
            for line in process.stdout:
                record = json.loads(line)
                if "outcome" in record or "error" in record:
                    found.append(record["id"])
                    if record["id"] == until:
                        return found
            raise AssertionError(f"{until} has no result; {found}")

        for name in ("first", "second"):
            write(json.dumps(request(name, 5)))
            assert results(name) == [name]
        # Half a line, and lines that are no requests, keep nobody waiting.
        write(json.dumps(request("long", 2000)))
        write(json.dumps(request("short", 3)))
        assert results("short") == ["short"]
        write("")
        write("not a request")
        process.stdin.write('{"id": "half",')
        process.stdin.flush()
        assert results("long") == ["line 6", "long"]
        write(' "tokens": [1], "max_tokens": 2}')
        assert results("half") == ["half"]
        process.stdin.close()
        totals = json.loads(process.stdout.readlines()[-1])["totals"]
        assert (totals["done"], totals["failed"]) == (5, 1), totals
        assert process.wait() == 0


if __name__ == "__main__":
    main()
