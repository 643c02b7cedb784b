"""FlashInfer and FlashAttention as far as the contenders call them, in NumPy, for tests without a GPU.

Parameters are those of FlashInfer 0.6.1, in its order: self_test_peers.py compares them with a wheel. What is read and
what a query sees follows its headers (include/flashinfer/attention/variants.cuh: a key is seen if kv_idx + window_left
>= kv_len - 1, for one query), and so do the checks of arguments.
"""

import importlib.machinery
import math
import types

import numpy as np
import torch


class Rejected(ValueError):
    """Arguments that the real library rejects or misreads."""


def check(holds, text):
    if not holds:
        raise Rejected(text)


def rotated(x, positions, theta):
    """RoPE of halves (not of neighbours): x [n, heads, dim] at positions [n]."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * theta ** (-np.arange(half) / half)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate((low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)), -1)


def attend(q, k, v, scale, seen):
    """q [heads, dim], k and v [tokens, kv heads, dim], seen [tokens] -> [heads, dim]"""
    group = len(q) // k.shape[1]
    out = np.empty_like(q)
    for head in range(len(q)):
        score = np.where(seen, k[:, head // group] @ q[head] * scale, -np.inf)
        weight = np.exp(score - score.max())
        out[head] = weight / weight.sum() @ v[:, head // group]
    return out


def numbers(x):
    return x.double().numpy()


def gathered(pages, table, length):
    """Tokens [length, heads, dim] of the pages in a table."""
    return numbers(pages[table.long()]).reshape(-1, *pages.shape[2:])[:length]


def check_pages(pages, page_size, heads, dim, dtype):
    for x in pages:
        check(tuple(x.shape[1:]) == (page_size, heads, dim), f"pages are {tuple(x.shape)}")
        check(x.is_contiguous() and x.dtype == dtype, "pages are contiguous and of the planned type")


def check_workspace(x):
    check(x.dtype == torch.uint8 and not x.any(), "the workspace is zero at first")


class BatchDecodeWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
        backend="auto",
        jit_args=None,
    ):
        check_workspace(float_workspace_buffer)
        check(kv_layout == "NHD" and backend in ("auto", "fa2", "fa3"), f"{kv_layout}, {backend}")
        self.graph, self.backend = use_cuda_graph, backend
        self.buffers = paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer
        check(not self.graph or all(torch.is_tensor(x) for x in self.buffers), "buffers of the caller for graphs")

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        pos_encoding_mode="NONE",
        window_left=-1,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        o_data_type=None,
        data_type=None,
        sm_scale=None,
        rope_scale=None,
        rope_theta=None,
        non_blocking=True,
        block_tables=None,
        seq_lens=None,
        fixed_split_size=None,
        disable_split_kv=False,
    ):
        for x in (indptr, indices, last_page_len):
            check(x.dtype == torch.int32, "page tables are int32")
        check(pos_encoding_mode in ("NONE", "ROPE_LLAMA"), pos_encoding_mode)
        check(pos_encoding_mode == "NONE" or self.backend != "fa3", "FA3 does not rotate")
        if self.graph:
            for mine, given in zip(self.buffers, (indptr, indices, last_page_len)):
                mine[: len(given)].copy_(given)
        else:
            self.buffers = indptr, indices, last_page_len
        self.shape = num_qo_heads, num_kv_heads, head_dim, page_size
        self.types = q_data_type, kv_data_type or q_data_type
        self.rotates, self.window_left = pos_encoding_mode == "ROPE_LLAMA", window_left
        self.scale, self.theta = sm_scale or 1 / math.sqrt(head_dim), rope_theta or 1e4

    def run(
        self,
        q,
        paged_kv_cache,
        *args,
        q_scale=None,
        k_scale=None,
        v_scale=None,
        out=None,
        lse=None,
        return_lse=False,
        enable_pdl=None,
        window_left=None,
        sinks=None,
        q_len_per_req=1,
    ):
        heads, kv_heads, dim, page_size = self.shape
        indptr, indices, last = self.buffers
        check(tuple(q.shape) == (len(last), heads, dim) and q.dtype == self.types[0], f"q is {tuple(q.shape)}")
        check_pages(paged_kv_cache, page_size, kv_heads, dim, self.types[1])
        found = []
        for i, query in enumerate(numbers(q)):
            table = indices[indptr[i] : indptr[i + 1]]
            length = (len(table) - 1) * page_size + int(last[i])
            k, v = (gathered(x, table, length) for x in paged_kv_cache)
            index = np.arange(length)
            if self.rotates:
                k = rotated(k, index, self.theta)
                query = rotated(query[None], index[-1:], self.theta)[0]
            seen = index + self.window_left >= length - 1 if self.window_left >= 0 else index >= 0
            found.append(attend(query, k, v, self.scale, seen))
        return torch.from_numpy(np.stack(found)).to(q.dtype)


def xqa_batch_decode_with_kv_cache(
    query,
    kv_cache,
    workspace_buffer,
    block_tables,
    seq_lens,
    max_seq_len,
    bmm1_scale=1.0,
    bmm2_scale=1.0,
    window_left=-1,
    out=None,
    sinks=None,
    kv_layout="NHD",
    enable_pdl=None,
    q_len_per_req=1,
    o_scale=1.0,
    mask=None,
):
    check_workspace(workspace_buffer)
    check(isinstance(kv_cache, tuple) and kv_layout == "NHD", "pages of K and of V")
    n, _, dim = query.shape
    page_size, heads = kv_cache[0].shape[1:3]
    check(page_size in (16, 32, 64, 128), f"pages of {page_size}")
    check(query.dtype in (torch.float16, torch.bfloat16), str(query.dtype))
    check_pages(kv_cache, page_size, heads, dim, query.dtype)
    check(block_tables.dtype == torch.int32 and seq_lens.dtype == torch.uint32, "int32 tables, uint32 lengths")
    check(tuple(seq_lens.shape) == (n,) and len(block_tables) == n, "a table and a length for each sequence")
    found = []
    for i, q in enumerate(numbers(query)):
        length = int(seq_lens[i])
        check(length <= max_seq_len and length <= block_tables.shape[1] * page_size, f"{length} tokens")
        k, v = (gathered(x, block_tables[i], length) for x in kv_cache)
        index = np.arange(length)
        seen = index + window_left >= length - 1 if window_left >= 0 else index >= 0
        found.append(bmm2_scale * attend(q, k, v, bmm1_scale, seen))
    return torch.from_numpy(np.stack(found)).to(query.dtype)


def flash_attn_func(q, k, v, causal=False, window_size=(-1, -1)):
    """[n_seqs, tokens, heads, dim]; the last query is at the last key, with a window as far to the left of each."""
    check(causal and window_size[1] in (-1, 0), "causal")
    rows, keys = q.shape[1], np.arange(k.shape[1])
    found = []
    for seq in range(len(q)):
        k_seq, v_seq = numbers(k[seq]), numbers(v[seq])
        for row, query in enumerate(numbers(q[seq])):
            at = k.shape[1] - rows + row
            seen = (keys <= at) & ((keys >= at - window_size[0]) if window_size[0] >= 0 else True)
            found.append(attend(query, k_seq, v_seq, 1 / math.sqrt(q.shape[-1]), seen))
    return torch.from_numpy(np.stack(found)).view(q.shape).to(q.dtype)


def flash_attn_with_kvcache(q, k_cache, v_cache, causal=False):
    return flash_attn_func(q, k_cache, v_cache, causal)


def module(name, *functions, **more):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update({f.__name__: f for f in functions}, **more)
    return made


def modules():
    """What goes into sys.modules."""
    decode = module("flashinfer.decode", BatchDecodeWithPagedKVCacheWrapper, xqa_batch_decode_with_kv_cache)
    found = [decode, module("flashinfer", BatchDecodeWithPagedKVCacheWrapper, decode=decode)]
    found += [module(name, flash_attn_func, flash_attn_with_kvcache) for name in ("flash_attn", "flash_attn_interface")]
    return {m.__name__: m for m in found}
