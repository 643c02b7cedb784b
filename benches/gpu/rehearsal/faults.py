"""Contenders that fail, for run.py's --extra: one ends its process, one does not come back."""

import os
import time

from contenders.sinkcache import Step


class OfOneCase(Step):
    # Not this library's: what happens to them says nothing of it.
    family = "fault"

    @classmethod
    def supports(cls, case, platform):
        return case.n_seqs == 2 and case.decode


class Crash(OfOneCase):
    name = "crash"

    def step(self, layer):
        os.abort()


class Hang(OfOneCase):
    # Of run.py's limit of a minute.
    name, limit_factor = "hang", 0.2

    def step(self, layer):
        time.sleep(3600)


CONTENDERS = (Crash, Hang)
