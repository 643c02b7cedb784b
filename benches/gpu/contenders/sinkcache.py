"""This library: one call for a layer, two calls, one call with programmatic dependent launch, one without clusters."""

import os

from cases import N_SINK
from contenders.base import Contender
from data import DTYPES
import skc


class Step(Contender):
    name, family, modes = "sinkcache skc_step", "sinkcache", ("graph", "eager")
    flags = 0

    def prepare(self):
        c, d = self.case, self.data
        shape = skc.CacheShape(
            n_layers=d.layers,
            n_seqs=c.n_seqs,
            q_heads=c.q_heads,
            kv_heads=c.kv_heads,
            dim=c.dim,
            dtype=DTYPES[c.dtype],
            n_sink=N_SINK,
            window=c.window,
            max_chunk=max(c.chunk, d.period),
        )
        self.cache = skc.SinkCache(self.platform, shape, self.flags)
        self.cache.start_at(c.start)
        k, v = (x.flatten(0, 1) for x in (d.block_k, d.block_v))
        for layer in range(d.layers):
            fill = self.cache.append(layer, d.period, k, v)
            for _ in range(d.blocks):
                fill()
        # Arrays in device memory must stay until the work has finished.
        self.platform.synchronize()
        self.cache.kept.clear()
        self.out = [self.empty_out() for _ in range(d.layers)]
        self.calls = [self.call(layer) for layer in range(d.layers)]
        self.verify()

    def call(self, layer):
        d = self.data
        return self.cache.step(layer, self.case.chunk, d.q[layer], d.k[layer], d.v[layer], self.out[layer])

    def step(self, layer):
        self.calls[layer]()

    def verify(self):
        self.cache.check_device()

    def close(self):
        self.cache.close()


class TwoCalls(Step):
    name = "sinkcache append, attend"

    def call(self, layer):
        d, n = self.data, self.case.chunk
        append = self.cache.append(layer, n, d.k[layer], d.v[layer])
        attend = self.cache.attend(layer, n, d.q[layer], self.out[layer])

        def both():
            append()
            attend()

        return both


class Programmatic(Step):
    """Programmatic dependent launch: a kernel's blocks are scheduled while the preceding kernel drains."""

    name, modes = "sinkcache skc_step, programmatic", ("graph",)

    @classmethod
    def supports(cls, case, platform):
        cls.flags = skc.flag("SKC_PROGRAMMATIC_LAUNCH")
        return cls.flags is not None and platform.backend == "SKC_BACKEND_CUDA"


class WithoutClusters(Step):
    """Splits of a chunk that merge through device memory, where others may be clusters."""

    name, modes = "sinkcache skc_step, no clusters", ("graph",)

    @classmethod
    def supports(cls, case, platform):
        return 1 < case.chunk <= 512 and platform.backend == "SKC_BACKEND_CUDA"

    def prepare(self):
        before = os.environ.get("SINKCACHE_CUDA_CLUSTERS")
        os.environ["SINKCACHE_CUDA_CLUSTERS"] = "0"
        try:
            super().prepare()
        finally:
            if before is None:
                del os.environ["SINKCACHE_CUDA_CLUSTERS"]
            else:
                os.environ["SINKCACHE_CUDA_CLUSTERS"] = before


CONTENDERS = (Step, TwoCalls, Programmatic, WithoutClusters)
