"""StreamingLLM's attention in PyTorch (Xiao et al., arXiv 2309.17453): keeps un-rotated keys, and rotates all of them
to their cache positions at every step.

Two versions: with growing tensors as in the authors' code (concatenate, rotate, attend, evict by concatenating), and on
buffers of fixed size with indices on the device, which a graph can capture. One token per step only: each query of a
chunk has a window of its own, for which keys would have to be rotated anew.
"""

import torch
import torch.nn.functional as F

from cases import N_SINK
from contenders.base import Contender
from data import DTYPES, angles


def rotate(x, cos, sin):
    """NeoX-style RoPE in x's own type, as PyTorch models apply it: cos, sin [n, dim]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def tables(n, dim, dtype, device):
    """Cosines and sines [n, dim] of positions below n, with the dim / 2 values repeated."""
    return [torch.cat((x, x), -1).to(dtype) for x in angles(torch.arange(n, device=device), dim)]


class Growing(Contender):
    name, family, modes = "StreamingLLM in PyTorch", "streaming", ("eager",)

    @classmethod
    def supports(cls, case, platform):
        return case.decode and not case.start

    def prepare(self):
        c, d = self.case, self.data
        self.cos, self.sin = tables(c.cached, c.dim, DTYPES[c.dtype], self.platform.torch_device)
        # Without the oldest of the window's tokens: the step appends one.
        k, v = (torch.cat((x[:, :, :N_SINK], x[:, :, N_SINK + 1 :]), 2) for x in d.visible_kv(0, 0))
        self.k, self.v = ([x.clone() for _ in range(d.layers)] for x in (k, v))

    def step(self, layer):
        d = self.data
        k = torch.cat((self.k[layer], d.k[layer].transpose(1, 2)), 2)
        v = torch.cat((self.v[layer], d.v[layer].transpose(1, 2)), 2)
        n = k.shape[2]
        q = rotate(d.q[layer].transpose(1, 2), self.cos[n - 1 : n], self.sin[n - 1 : n])
        out = F.scaled_dot_product_attention(
            q, rotate(k, self.cos[:n], self.sin[:n]), v, enable_gqa=q.shape[1] != k.shape[1]
        )
        self.out[layer] = out.transpose(1, 2)
        keep = n - (self.case.window - 1)
        self.k[layer], self.v[layer] = (torch.cat((x[:, :, :N_SINK], x[:, :, keep:]), 2) for x in (k, v))


class Fixed(Contender):
    name, family, modes = "StreamingLLM in PyTorch, fixed buffers", "streaming", ("graph", "eager")

    @classmethod
    def supports(cls, case, platform):
        return case.decode and not case.start

    def prepare(self):
        c, d = self.case, self.data
        device = self.platform.torch_device
        self.cos, self.sin = tables(c.cached, c.dim, DTYPES[c.dtype], device)
        # The ring starts with its oldest token, the first to be overwritten.
        self.k, self.v = ([x.clone() for _ in range(d.layers)] for x in d.visible_kv(0, 0))
        self.head = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(d.layers)]
        self.sinks = torch.arange(N_SINK, device=device)
        self.ring = torch.arange(c.window, device=device)
        self.out = [self.empty_out() for _ in range(d.layers)]

    def step(self, layer):
        c, d, head = self.case, self.data, self.head[layer]
        k, v = self.k[layer], self.v[layer]
        slot = head + N_SINK
        k.index_copy_(2, slot, d.k[layer].transpose(1, 2))
        v.index_copy_(2, slot, d.v[layer].transpose(1, 2))
        head.add_(1).remainder_(c.window)
        positions = torch.cat((self.sinks, N_SINK + (self.ring - head).remainder(c.window)))
        keys = rotate(k, self.cos[positions], self.sin[positions])
        q = rotate(d.q[layer].transpose(1, 2), self.cos[-1:], self.sin[-1:])
        out = F.scaled_dot_product_attention(q, keys, v, enable_gqa=q.shape[1] != k.shape[1])
        self.out[layer].copy_(out.transpose(1, 2))


CONTENDERS = (Growing, Fixed)
