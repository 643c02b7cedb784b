"""Results on disk as soon as they are known, and a run that can be resumed.

A kernel that faults destroys the process's CUDA context, and one that hangs blocks the process. Therefore a run records
what it is about to do, and restarts its process if that fails. What was running becomes a row with an error.
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
        # Wall time, which continues over a restart.
        if not self.began_file.exists():
            self.began_file.write_text(repr(time.time()))
        self.until = float(self.began_file.read_text()) + budget
        if self.now_file.exists():
            last = json.loads(self.now_file.read_text())
            self.now_file.unlink()
            if not self.has(last["key"], last["contender"]):
                self.add({**last, "status": "error", "note": "the process ended while this ran"})

    def _complete_lines(self):
        """The lines of the file. An incomplete last line is removed from it."""
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
    def running(self, fields, limit):
        """Records what is running. After `limit` seconds the process restarts and continues with the next."""
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
    """Restarts this process, which resumes the run."""
    sys.stdout.flush()
    arguments = [a for a in sys.argv if a != "--resume"]
    os.execv(sys.executable, [sys.executable, *arguments, "--resume"])
