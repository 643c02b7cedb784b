"""What vLLM's configuration has to be for sinkcache, and what cannot be served with it."""
from __future__ import annotations

from typing import Any

import vllm
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_interface import CircularBufferSpec  # noqa: F401  Missing in versions that cannot be served.

from .vllm import BACKEND

# A logger of vLLM's name space: others are not shown.
logger = init_logger("vllm.sinkcache")
VERSION = "0.32"
WORKER = "sinkcache._vllm_worker.Worker"
STOCK_WORKERS = ("auto", "vllm.v1.worker.cpu_worker.CPUWorker", "vllm.v1.worker.gpu_worker.Worker", WORKER)
# Those that have no keys of their own.
DRAFTS = ("ngram", "ngram_gpu")
# Bytes of vLLM's own pool, which holds nothing: a number that nobody asks for.
POOL_BYTES = (64 << 20) - 1


def install() -> None:
    """Registers the backend, and has it asked about each configuration."""
    if vllm.__version__.split(".")[:2] != VERSION.split("."):
        logger.warning_once("sinkcache.vllm is tested with vLLM %s, and this is %s.", VERSION, vllm.__version__)
    register_backend(AttentionBackendEnum.CUSTOM, BACKEND)
    # The CPU's platform knows one backend and takes no other name.
    register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    platform = type(current_platform)
    stock = platform.check_and_update_config
    if hasattr(stock, "_sinkcache"):
        return

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        stock.__func__(cls, vllm_config)
        if vllm_config.model_config is not None:
            adapt(vllm_config)

    check_and_update_config._sinkcache = True  # type: ignore[attr-defined]
    platform.check_and_update_config = classmethod(check_and_update_config)


def adapt(vllm_config: Any) -> None:
    """Refuses what cannot be served, and sets what the backend needs. A configuration may come more than once."""
    found = refused(vllm_config)
    if found is not None:
        raise ValueError(f"sinkcache.vllm does not serve {found}")
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    if not current_platform.is_cpu():
        vllm_config.attention_config.backend = AttentionBackendEnum.CUSTOM
    vllm_config.parallel_config.worker_cls = WORKER
    if cache.enable_prefix_caching:
        logger.warning_once("sinkcache.vllm: prefix caching is off; a request's tokens are its own.")
        cache.enable_prefix_caching = False
    # A block is a request, and block 0 is nobody's.
    most = scheduler.max_num_seqs + 1
    cache.num_gpu_blocks_override = min(cache.num_gpu_blocks_override or most, most)
    if cache.num_gpu_blocks_override < 2:
        raise ValueError(f"num_gpu_blocks_override is {cache.num_gpu_blocks_override}; for sinkcache.vllm it is at "
                         "least 2")
    if cache.kv_cache_memory_bytes is None:
        cache.kv_cache_memory_bytes = POOL_BYTES


def refused(vllm_config: Any) -> str | None:
    """What of a configuration cannot be served, in words, or None. Layers are looked at when they are made."""
    model, parallel, cache = vllm_config.model_config, vllm_config.parallel_config, vllm_config.cache_config
    if model.runner_type != "generate":
        return f"runner={model.runner_type!r}; only 'generate'"
    if model.is_encoder_decoder:
        return "models with an encoder and cross attention"
    if model.is_multimodal_model:
        return "multimodal models, nor their text alone"
    if model.use_mla:
        return "latent attention (MLA)"
    if model.is_attention_free or model.is_hybrid:
        return "models with states beside attention (Mamba, linear attention)"
    if model.enable_sleep_mode:
        return "enable_sleep_mode: its keys are not in vLLM's memory"
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "decode_context_parallel_size",
                 "prefill_context_parallel_size", "data_parallel_size"):
        if getattr(parallel, name) > 1:
            return f"{name}={getattr(parallel, name)}: one process has all heads, layers and tokens"
    if parallel.enable_dbo or parallel.ubatch_size > 1:
        return "microbatches (enable_dbo, ubatch_size)"
    if parallel.worker_cls not in STOCK_WORKERS:
        return f"worker_cls={parallel.worker_cls!r}: it has a worker of its own"
    if cache.cache_dtype != "auto":
        return f"kv_cache_dtype={cache.cache_dtype!r}: SINKCACHE_VLLM_KV_DTYPE chooses the type"
    if cache.kv_sharing_fast_prefill:
        return "kv_sharing_fast_prefill"
    if cache.kv_offloading_size is not None:
        return "kv_offloading_size: its keys are not in vLLM's memory"
    for name in ("kv_transfer_config", "kv_events_config", "ec_transfer_config"):
        if getattr(vllm_config, name) is not None:
            return f"{name}: its keys are not in vLLM's memory"
    if vllm_config.lora_config is not None:
        return "LoRA: it has not been tested"
    drafts = vllm_config.speculative_config
    if drafts is not None and drafts.method not in DRAFTS:
        return f"speculative method {drafts.method!r}; only {' and '.join(DRAFTS)}"
    return None
