"""sinkcache in transformers: `model.generate(..., cache=SinkCache(model, window_length=1024, num_sink_tokens=4))`.

At import the attention function "sinkcache" is registered; `SinkCache(model)` switches the model to it. With any other
cache, and without one, such a model computes what it did before, with PyTorch's attention.
"""
from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ._cache import KVCache, SequenceInfo
from ._probe import MaskLength, Measured, cache_argument, measure
from ._settings import Layer

NAME = "sinkcache"
OLDEST = (5, 16)

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
    raise ImportError(f"sinkcache.transformers needs transformers {OLDEST[0]}.{OLDEST[1]} or later, not "
                      f"{transformers.__version__}")


class _SinkLayer(CacheLayerMixin):
    """What transformers sees of one layer. The tokens are in the library, and edits go to all layers at once."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    supports_early_init = False

    def __init__(self, owner: SinkCache, index: int) -> None:
        super().__init__()
        self._skc_owner, self._skc_index = weakref.ref(owner), index
        self.is_initialized = True

    def _skc_cache(self) -> SinkCache:
        owner = self._skc_owner()
        if owner is None:
            raise RuntimeError("the SinkCache of this layer is gone")
        return owner

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        pass

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._skc_cache()._skc_begin(self._skc_index, key_states, value_states)
        # A tensor object of our own, for the attribute by which the attention function knows whose keys they are.
        key_states = key_states.view(key_states.shape)
        key_states._skc_layer = self
        return key_states, value_states

    def _skc_attend(self, module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any, kwargs: Any) -> Any:
        return self._skc_cache()._skc_step(self._skc_index, q, k, v, mask)

    def get_seq_length(self) -> int:
        return self._skc_cache().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return MaskLength(self.get_seq_length() + query_length), 0

    def get_max_length(self) -> int:
        return -1

    # Its name before transformers 5.20.
    get_max_cache_shape = get_max_length


class SinkCache(Cache):
    """Attention sinks and a rolling window: constant memory and constant time per token for a text of any length.

    window_length    tokens that full-attention layers attend to, the sinks included; sliding layers keep their window
    num_sink_tokens  first tokens of the text that stay
    rope             "cache": sinkcache rotates keys and queries, exactly at any position. "applied": the model does,
                     whose angles are wrong from some millions of tokens on
    max_rewind       most tokens that crop() takes back: drafts of assisted generation
    kv_dtype         that keys and values are stored in, also "q8" and "q4"; None = the model's

    The model is measured, not known by name: two equal tokens go through it, and what each layer hands to its cache
    says how it rotates. A model that cannot be served is refused with a ValueError.
    """

    def __init__(self, model: Any, window_length: int = 1024, num_sink_tokens: int = 4, *, rope: str = "cache",
                 max_batch_size: int | None = None, max_rewind: int = 64, max_chunk: int = 512, kv_dtype: Any = None,
                 num_threads: int | None = None, max_pinned: int = 0, max_segments: int = 0) -> None:
        if rope not in ("cache", "applied"):
            raise ValueError(f"rope is {rope!r}; 'cache' and 'applied' are allowed")
        # A wrong length is refused now, not at the first token.
        if window_length <= num_sink_tokens or num_sink_tokens < 0:
            raise ValueError(f"window_length is {window_length}: it has to exceed num_sink_tokens, which is "
                             f"{num_sink_tokens} and at least 0")
        if model.config._attn_implementation != NAME:
            model.set_attn_implementation(NAME)
        _hook(model)
        measured = measure(model, unrotated=False)
        if rope == "cache":
            # Once more, with the model's own rotation switched off: it has to be gone from every layer.
            for i, layer in enumerate(measure(model, unrotated=True)):
                if layer.rope is not None:
                    raise ValueError(f"{model.config.model_type}: layer {i} rotates its keys outside of its rotary "
                                     "embedding; rope='applied' leaves that to the model")
        self._skc_settings = dict(max_rewind=max_rewind, max_chunk=max_chunk, kv_dtype=kv_dtype,
                                  num_threads=num_threads)
        self._skc_room = max_batch_size
        self._skc_layers = [_layer(layer, window_length, num_sink_tokens, rope, max_pinned, max_segments)
                            for layer in measured]
        self._skc_heads = measured[0].heads
        #: While a forward of this cache runs, the model's rotary embedding is switched off.
        self._skc_unrotated = rope == "cache"
        self._skc_start()

    def _skc_start(self) -> None:
        super().__init__(layers=[_SinkLayer(self, i) for i in range(len(self._skc_layers))])
        self._skc_kv: KVCache | None = None
        # The sequence of each row of the batch, and its tokens at the end of the latest forward.
        self._skc_rows: list[int] = []
        self._skc_lengths: list[int] = []
        # Of all rows, pads included: what transformers counts.
        self._skc_columns = 0
        # The layer that has given its keys and not attended yet; whether a forward has begun and not ended.
        self._skc_pending: int | None = None
        self._skc_open = False

    def __repr__(self) -> str:
        return f"SinkCache({self._skc_kv!r})"

    # A forward

    def _skc_begin(self, index: int, k: Any, v: Any) -> None:
        if self._skc_pending is not None and index > self._skc_pending:
            raise RuntimeError(f"layer {self._skc_pending} gave its keys to the cache and did not attend with "
                               f"sinkcache: the model's attention implementation is not {NAME!r} any more")
        if self._skc_kv is None:
            self._skc_create(k, v)
        if index == 0:
            self._skc_recover()
            if k.shape[0] != len(self._skc_rows):
                raise ValueError(f"a batch of {k.shape[0]}, and the cache has {len(self._skc_rows)} rows")
            self._skc_open = True
        self._skc_pending = index

    def _skc_create(self, k: Any, v: Any) -> None:
        rows, kv_heads, _, dim = k.shape
        capacity = max(rows, self._skc_room or 0)
        self._skc_kv = KVCache(len(self._skc_layers), self._skc_heads, kv_heads, dim, head_dim_vo=v.shape[-1],
                               layers=self._skc_layers, max_batch_size=capacity, dtype=k.dtype, device=k.device,
                               **self._skc_settings)
        self._skc_rows, self._skc_lengths = list(range(rows)), [0] * rows

    def _skc_recover(self) -> None:
        """After a forward that did not reach its end (an exception, Ctrl-C): back to where it began."""
        if not self._skc_open:
            return
        kv = self._skc()
        kv.abort_step()
        longer = [kv.info(row).length_min - length for row, length in zip(self._skc_rows, self._skc_lengths)]
        kv.rewind(longer, self._skc_rows)
        self._skc_open, self._skc_pending = False, None

    def _skc_step(self, index: int, q: Any, k: Any, v: Any, mask: Any) -> Any:
        kv, (rows, heads, tokens, _) = self._skc(), q.shape
        if mask is None:
            seq_ids, counts = self._skc_rows, [tokens] * rows
        else:
            seq_ids, counts = [], []
            for row, pads in zip(self._skc_rows, _left_pads(mask)):
                seq_ids, counts = seq_ids + [-1, row], counts + [pads, tokens - pads]
        bounds = [0]
        for count in counts:
            bounds.append(bounds[-1] + count)
        q, k, v = (_packed(x) for x in (q, k, v))
        out = kv.step(index, q, k, v, seq_ids=seq_ids, qo_indptr=bounds)
        self._skc_pending = None
        if index == len(self._skc_layers) - 1:
            new = [count for seq_id, count in zip(seq_ids, counts) if seq_id >= 0]
            self._skc_lengths = [length + count for length, count in zip(self._skc_lengths, new)]
            self._skc_columns += tokens
            self._skc_open = False
        return out.view(rows, tokens, heads, -1)

    def _skc(self) -> KVCache:
        if self._skc_kv is None:
            raise RuntimeError("the cache is empty: no tokens have gone through the model")
        return self._skc_kv

    # What transformers asks for and changes

    def get_seq_length(self, layer_idx: int = 0, *args: Any) -> int:
        """Columns of the text so far, pads included."""
        return self._skc_columns

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._skc_columns

    def reset(self) -> None:
        if self._skc_kv is not None:
            self._skc_kv.reset()
        self._skc_lengths = [0] * len(self._skc_rows)
        self._skc_columns, self._skc_open, self._skc_pending = 0, False, None

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the latest tokens; a negative number is transformers' older spelling of the same."""
        count = abs(tokens_to_remove)
        if not count or self._skc_kv is None:
            return
        self._skc_recover()
        self._skc_kv.rewind(count, self._skc_rows)
        self._skc_lengths = [length - count for length in self._skc_lengths]
        self._skc_columns -= count

    def activate_past_recording(self) -> None:
        """max_rewind is always there."""

    def batch_select_indices(self, indices: Any) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(len(self._skc_rows)).repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: Any) -> None:
        """Row i becomes a copy of row beam_idx[i]. What is selected once stays where it is."""
        if self._skc_kv is None:
            return
        self._skc_recover()
        chosen = beam_idx.tolist()
        if len(chosen) > self._skc_kv.max_batch_size:
            self._skc_grow(len(chosen))
        wanted = [self._skc_rows[i] for i in chosen]
        free = [i for i in range(self._skc_kv.max_batch_size) if i not in set(wanted)]
        rows: list[int] = []
        copies: list[tuple[int, int]] = []
        for row in wanted:
            if row in rows:
                copies.append((row, free.pop()))
                row = copies[-1][1]
            rows.append(row)
        if copies:
            src, dst = zip(*copies)
            self._skc_kv.fork(src, dst)
        self._skc_lengths = [self._skc_lengths[i] for i in chosen]
        self._skc_rows = rows

    def _skc_grow(self, count: int) -> None:
        """A larger KVCache with the same rows."""
        old = self._skc()
        new = KVCache(**{**old._settings, "max_batch_size": count})
        for row, seq_id in enumerate(self._skc_rows):
            new.copy_from(old, seq_id, row)
        self._skc_kv, self._skc_rows = new, list(range(len(self._skc_rows)))
        old.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> SinkCache:
        """A cache of its own with the same text: a prefix that several prompts share."""
        self._skc_recover()
        other = SinkCache.__new__(SinkCache)
        for name in ("_skc_settings", "_skc_room", "_skc_layers", "_skc_heads", "_skc_unrotated"):
            setattr(other, name, getattr(self, name))
        other._skc_start()
        other._skc_kv = copy.deepcopy(self._skc_kv)
        other._skc_rows, other._skc_lengths = list(self._skc_rows), list(self._skc_lengths)
        other._skc_columns = self._skc_columns
        return other

    # Beyond transformers

    @property
    def kv(self) -> KVCache:
        """The KVCache, for edits such as pin and evict_range; `row` says which of its sequences a row is."""
        self._skc_recover()
        return self._skc()

    def row(self, row: int = 0) -> int:
        """The sequence of the KVCache that a row of the batch is."""
        return self._skc_rows[row]

    def info(self, row: int = 0, layer: int = 0) -> SequenceInfo:
        return self._skc().info(self._skc_rows[row], layer)

    def close(self) -> None:
        if self._skc_kv is not None:
            self._skc_kv.close()


def _layer(measured: Measured, window_length: int, num_sink_tokens: int, rope: str, max_pinned: int,
           max_segments: int) -> Layer:
    sliding = measured.window is not None
    return Layer(
        window_length=measured.window if measured.window is not None else window_length,
        num_sink_tokens=0 if sliding else num_sink_tokens, rope=measured.rope_of(rope == "applied"),
        sm_scale=measured.scaling, logits_soft_cap=measured.softcap, sink_logits=measured.sink_logits,
        # A layer that slides has been trained to forget.
        max_pinned=0 if sliding else max_pinned, max_segments=max_segments)


def _packed(x: Any) -> Any:
    """[rows, tokens, heads, dims] as [rows x tokens, heads, dims]: a view, unless the layout is of another kind."""
    x = x.transpose(1, 2)
    if x.stride(3) != 1 or 0 in x.stride():
        x = x.contiguous()
    return x.reshape(-1, *x.shape[2:])


def _left_pads(mask: Any) -> list[int]:
    """Pads of each row of a mask of the new columns."""
    mask = mask.bool()
    pads = (~mask).sum(-1).tolist()
    if any(not bool(mask[i, count:].all()) for i, count in enumerate(pads)):
        raise ValueError("pads must be on the left of what is passed")
    return [int(count) for count in pads]


# The model's own rotation works in f32 and is wrong by 0.06 rad at position 1,000,000.

_running = threading.local()


def _hook(model: Any) -> None:
    """Hooks by which the model's rotary embeddings rotate by nothing while a SinkCache that rotates is in use."""
    if getattr(model, "_skc_hooked", False):
        return
    model._skc_hooked = True

    def before(module: Any, args: Any, kwargs: Any) -> None:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        _running.unrotated = getattr(cache, "_skc_unrotated", False)

    def after(module: Any, args: Any, output: Any) -> None:
        _running.unrotated = False

    def embedding(module: Any, args: Any, output: Any) -> Any:
        if not getattr(_running, "unrotated", False):
            return None
        if not isinstance(output, tuple) or len(output) != 2:
            raise ValueError(f"{type(module).__name__} gives no pair of cosines and sines; rope='applied' leaves the "
                             "rotation to the model")
        return torch.ones_like(output[0]), torch.zeros_like(output[1])

    model.base_model.register_forward_pre_hook(before, with_kwargs=True)
    model.base_model.register_forward_hook(after, always_call=True)
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            module.register_forward_hook(embedding)


# What transformers calls

def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0,
               scaling: float | None = None, **kwargs: Any) -> tuple[Any, None]:
    layer = getattr(key, "_skc_layer", None)
    if layer is not None:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"a mask of {attention_mask.ndim} dimensions; sinkcache takes one of rows and columns")
        return layer._skc_attend(module, query, key, value, attention_mask, scaling, kwargs), None
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("without a SinkCache, a model with learned sinks needs another attention "
                                  "implementation: model.set_attn_implementation('eager')")
    output: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout,
                                                      scaling=scaling, **kwargs)
    return output


def _mask(batch_size: int, q_length: int, kv_length: int, *args: Any, attention_mask: Any = None,
          **kwargs: Any) -> Any:
    """For a SinkCache the mask of the new columns, or None where there are no pads."""
    if not isinstance(kv_length, MaskLength):
        return sdpa_mask(batch_size, q_length, kv_length, *args, attention_mask=attention_mask, **kwargs)
    if attention_mask is None:
        return None
    new = attention_mask[:, -q_length:]
    return None if bool(new.all()) else new


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@torch.no_grad()
def stream(model: Any, input_ids: Any, cache: SinkCache, *, sample: Callable[[Any], int] | None = None,
           chunk: int = 512) -> Iterator[int]:
    """Feeds a prompt, [1, tokens], and yields one token after the other for ever. Memory and time per token do not
    grow, as they do in generate(), which keeps the whole text. sample(logits [vocabulary]) chooses a token; without it
    the most likely one is taken."""
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or not input_ids.shape[1]:
        raise ValueError(f"input_ids has the shape {list(input_ids.shape)}; [1, tokens] is allowed")
    name = cache_argument(model)
    while True:
        for piece in input_ids.split(chunk, 1):
            logits = model(input_ids=piece, use_cache=True, logits_to_keep=1, **{name: cache}).logits[0, -1]
        token = int(logits.argmax()) if sample is None else int(sample(logits))
        yield token
        input_ids = torch.tensor([[token]], device=input_ids.device)
