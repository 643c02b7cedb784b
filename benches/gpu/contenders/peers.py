"""Kernels of other libraries, if they can be imported: FlashAttention-3 and -2, FlashInfer.

None of them manages sinks and a window: they get a contiguous, pre-rotated window as in `window.py`. FlashInfer also
runs a streaming form with pages of one token and keys rotated in the kernel. Nothing here has run on a GPU yet: a call
that the installed version rejects becomes a row with its error.
"""

import importlib.util

import torch

from contenders.base import Contender
from contenders.window import Window
from data import DTYPES


def _importable(name):
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


class FlashAttention(Window):
    """Layout [n_seqs, tokens, heads, dim]. Each query of a chunk sees the `cached` keys up to its own token."""

    module = None

    @classmethod
    def supports(cls, case, platform):
        return platform.name == "cuda" and case.start == 0 and _importable(cls.module)

    def n_keys(self):
        return self.case.cached + self.case.chunk - 1

    def keys(self, layer):
        d = self.data
        last = d.filled + self.case.chunk
        if self.case.decode:
            return d.visible_kv(layer)
        return d.tokens(layer, list(range(last - self.n_keys(), last)), slice(None))

    def prepare(self):
        super().prepare()
        library = __import__(self.module)
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


class FlashInfer(Contender):
    """Decode over pages of 16 tokens, with keys that are already rotated."""

    name, family = "FlashInfer, rotated window", "window"
    page, rotation = 16, "NONE"
    # It compiles its kernels at first use.
    limit_factor = 4

    @classmethod
    def supports(cls, case, platform):
        return platform.name == "cuda" and case.core and case.decode and _importable("flashinfer")

    def prepare(self):
        import flashinfer

        c, d, device = self.case, self.data, self.platform.torch_device
        pages = -(-c.cached // self.page)
        indptr = torch.arange(c.n_seqs + 1, dtype=torch.int32, device=device) * pages
        indices = torch.arange(c.n_seqs * pages, dtype=torch.int32, device=device)
        last = torch.full((c.n_seqs,), (c.cached - 1) % self.page + 1, dtype=torch.int32, device=device)
        workspace = torch.zeros(256 << 20, dtype=torch.uint8, device=device)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=c.q_heads > c.kv_heads
        )
        dtype = DTYPES[c.dtype]
        self.wrapper.plan(
            indptr,
            indices,
            last,
            c.q_heads,
            c.kv_heads,
            c.dim,
            self.page,
            pos_encoding_mode=self.rotation,
            q_data_type=dtype,
            kv_data_type=dtype,
        )
        source = Window(c, self.platform, d) if self.rotation == "NONE" else None
        self.pages, self.q = [], []
        for layer in range(d.layers):
            k, v = (source.k[layer], source.v[layer]) if source else d.visible_kv(layer)
            self.q.append((source.q[layer].transpose(1, 2) if source else d.q[layer])[:, 0].contiguous())
            self.pages.append(tuple(self.paged(x, pages) for x in (k, v)))

    def paged(self, x, pages):
        """[n_seqs, heads, n, dim] -> [n_seqs x pages, page, heads, dim], the last page padded."""
        x = x.transpose(1, 2)
        padding = pages * self.page - x.shape[1]
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding))
        return x.reshape(-1, self.page, *x.shape[2:]).contiguous()

    def step(self, layer):
        self.out[layer] = self.wrapper.run(self.q[layer], self.pages[layer])[:, None]

    def reference(self, layer, passes):
        return self.data.sink_reference(layer)


class FlashInferStreaming(FlashInfer):
    """Streaming with FlashInfer: pages of one token, so that one can be replaced; keys are rotated in the kernel."""

    name, family = "FlashInfer, streaming form", "streaming"
    page, rotation = 1, "ROPE_LLAMA"


CONTENDERS = (FlashAttention3, FlashInfer, FlashInferStreaming, FlashAttention2)
