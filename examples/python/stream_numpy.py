"""Streams random tokens past a window through ctypes, and checks the last row against attention written out in NumPy.

    SINKCACHE_LIBRARY=.../libsinkcache.so python3 stream_numpy.py
"""
import numpy as np

from sinkcache_ctypes import Cache, Error, constant, lib

Q_HEADS, KV_HEADS, DIM, SINKS, WINDOW, TOKENS = 8, 2, 64, 4, 252, 3000


def rotate(x, positions, base=10000.0):
    """RoPE, halves: x [n, heads, dim] at positions [n], in float64."""
    angle = positions[:, None] * base ** (-np.arange(0, DIM, 2) / DIM)
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    lo, hi = x[..., : DIM // 2], x[..., DIM // 2 :]
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], -1)


def naive(q, k, v):
    """The last query over sinks and window, keys rotated by their index among the tokens held."""
    held = np.r_[:SINKS, len(k) - WINDOW : len(k)]
    at = np.arange(len(held), dtype=np.float64)
    keys, query = rotate(k[held].astype(np.float64), at), rotate(q[-1:].astype(np.float64), at[-1:])[0]
    out = np.empty((Q_HEADS, DIM))
    for h in range(Q_HEADS):
        group = h // (Q_HEADS // KV_HEADS)
        weights = np.exp(keys[:, group] @ query[h] / np.sqrt(DIM))
        out[h] = weights @ v[held, group] / weights.sum()
    return out


def main():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((TOKENS, heads, DIM)).astype(np.float32) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    layer = dict(n_sink=SINKS, window=WINDOW)
    with Cache(Q_HEADS, KV_HEADS, DIM, layer, kv_dtype=constant("SKC_DTYPE_F32")) as cache:
        cache.step(0, q[:1000], k[:1000], v[:1000])
        for i in range(1000, TOKENS):
            out, _ = cache.step(0, q[i : i + 1], k[i : i + 1], v[i : i + 1])
        info = cache.info()
        print(f"sinkcache {lib.skc_version().decode()}: {info.length_min} tokens, {info.cached_tokens} held, "
              f"{info.evicted_tokens} evicted")
        assert info.cached_tokens == SINKS + WINDOW and info.evicted_tokens == TOKENS - SINKS - WINDOW
        want = naive(q, k, v)
        error = np.abs(out[0] - want).max() / np.abs(want).max()
        print(f"largest difference from NumPy: {error:.1e} of the largest value")
        assert error <= 1e-5
        try:
            cache.rewind(1000)
        except Error as refusal:
            print(f"as it should be: {refusal}")
            assert refusal.status == constant("SKC_STATUS_TOKENS_GONE")
        else:
            raise AssertionError("a rewind beyond what is kept was not refused")


if __name__ == "__main__":
    main()
