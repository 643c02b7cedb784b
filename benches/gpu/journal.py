"""What has been measured, on disk as soon as it is known; and a run that goes on where it was cut off.

A kernel that faults takes the process's context with it, and one that hangs takes the process: so a run writes down
what it is about to do, and starts itself anew where that fails. What was under way then becomes a row with an error.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading
import time


class Journal:
    def __init__(self, folder, resume, budget):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows_file, self.now_file = self.folder / "rows.jsonl", self.folder / "now.json"
        self.began_file = self.folder / "began"
        if not resume:
            for file in (self.rows_file, self.now_file, self.began_file):
                file.unlink(missing_ok=True)
        self.rows = [json.loads(line) for line in self._complete_lines()]
        # Wall time: it must go on over a restart.
        if not self.began_file.exists():
            self.began_file.write_text(repr(time.time()))
        self.until = float(self.began_file.read_text()) + budget
        if self.now_file.exists():
            under_way = json.loads(self.now_file.read_text())
            self.now_file.unlink()
            if not self.has(under_way["key"], under_way["contender"]):
                self.add({**under_way, "status": "error", "note": "the process ended or was ended while this ran"})

    def _complete_lines(self):
        """Lines but for a last one that was cut off in the middle, which is removed."""
        if not self.rows_file.exists():
            return []
        text = self.rows_file.read_text()
        lines = text.split("\n")
        if lines[-1]:
            self.rows_file.write_text(text[: -len(lines[-1])])
        return lines[:-1]

    def has(self, key, contender):
        return any(r["key"] == key and r["contender"] == contender for r in self.rows)

    def seconds_left(self):
        return self.until - time.time()

    def add(self, row):
        self.rows.append(row)
        with self.rows_file.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def under_way(self, fields, limit):
        """Notes what runs now. After `limit` seconds the process starts itself anew without it."""
        self.now_file.write_text(json.dumps(fields))
        timer = threading.Timer(limit, self._too_long, (fields, limit)) if limit else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer:
                timer.cancel()
            self.now_file.unlink(missing_ok=True)

    def _too_long(self, fields, limit):
        self.add({**fields, "status": "error", "note": f"took longer than {limit:g} s"})
        restart()


def restart():
    """This process anew, going on where it was."""
    sys.stdout.flush()
    arguments = [a for a in sys.argv if a != "--resume"]
    os.execv(sys.executable, [sys.executable, *arguments, "--resume"])
