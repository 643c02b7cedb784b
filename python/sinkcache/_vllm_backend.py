"""vLLM's attention backend: keys and values are in a KVCache, and a block of vLLM's is a request.

vLLM says for each request of a batch which block it has, how many tokens are done, and how many come. A request whose
done tokens are none is new, or starts over after it was preempted. One with fewer than the cache has was given drafts
that were rejected.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from vllm.v1.attention.backend import (AttentionBackend, AttentionImpl, AttentionMetadata, AttentionMetadataBuilder,
                                       AttentionType, MultipleOf)
from vllm.v1.kv_cache_interface import AttentionSpec, CircularBufferSpec, KVCacheLayout

from ._cache import KVCache
from ._settings import Layer
from ._vllm_config import POOL_BYTES, logger
from .vllm import Settings

# Drafts of a request that may be rejected at a time.
MAX_REWIND = 64


@dataclass(frozen=True, kw_only=True)
class Spec(CircularBufferSpec):
    """One block per request, of no use but for its number."""

    def max_num_blocks_per_req(self, vllm_config: Any, max_len: int) -> int:
        """The runner computes slots of all positions from the row of a request: it has to be as long."""
        return -(-max_len // self.block_size)


class Backend(AttentionBackend):
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto"]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_kv_connector(cls) -> bool:
        return False

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        return False

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        return Spec(block_size=spec.block_size, num_kv_heads=1, head_size=1, dtype=torch.int8)


class Measuring(AttentionMetadata):
    """Of a forward that measures: what the layers give, in the order in which they run."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Any, Any]] = {}


@dataclass
class Batch(AttentionMetadata):
    """Of one forward: the sequence of each request, and the bounds of their rows."""

    seq_ids: list[int]
    bounds: list[int]


@dataclass
class Served:
    """A model: its layers in the order in which they run, and their cache."""

    settings: Settings
    vllm_config: Any
    names: list[str]
    shape: tuple[int, int, int, int]
    layers: list[Layer]
    kv: KVCache | None = field(default=None, init=False)

    def open(self, device: torch.device) -> KVCache:
        """The cache, new and empty."""
        if self.kv is not None:
            self.kv.close()
        cache = self.vllm_config.cache_config
        heads, kv_heads, dim, dim_vo = self.shape
        drafts = self.vllm_config.num_speculative_tokens
        self.kv = KVCache(len(self.layers), heads, kv_heads, dim, head_dim_vo=dim_vo, layers=self.layers,
                          max_batch_size=cache.num_gpu_blocks_override - 1, dtype=self.vllm_config.model_config.dtype,
                          kv_dtype=self.settings.kv_dtype, num_threads=self.settings.num_threads, device=device,
                          max_rewind=max(MAX_REWIND, drafts))
        asked = cache.kv_cache_memory_bytes
        if asked != POOL_BYTES and self.kv.nbytes > asked:
            needed = self.kv.nbytes
            self.kv.close()
            raise ValueError(f"kv_cache_memory_bytes is {asked}; the sinkcache of {cache.num_gpu_blocks_override - 1} "
                             f"requests (max_num_seqs) has {needed}")
        logger.info("%r", self.kv)
        return self.kv


class Builder(AttentionMetadataBuilder[Batch]):
    """What a forward's layers need, and the edits before it."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        served = vllm_config.compilation_config.static_forward_context[layer_names[0]].impl.served
        if served is None or set(served.names) != set(layer_names):
            raise ValueError(f"sinkcache.vllm does not serve layers in several groups: {', '.join(layer_names)} are "
                             "not all")
        self._kv = served.open(device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Batch:
        common = common_attn_metadata
        if common.causal is not True:
            raise ValueError("sinkcache.vllm does not serve attention that is not causal")
        n = common.num_reqs
        bounds = common.query_start_loc_cpu[: n + 1].tolist()
        # On a GPU these wait for it.
        blocks, lengths = common.block_table_tensor[:n, 0].tolist(), common.seq_lens[:n].tolist()
        batch, restarted = Batch([], bounds[:1]), []
        longer: dict[int, int] = {}
        for block, length, begin, end in zip(blocks, lengths, bounds, bounds[1:]):
            # Block 0 is that of rows that pad a batch.
            if begin == end or not block:
                continue
            if begin != batch.bounds[-1]:
                raise ValueError("sinkcache.vllm does not serve rows of nobody between those of requests")
            seq_id, done = block - 1, length - (end - begin)
            held = self._kv.info(seq_id).length_max
            if not done:
                restarted.append(seq_id)
            elif done < held:
                longer[seq_id] = held - done
            elif done > held:
                raise RuntimeError(f"{done - held} tokens of a request did not go through this model: vLLM took them "
                                   "from elsewhere")
            batch.seq_ids.append(seq_id)
            batch.bounds.append(end)
        if restarted:
            self._kv.reset(restarted)
        if longer:
            self._kv.rewind(list(longer.values()), list(longer))
        return batch


class Impl(AttentionImpl[Batch]):
    """Attention of one layer."""

    def __init__(self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None,
                 alibi_slopes: list[float] | None = None, sliding_window: int | None = None,
                 kv_cache_dtype: str = "auto", logits_soft_cap: float | None = None,
                 attn_type: str = AttentionType.DECODER, kv_sharing_target_layer_name: str | None = None,
                 **other: Any) -> None:
        found = {"attention of type " + str(getattr(attn_type, "value", attn_type)):
                 attn_type != AttentionType.DECODER,
                 "ALiBi": alibi_slopes is not None,
                 f"layers with a sliding window ({sliding_window})": sliding_window is not None,
                 f"kv_cache_dtype={kv_cache_dtype!r}": kv_cache_dtype != "auto",
                 "a soft cap of logits": bool(logits_soft_cap),
                 "layers that share keys with another": kv_sharing_target_layer_name is not None,
                 "learned sink logits": other.get("sinks") is not None}
        known = {"sinks", "use_alibi_sqrt"}
        found |= {f"{name} of a layer": value is not None for name, value in other.items() if name not in known}
        for what, is_so in found.items():
            if is_so:
                raise ValueError(f"sinkcache.vllm does not serve {what}")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, scale
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        # Set when the model has been measured.
        self.served: Served | None = None
        self.index = 0

    def forward(self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, output: Any,
                output_scale: Any = None, output_block_scale: Any = None) -> Any:
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("sinkcache.vllm does not serve quantized outputs of attention")
        if isinstance(attn_metadata, Measuring):
            attn_metadata.seen[layer.layer_name] = query.clone(), key.clone()
            return output.zero_()
        # A forward without requests: vLLM's warming up.
        if attn_metadata is None or not attn_metadata.seq_ids:
            return output.zero_()
        assert self.served is not None and self.served.kv is not None
        rows = attn_metadata.bounds[-1]
        self.served.kv.step(self.index, query[:rows], key[:rows], value[:rows], seq_ids=attn_metadata.seq_ids,
                            qo_indptr=attn_metadata.bounds, out=output[:rows])
        return output
