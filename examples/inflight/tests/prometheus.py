#!/usr/bin/env python3
"""A real Prometheus reads a run of inflight-serve, and answers what the dashboard asks.

    prometheus.py --serve PROGRAM --model GGUF --dashboard JSON [--page]

200 requests, with conversations, drafts, pins, dropped ranges, parking, cancelled and failed ones. Then the counters
that Prometheus has are those of the printed totals, and every query of the dashboard has data. Without Prometheus the
exit code is 77. --page keeps Prometheus running until a line is read, and prints its address, for a look at its graphs.
"""
import argparse
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

REQUESTS, ROUNDS = 200, 4
PROMPT = "It was a dark and stormy night, and a dark and stormy day. " * 2
PROMPT_LENGTH = len(PROMPT)
#: A scrape that takes longer is lost, and machines stall.
SCRAPE = "1s"
#: For $__rate_interval, where Grafana puts in four scrapes: all of a run, however fast the machine is.
RATE_INTERVAL = "10m"
PATIENCE = 60
SKIPPED = 77

#: Of the printed totals, by metric and labels.
TOTALS = {
    ("tokens_total", "context"): "context_tokens", ("tokens_total", "decode"): "decode_tokens",
    ("generated_tokens_total",): "generated_tokens", ("draft_tokens_total", "accepted"): "accepted",
    ("evicted_tokens_total",): "evicted_tokens", ("edited_tokens_total", "pinned"): "pinned_tokens",
    ("edited_tokens_total", "dropped"): "dropped_tokens", ("refused_edits_total",): "refused_edits",
    ("iterations_total",): "iterations", ("requests_total", "done"): "done",
    ("requests_total", "cancelled"): "cancelled", ("requests_total", "failed"): "failed",
    ("cache_bytes",): "cache_bytes_host",
}
PARKING = {
    ("parked_total",): "parked", ("parked_written_total",): "written", ("parked_dropped_total",): "dropped",
    ("parked_lookups_total", "memory"): "memory_hits", ("parked_lookups_total", "disk"): "disk_hits",
    ("parked_lookups_total", "miss"): "misses", ("parked_failures_total", "write"): "write_failures",
    ("parked_failures_total", "damaged"): "damaged", ("parked_bytes", "memory"): "memory_bytes",
    ("parked_bytes", "disk"): "disk_bytes", ("parked_conversations", "memory"): "in_memory",
    ("parked_conversations", "disk"): "on_disk",
}


def requests():
    """Conversations of four rounds; of ten, one each is cancelled, fails, is pinned, or drops a range.

    The order turns round with each round: those that have rested for a short time are in memory, the others on disk.
    """
    conversations = REQUESTS // ROUNDS
    for i in range(REQUESTS):
        round_, conversation = divmod(i, conversations)
        if round_ % 2 == 1:
            conversation = conversations - 1 - conversation
        request = {"id": str(i), "prompt": PROMPT,
                   "max_tokens": 20 if conversation % 10 == 4 else 80, "arrival": 12 * i,
                   "conversation" if round_ == 0 else "continue": f"c{conversation}"}
        if conversation % 10 == 1:
            request["max_tokens"] = 1000
            request["cancel_after"] = 20
        elif conversation % 10 == 2 and round_ > 0:
            request["prompt"] = ""
        elif conversation % 10 == 3 and round_ == 0:
            request["pin_prompt"] = 8
        elif conversation % 10 == 4 and round_ > 0:
            # Within the window.
            request["drop"] = [[PROMPT_LENGTH * round_ - 50, 10]]
        yield request


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Prometheus:
    """A server with an empty folder that reads one target."""

    def __init__(self, folder, target):
        config = folder / "prometheus.yml"
        config.write_text("scrape_configs:\n- job_name: inflight\n"
                          f"  scrape_interval: {SCRAPE}\n  scrape_timeout: {SCRAPE}\n"
                          f"  static_configs: [{{targets: ['{target}']}}]\n", encoding="ascii")
        self.address = f"http://127.0.0.1:{free_port()}"
        self.log = (folder / "prometheus.log").open("w")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={self.address[len('http://'):]}"], stdout=self.log, stderr=self.log)

    def ask(self, path, **query):
        with urllib.request.urlopen(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}",
                                    timeout=PATIENCE) as answer:
            return json.load(answer)["data"]["result"]

    def is_up(self):
        """Whether the last scrape had an answer; None before the first."""
        found = self.ask("query", query='up{job="inflight"}')
        return found[0]["value"][1] == "1" if found else None

    def wait_for(self, event, what):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if what():
                    return
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.1)
        raise SystemExit(f"{event}: not within {PATIENCE} s. Prometheus says:\n"
                         + Path(self.log.name).read_text(encoding="utf-8"))

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.log.close()


def address_of(serve):
    """Where inflight-serve listens: the first line that it writes."""
    line = serve.stderr.readline()
    found = re.fullmatch(r"metrics: http://(\S+)/metrics\n", line)
    assert found, f"no address: {line!r}"
    return found[1]


def start(args, folder):
    """inflight-serve, and the pipe that it reads requests from."""
    path = folder / "requests"
    os.mkfifo(path)
    serve = subprocess.Popen(
        [args.serve, "--model", args.model, "--requests", path, "--json", "--max-seqs", "8", "--budget", "128",
         "--chunk", "32", "--sink", "4", "--window", "124", "--max-pinned", "32", "--max-segments", "8", "--draft", "4",
         "--park-memory", "16M", "--park-dir", folder / "parked", "--park-disk", "64M",
         "--metrics-port", "0", "--metrics-linger", str(PATIENCE)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Also for reading, so that it opens although nobody reads yet.
    return serve, os.fdopen(os.open(path, os.O_RDWR), "w", encoding="ascii")


def last_values(server, end):
    """{(metric, labels...): the last value that was read}"""
    values = {}
    # The samples themselves: between the last scrape and the end of the target there may be no step of a query.
    for series in server.ask("query", query='{__name__=~"sinkcache_inflight_.*"}[10m]', time=end):
        labels = {k: v for k, v in series["metric"].items() if k not in ("__name__", "instance", "job")}
        name = series["metric"]["__name__"].removeprefix("sinkcache_inflight_")
        values[(name, *labels.values())] = float(series["values"][-1][1])
    return values


def compare(values, totals):
    expected = {key: totals[name] for key, name in TOTALS.items()}
    expected |= {key: totals["parking"][name] for key, name in PARKING.items()}
    expected[("draft_tokens_total", "rejected")] = totals["drafted"] - totals["accepted"]
    # What one run must not leave at zero, so that no comparison is empty.
    never_zero = ("done", "cancelled", "failed", "pinned_tokens", "dropped_tokens", "drafted", "evicted_tokens")
    empty = [name for name in never_zero if totals[name] == 0] + [
        name for name in ("parked", "written", "memory_hits", "disk_hits") if totals["parking"][name] == 0]
    assert not empty, f"the run has no {', '.join(empty)}: {totals}"
    wrong = {key: (values.get(key), value) for key, value in expected.items() if values.get(key) != value}
    assert not wrong, f"Prometheus has, and the totals say: {wrong}"
    print(f"{len(expected)} counters equal the totals of {totals['done']} + {totals['cancelled']} + "
          f"{totals['failed']} requests")


def check_dashboard(server, path, begin, end):
    queries = [(panel["title"], target["expr"]) for panel in json.loads(Path(path).read_text())["panels"]
               for target in panel["targets"]]
    for title, query in queries:
        series = server.ask("query_range", query=query.replace("$__rate_interval", RATE_INTERVAL), start=begin,
                            end=end, step=SCRAPE)
        finite = [v for s in series for _, v in s["values"] if math.isfinite(float(v))]
        assert finite, f"panel '{title}' has no data: {query}"
    print(f"{len(queries)} queries of the dashboard have data")


def main():
    parser = argparse.ArgumentParser()
    for name in ("serve", "model", "dashboard"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if not shutil.which("prometheus"):
        print("skipped: no Prometheus")
        return SKIPPED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.time()
        serve, pipe = start(args, folder)
        server = None
        try:
            server = Prometheus(folder, address_of(serve))
            # Rates need what was there before the first request.
            server.wait_for("a first scrape", server.is_up)
            with pipe:
                pipe.write("".join(json.dumps(r) + "\n" for r in requests()))
            out, errors = serve.communicate(timeout=5 * PATIENCE)
            assert serve.returncode == 0, errors
            assert "nobody has read" not in errors, errors
            server.wait_for("the end of the target", lambda: server.is_up() is False)
            end = time.time()
            compare(last_values(server, end), json.loads(out.splitlines()[-1])["totals"])
            check_dashboard(server, args.dashboard, begin, end)
            if args.page:
                print(server.address, begin, end, flush=True)
                sys.stdin.readline()
        finally:
            serve.kill()
            if server:
                server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
