"""FlashInfer's decodes over a paged cache, if it can be imported. Written from the sources of version 0.6.1.

Over a window that is already rotated: by its FlashAttention-2 and -3 kernels, and by XQA, which TensorRT-LLM and vLLM
use. Over a sliding window without sinks, as engines use it. And in a streaming form, which does what this library does:
pages of one token, so that one can be replaced, un-rotated keys, rotation in the kernel.

Nothing here has run on a GPU yet: a call that the installed version rejects becomes a row with its error.
"""

import importlib
import math

import torch

from cases import HEADS, N_SINK
from contenders.base import Contender
from installed import is_measured
from contenders.window import Window
from data import DTYPES, attention

MODULE = "flashinfer"
# FlashInfer's recommendation is 128 MB for splits of one batch; XQA's semaphores take 8 MB of theirs.
WORKSPACE_BYTES = 256 << 20


def library(name=MODULE):
    """FlashInfer's module `name`. Imported here, so that a failure is a row of this contender."""
    return importlib.import_module(name)


def tokens_first(x):
    """[n_seqs, heads, tokens, dim] -> [n_seqs, tokens, heads, dim]"""
    return x.transpose(1, 2)


def paged(x, page):
    """[n_seqs, tokens, heads, dim] -> [n_seqs x pages, page, heads, dim], the last page of a sequence padded."""
    padding = -x.shape[1] % page
    x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding))
    return x.reshape(-1, page, *x.shape[2:]).contiguous()


def page_table(n_seqs, tokens, page, device):
    """Where pages of `paged` are: indptr [n_seqs + 1], indices, tokens of the last pages [n_seqs], all int32."""
    pages = -(-tokens // page)
    indptr = torch.arange(n_seqs + 1, dtype=torch.int32, device=device) * pages
    indices = torch.arange(n_seqs * pages, dtype=torch.int32, device=device)
    last = torch.full((n_seqs,), (tokens - 1) % page + 1, dtype=torch.int32, device=device)
    return indptr, indices, last


def workspace(device):
    return torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


class Decode(Window):
    """BatchDecodeWithPagedKVCacheWrapper over a rotated window, in pages of 16 tokens."""

    name, backend, page = "FlashInfer, FA2", "fa2", 16
    # Keys to the left of the query that it sees; -1: all.
    window_left = -1
    # It compiles its kernels at first use.
    limit_factor = 4

    @classmethod
    def supports(cls, case, platform):
        return case.core and case.decode and is_measured(case, platform, MODULE)

    def prepare(self):
        flashinfer = library()
        super().prepare()
        c, device = self.case, self.platform.torch_device
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace(device), "NHD", use_tensor_cores=True, backend=self.backend
        )
        dtype = DTYPES[c.dtype]
        self.wrapper.plan(
            *page_table(c.n_seqs, self.n_keys(), self.page, device),
            c.q_heads,
            c.kv_heads,
            c.dim,
            self.page,
            window_left=self.window_left,
            q_data_type=dtype,
            kv_data_type=dtype,
        )
        self.pages = [tuple(paged(tokens_first(x), self.page) for x in kv) for kv in zip(self.k, self.v)]
        self.rows = [x[:, :, 0].contiguous() for x in self.q]

    def step(self, layer):
        self.out[layer] = self.wrapper.run(self.rows[layer], self.pages[layer])[:, None]


class Fa3(Decode):
    name, backend = "FlashInfer, FA3", "fa3"


class SlidingWindow(Decode):
    """As many keys, none of them sinks. A page more is held, as in an engine that frees whole pages."""

    name = "FlashInfer, sliding window without sinks"

    def __init__(self, case, platform, data):
        self.window_left = case.cached - 1
        super().__init__(case, platform, data)

    def n_keys(self):
        return self.case.cached + self.page

    def keys(self, layer):
        last = self.data.filled + 1
        return self.data.tokens(layer, list(range(last - self.n_keys(), last)), slice(None))

    def reference(self, layer, passes):
        seqs, cached = self.data.checked_seqs(), self.case.cached
        return attention(self.q[layer][seqs], *(x[layer][seqs][:, :, -cached:] for x in (self.k, self.v)))


class Xqa(Window):
    """XQA over a rotated window: also at the lengths for which its times have been published (`published.py`)."""

    name, page = "FlashInfer, XQA", 16
    limit_factor = 4

    @classmethod
    def supports(cls, case, platform):
        of_table = case.n_seqs == 1 and (case.q_heads, case.kv_heads, case.dim) == HEADS[0] and case.dtype == "bf16"
        return case.decode and case.start == 0 and (case.core or of_table) and is_measured(case, platform, MODULE)

    def prepare(self):
        self.decode = library("flashinfer.decode").xqa_batch_decode_with_kv_cache
        super().prepare()
        c, device = self.case, self.platform.torch_device
        indices = page_table(c.n_seqs, c.cached, self.page, device)[1]
        self.tables = indices.view(c.n_seqs, -1)
        self.lengths = torch.full((c.n_seqs,), c.cached, dtype=torch.int32, device=device).view(torch.uint32)
        self.workspace = workspace(device)
        self.pages = [tuple(paged(tokens_first(x), self.page) for x in kv) for kv in zip(self.k, self.v)]
        self.rows = [x[:, :, 0].contiguous() for x in self.q]

    def step(self, layer):
        c = self.case
        out = self.decode(
            self.rows[layer],
            self.pages[layer],
            self.workspace,
            self.tables,
            self.lengths,
            c.cached,
            bmm1_scale=1 / math.sqrt(c.dim),
            bmm2_scale=1.0,
            kv_layout="NHD",
        )
        self.out[layer] = out[:, None]


class Streaming(Contender):
    """Stores the new token in the page of the oldest one and attends to pages in the order of their tokens, which is
    that of their cache positions. The order is made once for all layers, as in an engine."""

    name, family = "FlashInfer, streaming form", "streaming"
    limit_factor = 4

    @classmethod
    def supports(cls, case, platform):
        return case.core and case.decode and is_measured(case, platform, MODULE)

    def prepare(self):
        flashinfer = library()
        c, d, device = self.case, self.data, self.platform.torch_device
        # The ring starts with its oldest token, the first to be overwritten.
        self.k, self.v = (
            [tokens_first(x).clone(memory_format=torch.contiguous_format) for _ in range(d.layers)]
            for x in d.visible_kv(0, 0)
        )
        self.head = torch.zeros(1, dtype=torch.int32, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.ring = torch.arange(c.window, dtype=torch.int32, device=device)
        self.sinks = torch.arange(N_SINK, dtype=torch.int32, device=device)
        self.first = torch.arange(c.n_seqs, dtype=torch.int32, device=device)[:, None] * c.cached
        indptr, indices, last = page_table(c.n_seqs, c.cached, 1, device)
        # Its form for graphs keeps the page indices in a buffer of the caller.
        self.indices = indices.clone()
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace(device),
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=True,
            paged_kv_indptr_buffer=indptr.clone(),
            paged_kv_indices_buffer=self.indices,
            paged_kv_last_page_len_buffer=last.clone(),
            backend="fa2",
        )
        dtype = DTYPES[c.dtype]
        self.wrapper.plan(
            indptr,
            indices,
            last,
            c.q_heads,
            c.kv_heads,
            c.dim,
            1,
            pos_encoding_mode="ROPE_LLAMA",
            q_data_type=dtype,
            kv_data_type=dtype,
        )
        self.rows = [q[:, 0].contiguous() for q in d.q]

    def advance(self):
        """The next slot of the ring, and the pages as they are in order after it has been written."""
        self.slot.copy_(self.head + N_SINK)
        self.head.add_(1).remainder_(self.case.window)
        order = torch.cat((self.sinks, N_SINK + (self.ring + self.head).remainder(self.case.window)))
        self.indices.copy_((self.first + order).view(-1))

    def step(self, layer):
        d = self.data
        if layer == 0:
            self.advance()
        pages = []
        for held, new in ((self.k[layer], d.k[layer]), (self.v[layer], d.v[layer])):
            held.index_copy_(1, self.slot, new)
            pages.append(held.view(-1, 1, *held.shape[2:]))
        self.out[layer] = self.wrapper.run(self.rows[layer], tuple(pages))[:, None]


CONTENDERS = (Xqa, Decode, Streaming, Fa3, SlidingWindow)
