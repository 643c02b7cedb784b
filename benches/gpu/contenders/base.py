"""What contenders have in common."""

import torch

from data import DTYPES


class Contender:
    """Subclasses override `prepare` and `step`, and set `out[layer]` to [n_seqs, chunk, q_heads, dim]."""

    # The name is shown in tables. Families: "sinkcache", "streaming" (the same function), "window" (attention alone),
    # "copy".
    name = family = None
    # Eager calls, graph launches, or both.
    modes = ("graph",)
    # Multiplies the time limit of a contender.
    limit_factor = 1

    @classmethod
    def supports(cls, case, platform):
        return True

    def __init__(self, case, platform, data):
        self.case, self.platform, self.data = case, platform, data
        self.out = [None] * data.layers
        self.prepare()

    def prepare(self):
        """Puts every layer into the state before the first step."""

    def step(self, layer):
        raise NotImplementedError

    def reference(self, layer, passes):
        """What `checked_output` must return after this many steps of the layer."""
        return self.data.sink_reference(layer, passes)

    def checked_output(self, layer):
        return self.data.select_checked(self.out[layer])

    def step_all_layers(self):
        for layer in range(self.data.layers):
            self.step(layer)

    def verify(self):
        """Raises if the device has reported an error."""

    def close(self):
        pass

    def empty_out(self):
        """Filled with NaN, so that a row that is not written is detected."""
        c = self.case
        return torch.full(
            (c.n_seqs, c.chunk, c.q_heads, c.dim),
            float("nan"),
            dtype=DTYPES[c.dtype],
            device=self.platform.torch_device,
        )
