"""The way of the SinkCache that transformers had before version 5, in PyTorch: keys are held at their places in the
cache, and when a token goes, every key of the window is turned back by one place, in the model's type. It takes one
token at a time once it is full. Written for these comparisons from the method; not their code."""
import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
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
            if key_states.shape[-2] != 1:
                raise ValueError(f"{key_states.shape[-2]} tokens for a cache that is full: one at a time is allowed")
            cos, sin = (x.to(key_states.dtype) for x in self.back)
            kept = self.keys[:, :, self.sinks + 1:]
            low, high = kept.chunk(2, -1)
            kept = torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
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
        super().__init__(layers=[_Layer(num_sink_tokens, window_length - num_sink_tokens, back)
                                 for _ in range(model.config.num_hidden_layers)])
