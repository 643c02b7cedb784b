"""This library: one call a layer, two calls a layer, and one call with programmatic launches where the library has
them."""

from cases import N_SINK
from contenders.base import Contender
from data import DTYPES
import skc


class Step(Contender):
    name, family, modes = "sinkcache skc_step", "sinkcache", ("graph", "eager")
    flags = 0

    def prepare(self):
        c, d = self.case, self.data
        self.cache = skc.SinkCache(
            self.place,
            d.layers,
            c.n_seqs,
            c.q_heads,
            c.kv_heads,
            c.dim,
            DTYPES[c.dtype],
            N_SINK,
            c.window,
            max(c.chunk, d.period),
            self.flags,
        )
        self.cache.start_at(c.start)
        k, v = (x.flatten(0, 1) for x in (d.block_k, d.block_v))
        for layer in range(d.layers):
            fill = self.cache.append(layer, d.period, k, v)
            for _ in range(d.blocks):
                fill()
        # Arrays on the device are read when the work is done.
        self.place.synchronize()
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
    """Kernels that take their places while the one before them still runs."""

    name, modes = "sinkcache skc_step, programmatic", ("graph",)

    @classmethod
    def does(cls, case, place):
        cls.flags = skc.flag("SKC_PROGRAMMATIC_LAUNCH")
        return cls.flags is not None and place.backend == "SKC_BACKEND_CUDA"


CONTENDERS = (Step, TwoCalls, Programmatic)
