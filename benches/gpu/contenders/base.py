"""What contenders have in common."""
import torch

from data import DTYPES


class Contender:
    """Override `prepare` and `step`; set `out[layer]` to [n_seqs, chunk, q_heads, dim]."""

    # Shown in tables; family is "sinkcache", "streaming" (the same function), "window" (attention alone) or "copy".
    name = family = None
    # Eager calls, calls replayed from a graph, or both.
    modes = ("graph",)
    # Times the limit after which a contender is given up.
    patience = 1

    @classmethod
    def does(cls, case, place):
        return True

    def __init__(self, case, place, data):
        self.case, self.place, self.data = case, place, data
        self.out = [None] * data.layers
        self.prepare()

    def prepare(self):
        """Brings every layer to the state before the measured step."""

    def step(self, layer):
        raise NotImplementedError

    def reference(self, layer, passes):
        """What `picked` must give after so many steps of the layer."""
        return self.data.sink_reference(layer, passes)

    def picked(self, layer):
        return self.data.pick(self.out[layer])

    def all_layers(self):
        for layer in range(self.data.layers):
            self.step(layer)

    def verify(self):
        """Raises if something went wrong on the device."""

    def close(self):
        pass

    def empty_out(self):
        """Poisoned, so that a row that is not written shows."""
        c = self.case
        return torch.full(
            (c.n_seqs, c.chunk, c.q_heads, c.dim), float("nan"), dtype=DTYPES[c.dtype], device=self.place.tensors
        )
