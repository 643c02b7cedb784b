"""A program that is started with or without the library, and never outlives the test."""
import ctypes
import os
import pathlib
import signal
import subprocess
import tempfile
import time

import places

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def die_with_the_test():
    """In the child: also when the test itself is killed, the program goes."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def environment(settings=None, preload=True):
    """This process's environment without any setting of the library, and with `settings` (window=252, ...)."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SINKCACHE_", "LLAMA_ARG_"))}
    for name in ("LD_PRELOAD", "GGML_BACKEND_PATH"):
        env.pop(name, None)
    for name, value in (settings or {}).items():
        env["SINKCACHE_LLAMA_" + name.upper()] = str(value)
    if preload:
        env["LD_PRELOAD"] = str(places.LIBRARY)
    return env


class Process:
    """A program in the background; what it writes is in `log()`."""

    def __init__(self, arguments, env, stdin=subprocess.DEVNULL):
        self.file = tempfile.TemporaryFile()
        self.popen = subprocess.Popen(
            [str(a) for a in arguments], env=env, stdin=stdin, stdout=self.file, stderr=subprocess.STDOUT,
            preexec_fn=die_with_the_test)

    def log(self):
        size = self.file.seek(0, os.SEEK_END)
        return os.pread(self.file.fileno(), size, 0).decode(errors="replace")

    def wait_for(self, found, seconds, what):
        """Calls `found` until it gives a value; fails with the log if the program ends before, or takes too long."""
        end = time.monotonic() + seconds
        while True:
            value = found()
            if value:
                return value
            if self.popen.poll() is not None:
                raise AssertionError(f"{self.popen.args} ended with {self.popen.returncode} before {what}:\n"
                                     f"{self.log()}")
            if time.monotonic() > end:
                self.stop()
                raise AssertionError(f"{self.popen.args}: no {what} within {seconds} s:\n{self.log()}")
            time.sleep(0.05)

    def resident_bytes(self):
        pages = pathlib.Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self):
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.file.close()


def run(arguments, env, text="", seconds=600):
    """Runs a program to its end: its exit code, and what it wrote to stdout and stderr."""
    done = subprocess.run(
        [str(a) for a in arguments], env=env, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        timeout=seconds, preexec_fn=die_with_the_test, check=False)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
