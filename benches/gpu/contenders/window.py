"""PyTorch's attention over a contiguous window that is already rotated: nothing is stored, rotated or evicted.

A lower bound that no streaming system reaches. A decode step gives the definition's result. For a chunk only the number
of keys is the same: a mask of sinks and window over keys rotated once differs from the definition, in which a sink's
distance depends on the query.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cases import N_SINK
from contenders.base import Contender
from data import attention, rotate


def rotated(x, positions):
    """Contiguous RoPE of x [n_seqs, heads, n, dim] at positions; a few sequences at a time to save memory."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    few = max(1, (1 << 26) // x[0].numel())
    for begin in range(0, len(x), few):
        out[begin : begin + few] = rotate(x[begin : begin + few], positions)
    return out


class Window(Contender):
    """Rotated K, contiguous V and rotated q of every layer."""

    family = "window"
    backend = None

    def prepare(self):
        c, d = self.case, self.data
        n, device = self.n_keys(), self.platform.torch_device
        self.k, self.v, self.q = [], [], []
        for layer in range(d.layers):
            k, v = self.keys(layer)
            self.k.append(rotated(k, torch.arange(n, device=device)))
            self.v.append(v.contiguous())
            self.q.append(rotated(d.q[layer].transpose(1, 2), torch.arange(n - c.chunk, n, device=device)))

    def n_keys(self):
        return self.case.cached

    def keys(self, layer):
        return self.data.visible_kv(layer)

    def attend(self, layer):
        """-> [n_seqs, q_heads, chunk, dim]"""
        q, k = self.q[layer], self.k[layer]
        return F.scaled_dot_product_attention(q, k, self.v[layer], enable_gqa=q.shape[1] != k.shape[1])

    def step(self, layer):
        if self.backend is None:
            self.out[layer] = self.attend(layer).transpose(1, 2)
            return
        with sdpa_kernel(self.backend):
            self.out[layer] = self.attend(layer).transpose(1, 2)

    def visible(self):
        """[rows, keys] of the rows that are checked, or None for all."""
        return None

    def reference(self, layer, passes):
        if self.case.decode:
            return self.data.sink_reference(layer)
        seqs, rows = self.data.checked_seqs(), self.data.checked_rows()
        return attention(self.q[layer][seqs][:, :, rows], self.k[layer][seqs], self.v[layer][seqs], self.visible())


def _backend(backend, label, gpu_only=True):
    class Sdpa(Window):
        name = f"torch SDPA, {label}"

        @classmethod
        def supports(cls, case, platform):
            # PyTorch's own choice for all cases; the others for some, to leave time for more cases.
            return case.start == 0 and (not gpu_only or platform.name == "cuda" and (case.core or not case.decode))

    Sdpa.backend = backend
    return Sdpa


class Rows(Window):
    """The query heads of a group as rows of their KV head, so that K and V are read once for all of them."""

    name = "torch SDPA, heads as queries"

    @classmethod
    def supports(cls, case, platform):
        return case.start == 0 and case.decode and case.q_heads > case.kv_heads

    def attend(self, layer):
        c, q = self.case, self.q[layer]
        rows = q.view(c.n_seqs, c.kv_heads, c.q_heads // c.kv_heads, c.dim)
        return F.scaled_dot_product_attention(rows, self.k[layer], self.v[layer]).view(c.n_seqs, c.q_heads, 1, c.dim)


class Flex(Window):
    """FlexAttention. For a chunk: with a block mask of sinks and window, over keys that are rotated once."""

    name = "torch FlexAttention"
    compiled = None

    @classmethod
    def supports(cls, case, platform):
        return case.core

    def n_keys(self):
        return self.case.cached + self.case.chunk - 1

    def keys(self, layer):
        c, d = self.case, self.data
        first = d.filled - c.window + 1
        return d.tokens(layer, [*range(N_SINK), *range(first, d.filled + c.chunk)], slice(None))

    def prepare(self):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if Flex.compiled is None:
            on_gpu = self.platform.name == "cuda"
            Flex.compiled = staticmethod(torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention)
        super().prepare()
        c = self.case
        before = c.cached - 1

        def is_visible(b, h, row, key):
            return (key <= row + before) & ((key < N_SINK) | (key > row + before - c.window))

        self.is_visible = is_visible
        self.mask = None
        if not c.decode:
            self.mask = create_block_mask(
                is_visible, None, None, c.chunk, self.n_keys(), device=self.platform.torch_device
            )

    def attend(self, layer):
        q, k = self.q[layer], self.k[layer]
        return self.compiled(q, k, self.v[layer], block_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])

    def visible(self):
        device = self.platform.torch_device
        rows = torch.tensor(self.data.checked_rows(), device=device)[:, None]
        return self.is_visible(0, 0, rows, torch.arange(self.n_keys(), device=device)[None])


CONTENDERS = (
    _backend(None, "as PyTorch chooses", gpu_only=False),
    _backend(SDPBackend.FLASH_ATTENTION, "flash"),
    Rows,
    _backend(SDPBackend.CUDNN_ATTENTION, "cuDNN"),
    _backend(SDPBackend.EFFICIENT_ATTENTION, "memory-efficient"),
    Flex,
)
