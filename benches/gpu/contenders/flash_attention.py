"""FlashAttention-3 and -2, if they can be imported.

They do not know sinks: they get a contiguous window that is already rotated, as in `window.py`. Nothing here has run on
a GPU yet: a call that the installed version rejects becomes a row with its error.
"""

import importlib

import torch

from installed import is_measured
from contenders.window import Window


class FlashAttention(Window):
    """Layout [n_seqs, tokens, heads, dim]. Each query of a chunk sees the `cached` keys up to its own token."""

    module = None

    @classmethod
    def supports(cls, case, platform):
        return case.start == 0 and is_measured(case, platform, cls.module)

    def n_keys(self):
        return self.case.cached + self.case.chunk - 1

    def keys(self, layer):
        d = self.data
        last = d.filled + self.case.chunk
        if self.case.decode:
            return d.visible_kv(layer)
        return d.tokens(layer, list(range(last - self.n_keys(), last)), slice(None))

    def prepare(self):
        library = importlib.import_module(self.module)
        super().prepare()
        self.decode, self.many = library.flash_attn_with_kvcache, library.flash_attn_func
        self.rows = [[x.transpose(1, 2).contiguous() for x in group] for group in (self.q, self.k, self.v)]

    def step(self, layer):
        q, k, v = (group[layer] for group in self.rows)
        if self.case.decode:
            out = self.decode(q, k, v, causal=True)
        else:
            out = self.many(q, k, v, causal=True, window_size=(self.case.cached - 1, 0))
        self.out[layer] = out[0] if isinstance(out, tuple) else out

    def visible(self):
        device, c = self.platform.torch_device, self.case
        last = torch.tensor(self.data.checked_rows(), device=device)[:, None] + c.cached - 1
        key = torch.arange(self.n_keys(), device=device)[None]
        return (key <= last) & (key > last - c.cached)


class FlashAttention3(FlashAttention):
    name, module = "FlashAttention-3", "flash_attn_interface"


class FlashAttention2(FlashAttention):
    name, module = "FlashAttention-2", "flash_attn"


CONTENDERS = (FlashAttention3, FlashAttention2)
