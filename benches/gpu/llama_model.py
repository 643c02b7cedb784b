"""A model of Llama-2's shape with random weights, and decoders with different caches for its attention."""

import dataclasses

import torch
import torch.nn.functional as F

import skc
from contenders.streaming_llm import rotate, tables


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 32
    inner: int = 11008
    vocabulary: int = 32000

    @property
    def dim(self):
        return self.width // self.heads

    @property
    def weights(self):
        layer = (
            self.width * self.dim * (2 * self.heads + 2 * self.kv_heads) + 3 * self.width * self.inner + 2 * self.width
        )
        return self.layers * layer + 2 * self.vocabulary * self.width + self.width


LLAMA_2_7B = Shape()
TINY = Shape(layers=3, width=64, heads=4, kv_heads=2, inner=96, vocabulary=97)


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    qkv: torch.Tensor
    out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class Model:
    """Projections are fused (q, k, v; gate, up) as in inference engines, for all contenders."""

    def __init__(self, shape, device, dtype, seed=0):
        generator = torch.Generator(device).manual_seed(seed)
        self.shape, self.device, self.dtype = shape, device, dtype

        def draw(rows, columns):
            # Scaled so that outputs are as large as inputs, and 32 layers neither vanish nor overflow.
            return torch.empty(rows, columns, device=device, dtype=dtype).normal_(0, columns**-0.5, generator=generator)

        s = shape
        self.table = torch.empty(s.vocabulary, s.width, device=device, dtype=dtype).normal_(generator=generator)
        self.layers = [
            LayerWeights(
                draw((s.heads + 2 * s.kv_heads) * s.dim, s.width),
                draw(s.width, s.width),
                draw(2 * s.inner, s.width),
                draw(s.width, s.inner),
            )
            for _ in range(s.layers)
        ]
        self.head = draw(s.vocabulary, s.width)
        self.ones = torch.ones(s.width, device=device, dtype=dtype)

    def norm(self, x):
        return F.rms_norm(x, (self.shape.width,), self.ones, 1e-5)

    def forward(self, tokens, attention):
        """Logits [vocabulary] after tokens [n]; attention(layer, q [n, heads, dim], k, v) -> [n, heads x dim]."""
        s, x = self.shape, F.embedding(tokens, self.table)
        for layer, w in enumerate(self.layers):
            rows = F.linear(self.norm(x), w.qkv).view(len(tokens), s.heads + 2 * s.kv_heads, s.dim)
            q, k, v = rows.split((s.heads, s.kv_heads, s.kv_heads), 1)
            x = x + F.linear(attention(layer, q, k, v), w.out)
            gate, up = F.linear(self.norm(x), w.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w.down)
        return F.linear(self.norm(x[-1:]), self.head)[0].float()


def sdpa(q, k, v, causal=False):
    """q [n, heads, dim] over k, v [kv_heads, m, dim] -> [n, heads x dim]"""
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], k[None], v[None], is_causal=causal, enable_gqa=q.shape[1] != k.shape[0]
    )
    return out[0].transpose(0, 1).reshape(len(q), -1)


class Decoder:
    """One sequence of a model, with a cache of `cached` tokens, `n_sink` of them sinks."""

    name, starts_full = None, False

    def __init__(self, model, platform, n_sink, cached):
        self.model, self.platform, self.n_sink, self.cached = model, platform, n_sink, cached
        self.cos, self.sin = tables(cached, model.shape.dim, model.dtype, model.device)
        self.prepare()

    def prepare(self):
        pass

    def feed(self, token):
        """Logits after one more token [1]."""
        return self.model.forward(token, self.attention)

    def attention(self, layer, q, k, v):
        raise NotImplementedError

    def fill(self):
        """Fills the cache as in the middle of a long stream, with random contents."""

    def check(self):
        pass

    def close(self):
        pass


class Recompute(Decoder):
    """Without a cache: computes the whole window for every token."""

    name = "recompute"

    def prepare(self):
        self.tokens = torch.zeros(0, dtype=torch.long, device=self.model.device)

    def feed(self, token):
        tokens = torch.cat((self.tokens, token))
        if len(tokens) > self.cached:
            tokens = torch.cat((tokens[: self.n_sink], tokens[self.n_sink + 1 :]))
        self.tokens = tokens
        return self.model.forward(tokens, self.attention)

    def attention(self, layer, q, k, v):
        n = len(q)
        q, k = (rotate(x.transpose(0, 1), self.cos[:n], self.sin[:n]) for x in (q, k))
        return sdpa(q.transpose(0, 1), k, v.transpose(0, 1), causal=True)

    def fill(self):
        self.tokens = torch.randint(0, self.model.shape.vocabulary, (self.cached,), device=self.model.device)


class Streaming(Decoder):
    """StreamingLLM as its authors wrote it: concatenates un-rotated keys, rotates all, evicts by concatenating."""

    name = "StreamingLLM in PyTorch"

    def prepare(self):
        s = self.model.shape
        self.k, self.v = (
            [
                torch.zeros(s.kv_heads, 0, s.dim, device=self.model.device, dtype=self.model.dtype)
                for _ in range(s.layers)
            ]
            for _ in range(2)
        )

    def attention(self, layer, q, k, v):
        k, v = (torch.cat((old[layer], new.transpose(0, 1)), 1) for old, new in ((self.k, k), (self.v, v)))
        n = k.shape[1]
        query = rotate(q.transpose(0, 1), self.cos[n - 1 : n], self.sin[n - 1 : n]).transpose(0, 1)
        out = sdpa(query, rotate(k, self.cos[:n], self.sin[:n]), v)
        if n == self.cached:
            k, v = (torch.cat((x[:, : self.n_sink], x[:, self.n_sink + 1 :]), 1) for x in (k, v))
        self.k[layer], self.v[layer] = k, v
        return out

    def fill(self):
        s = self.model.shape
        for tensors in (self.k, self.v):
            tensors[:] = [
                torch.randn(s.kv_heads, self.cached - 1, s.dim, device=self.model.device, dtype=self.model.dtype)
                for _ in tensors
            ]


class StreamingFixed(Decoder):
    """The same on buffers of fixed size with indices on the device, so that a graph can capture it. It starts full."""

    name, starts_full = "StreamingLLM in PyTorch, fixed buffers", True

    def prepare(self):
        s, device = self.model.shape, self.model.device
        self.window = self.cached - self.n_sink
        self.k, self.v = (
            [
                torch.zeros(s.kv_heads, self.cached, s.dim, device=device, dtype=self.model.dtype)
                for _ in range(s.layers)
            ]
            for _ in range(2)
        )
        # The ring's slot of the next token.
        self.head = torch.zeros(1, dtype=torch.long, device=device)
        self.sinks, self.ring = torch.arange(self.n_sink, device=device), torch.arange(self.window, device=device)

    def adopt(self, other):
        """Copies the state of a `Streaming` that has just become full and has evicted one token."""
        for mine, theirs in ((self.k, other.k), (self.v, other.v)):
            for to, source in zip(mine, theirs):
                to[:, : self.cached - 1] = source
        self.head.fill_(self.window - 1)

    def feed(self, token):
        self.slot = self.head + self.n_sink
        self.head.add_(1).remainder_(self.window)
        positions = torch.cat((self.sinks, self.n_sink + (self.ring - self.head).remainder(self.window)))
        self.rotation = self.cos[positions], self.sin[positions]
        return super().feed(token)

    def attention(self, layer, q, k, v):
        keys, values = self.k[layer], self.v[layer]
        keys.index_copy_(1, self.slot, k.transpose(0, 1))
        values.index_copy_(1, self.slot, v.transpose(0, 1))
        query = rotate(q.transpose(0, 1), self.cos[-1:], self.sin[-1:]).transpose(0, 1)
        return sdpa(query, rotate(keys, *self.rotation), values)

    def fill(self):
        for x in (*self.k, *self.v):
            x.normal_()


class Ordinary(Decoder):
    """An ordinary KV cache of fixed size without eviction; keys are rotated on append. It is timed when full."""

    name = "ordinary cache"

    def prepare(self):
        s = self.model.shape
        self.n = 0
        self.k, self.v = (
            [
                torch.zeros(s.kv_heads, self.cached, s.dim, device=self.model.device, dtype=self.model.dtype)
                for _ in range(s.layers)
            ]
            for _ in range(2)
        )

    def feed(self, token):
        logits = super().feed(token)
        self.n = min(self.n + 1, self.cached - 1)
        return logits

    def attention(self, layer, q, k, v):
        n, (cos, sin) = self.n, (x[self.n : self.n + 1] for x in (self.cos, self.sin))
        self.k[layer][:, n : n + 1] = rotate(k.transpose(0, 1), cos, sin)
        self.v[layer][:, n : n + 1] = v.transpose(0, 1)
        query = rotate(q.transpose(0, 1), cos, sin).transpose(0, 1)
        return sdpa(query, self.k[layer][:, : n + 1], self.v[layer][:, : n + 1])

    def fill(self):
        for x in (*self.k, *self.v):
            x.normal_()
        self.n = self.cached - 1


class Sinkcache(Decoder):
    """This library: one call for each layer."""

    name = "sinkcache"

    def prepare(self):
        s = self.model.shape
        shape = skc.CacheShape(
            n_layers=s.layers,
            n_seqs=1,
            q_heads=s.heads,
            kv_heads=s.kv_heads,
            dim=s.dim,
            dtype=self.model.dtype,
            n_sink=self.n_sink,
            window=self.cached - self.n_sink,
            max_chunk=256,
        )
        self.cache = skc.SinkCache(self.platform, shape)
        self.out = [
            torch.empty(1, s.heads, s.dim, device=self.model.device, dtype=self.model.dtype) for _ in range(s.layers)
        ]
        self.rows, self.calls = [None] * s.layers, [None] * s.layers

    def attention(self, layer, q, k, v):
        q, k, v = (x.contiguous() for x in (q, k, v))
        addresses = (q.data_ptr(), k.data_ptr(), v.data_ptr())
        # PyTorch's allocator returns the same addresses at every step. Otherwise the call is prepared again.
        if self.rows[layer] != addresses:
            self.cache.kept.clear()
            self.rows[layer], self.calls[layer] = addresses, self.cache.step(layer, 1, q, k, v, self.out[layer])
        self.calls[layer]()
        return self.out[layer].view(1, -1)

    def fill(self):
        s = self.model.shape
        k, v = (torch.randn(256, s.kv_heads, s.dim, device=self.model.device, dtype=self.model.dtype) for _ in range(2))
        for layer in range(s.layers):
            append = self.cache.append(layer, 256, k, v)
            for _ in range(self.cached // 256 + 3):
                append()
        self.platform.synchronize()

    def check(self):
        self.platform.synchronize()
        self.cache.check_device()

    def close(self):
        self.cache.close()
