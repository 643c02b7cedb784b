"""The tokens of a case, and the reference of attention over them, in float64.

Every sequence's stream is a block of random tokens, repeated until the ring has wrapped, then the tokens of the
measured steps, repeated. So the contents of a cache after any number of steps are known without simulating them.
"""

import torch

from cases import N_SINK

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
ROPE_BASE = 10000.0


def angles(positions, dim):
    """Cosines and sines [n, dim / 2] in float64."""
    frequency = ROPE_BASE ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    angle = positions.double()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x, positions):
    """NeoX-style RoPE of x [..., n, dim] at positions [n], in float64."""
    half = x.shape[-1] // 2
    cos, sin = angles(positions, x.shape[-1])
    low, high = x.double()[..., :half], x.double()[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def attention(q, k, v, visible=None):
    """q [b, h, m, d] over k, v [b, g, n, d], h a multiple of g; visible [m, n] or None. In float64."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, 1) for x in (k, v))
    scores = q.double() @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return torch.softmax(scores, -1) @ v


class Data:
    """Random tokens of a case on a platform; each of `layers` layers has rows of its own."""

    def __init__(self, case, platform, layers, seed=1):
        self.case, self.layers, device = case, layers, platform.torch_device
        self.period = 256 if case.cached >= 256 else 16
        dtype, generator = DTYPES[case.dtype], torch.Generator(device).manual_seed(seed)

        def draw(*shape):
            return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

        self.block_k, self.block_v = (draw(case.n_seqs, self.period, case.kv_heads, case.dim) for _ in range(2))
        # One tensor for all layers, so that `refresh` is two calls.
        self.q = draw(layers, case.n_seqs, case.chunk, case.q_heads, case.dim).unbind()
        self.new = [draw(layers, case.n_seqs, case.chunk, case.kv_heads, case.dim) for _ in range(2)]
        self.k, self.v = (x.unbind() for x in self.new)
        # Whole blocks of more tokens than the ring has slots.
        self.blocks = -(-(case.cached + max(case.chunk, self.period)) // self.period) + 1
        self.filled = self.blocks * self.period

    def refresh(self):
        """Overwrites the tokens of the measured steps: a long run would otherwise fill caches with one row."""
        for x in self.new:
            x.normal_()

    def tokens(self, layer, indices, seqs):
        """Un-rotated k, v [len(seqs), kv_heads, len(indices), dim] of tokens by their index in the stream."""
        indices, found = torch.as_tensor(indices, device=self.block_k.device), []
        for block, new in ((self.block_k, self.k[layer]), (self.block_v, self.v[layer])):
            old = block[seqs][:, indices % self.period]
            measured = new[seqs][:, (indices - self.filled).clamp(min=0) % self.case.chunk]
            found.append(torch.where((indices < self.filled)[None, :, None, None], old, measured).transpose(1, 2))
        return found

    def visible_kv(self, layer, passes=1, row=-1, seqs=slice(None)):
        """k, v visible to query `row` of step number `passes`, sinks first: [seqs, kv_heads, cached, dim]."""
        last = self.filled + (passes - 1) * self.case.chunk + row % self.case.chunk
        return self.tokens(layer, [*range(N_SINK), *range(last + 1 - self.case.window, last + 1)], seqs)

    def checked_seqs(self):
        n = self.case.n_seqs
        return sorted({0, n // 2, n - 1})

    def checked_rows(self):
        n = self.case.chunk
        return sorted({0, n // 2, n - 1})

    def sink_reference(self, layer, passes=1):
        """The definition's result for the checked sequences and rows: [seqs, q_heads, rows, dim] in float64."""
        seqs, rows = self.checked_seqs(), []
        positions = torch.arange(self.case.cached, device=self.block_k.device)
        for row in self.checked_rows():
            k, v = self.visible_kv(layer, passes, row, seqs)
            q = self.q[layer][seqs][:, row][:, :, None]
            rows.append(attention(rotate(q, positions[-1:]), rotate(k, positions), v))
        return torch.cat(rows, 2)

    def select_checked(self, out):
        """The checked sequences and rows of an output [n_seqs, chunk, q_heads, dim]."""
        return out[self.checked_seqs()][:, self.checked_rows()].transpose(1, 2)


# Largest ||out - want|| / ||want|| that rounding explains, with operands and probabilities in that type.
TOLERANCE = {"bf16": 2e-2, "f16": 3e-3, "f32": 1e-4}


def error_of(out, want):
    """||out - want|| / ||want||; NaN if any output is not finite."""
    out = out.double()
    if not bool(torch.isfinite(out).all()):
        return float("nan")
    return float((out - want).norm() / want.norm())
