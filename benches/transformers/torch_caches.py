"""Attention sinks in PyTorch, to compare with. Written for these comparisons from the methods; nobody's code.

OldSinkCache   the way of the SinkCache that transformers had before version 5: keys are held at their places in the
               cache, and when a token goes, every key of the window is turned back by one place, in the model's type
RingSinkCache  the fastest that could be thought of: keys stay where and as they are, a new one takes the slot of the
               one that goes (attention does not mind the order), and only the sinks are turned, from their positions
               by the number of tokens that are gone

Both take one token at a time once they are full.
"""
import torch
from transformers.cache_utils import Cache, CacheLayerMixin


def _one_at_a_time(key_states):
    if key_states.shape[-2] != 1:
        raise ValueError(f"{key_states.shape[-2]} tokens for a cache that is full: one at a time is allowed")


def _turn(x, cos, sin):
    low, high = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


class _OldLayer(CacheLayerMixin):
    is_sliding = False
    is_croppable = False

    def __init__(self, sinks, window, back):
        super().__init__()
        self.sinks, self.length, self.back = sinks, sinks + window, back
        self.is_initialized = True
        self.keys = self.values = None

    def lazy_initialization(self, key_states, value_states):
        pass

    def held(self):
        return 0 if self.keys is None else self.keys.shape[-2]

    def update(self, key_states, value_states, *args, **kwargs):
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        elif self.held() + key_states.shape[-2] <= self.length:
            self.keys = torch.cat((self.keys, key_states), -2)
            self.values = torch.cat((self.values, value_states), -2)
        else:
            _one_at_a_time(key_states)
            kept = _turn(self.keys[:, :, self.sinks + 1:], *self.back)
            self.keys = torch.cat((self.keys[:, :, :self.sinks], kept, key_states), -2)
            self.values = torch.cat((self.values[:, :, :self.sinks], self.values[:, :, self.sinks + 1:],
                                     value_states), -2)
        return self.keys, self.values

    def get_seq_length(self):
        """What transformers takes for the new token's position: its place in the cache."""
        return min(self.held(), self.length - 1)

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0

    def get_max_length(self):
        return -1

    # Its name before transformers 5.20.
    get_max_cache_shape = get_max_length


class OldSinkCache(Cache):
    def __init__(self, model, window_length, num_sink_tokens=4):
        # By minus one place.
        angle = -model.base_model.rotary_emb.inv_freq.double()
        back = angle.cos(), angle.sin()
        super().__init__(layers=[_OldLayer(num_sink_tokens, window_length - num_sink_tokens, back)
                                 for _ in range(model.config.num_hidden_layers)])


class _RingLayer(CacheLayerMixin):
    is_sliding = False
    is_croppable = False

    def __init__(self, sinks, window, frequencies):
        super().__init__()
        self.sinks, self.length, self.frequencies, self.seen = sinks, sinks + window, frequencies, 0
        self.is_initialized = True
        self.keys = self.values = self.first = None

    def lazy_initialization(self, key_states, value_states):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        new = key_states.shape[-2]
        if self.keys is None:
            shape = (*key_states.shape[:2], self.length, key_states.shape[-1])
            self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
        if self.seen + new <= self.length:
            self.keys[:, :, self.seen:self.seen + new] = key_states
            self.values[:, :, self.seen:self.seen + new] = value_states
            self.seen += new
            return self.keys[:, :, :self.seen], self.values[:, :, :self.seen]
        _one_at_a_time(key_states)
        if self.first is None:
            self.first = self.keys[:, :, :self.sinks].clone()
        slot = self.sinks + (self.seen - self.sinks) % (self.length - self.sinks)
        self.keys[:, :, slot], self.values[:, :, slot] = key_states[:, :, 0], value_states[:, :, 0]
        self.seen += 1
        angle = (self.seen - self.length) * self.frequencies
        self.keys[:, :, :self.sinks] = _turn(self.first, angle.cos(), angle.sin())
        return self.keys, self.values

    def get_seq_length(self):
        return self.seen

    def get_mask_sizes(self, query_length):
        return min(self.seen + query_length, self.length), 0

    def get_max_length(self):
        return -1

    get_max_cache_shape = get_max_length


class RingSinkCache(Cache):
    def __init__(self, model, window_length, num_sink_tokens=4):
        frequencies = model.base_model.rotary_emb.inv_freq.double()
        super().__init__(layers=[_RingLayer(num_sink_tokens, window_length - num_sink_tokens, frequencies)
                                 for _ in range(model.config.num_hidden_layers)])
