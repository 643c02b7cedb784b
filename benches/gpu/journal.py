"""Results on disk as soon as they are known, and a run that can be resumed.

A kernel that faults destroys the process's CUDA context, and one that hangs blocks the process. Therefore a run records
what it is about to do, and restarts its process if that fails. What was running becomes a row with an error.

A disk that is full may leave half of any of these files: what can be read is kept, and the rest is measured again.
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
        self.rows = [row for line in self._complete_lines() for row in json.loads(line)]
        # Wall time, which continues over a restart.
        began = self._read(self.began_file, float)
        if began is None:
            began = time.time()
            self.began_file.write_text(repr(began))
        self.until = began + budget
        last = self._read(self.now_file, json.loads)
        self.now_file.unlink(missing_ok=True)
        if last and not self.has(last["key"], last["contender"]):
            self.add({**last, "status": "error", "note": "the process ended while this ran"})

    @staticmethod
    def _read(file, parse):
        """None without the file, or with half of it."""
        try:
            return parse(file.read_text())
        except (FileNotFoundError, ValueError):
            return None

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

    def add(self, *rows):
        """All rows of a contender: they are a line, so that a line that is cut leaves none of them."""
        with self.rows_file.open("a") as file:
            file.write(json.dumps(rows) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows

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
        try:
            self.add({**fields, "status": "error", "note": f"took longer than {limit:g} s"})
        finally:
            # Also with a full disk: what hangs must end.
            restart()


def restart():
    """Restarts this process, which resumes the run."""
    sys.stdout.flush()
    arguments = [a for a in sys.argv if a != "--resume"]
    os.execv(sys.executable, [sys.executable, *arguments, "--resume"])
