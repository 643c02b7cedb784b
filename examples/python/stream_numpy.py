"""Streams random tokens past a window and checks the last row against attention in NumPy.

    SINKCACHE_LIBRARY=.../libsinkcache.so python3 stream_numpy.py
"""
import hashlib

import numpy as np

from sinkcache_ctypes import Cache, Error, constant, lib

Q_HEADS, KV_HEADS, DIM, SINKS, WINDOW, TOKENS = 8, 2, 64, 4, 252, 3000


def rotate(x, positions, base=10000.0):
    """RoPE in NeoX style: x [n, heads, dim] at positions [n], in float64."""
    angle = positions[:, None] * base ** (-np.arange(0, DIM, 2) / DIM)
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    lo, hi = x[..., : DIM // 2], x[..., DIM // 2 :]
    return np.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], -1)


def reference(q, k, v, held):
    """Attention of the last query over the tokens held, rotated at their ranks among them."""
    positions = np.arange(len(held), dtype=np.float64)
    keys, query = rotate(k[held].astype(np.float64), positions), rotate(q[-1:].astype(np.float64), positions[-1:])[0]
    out = np.empty((Q_HEADS, DIM))
    for h in range(Q_HEADS):
        kv_head = h // (Q_HEADS // KV_HEADS)
        probs = np.exp(keys[:, kv_head] @ query[h] / np.sqrt(DIM))
        out[h] = probs @ v[held, kv_head] / probs.sum()
    return out


def pins_and_ranges(q, k, v, layer):
    """Pins a prompt, drops thoughts, and compares with NumPy."""
    layer = dict(layer, max_pinned=30, max_segments=2)
    with Cache(Q_HEADS, KV_HEADS, DIM, layer, kv_dtype=constant("SKC_DTYPE_F32")) as cache:
        cache.step(0, q[:200], k[:200], v[:200])
        cache.pin(10, 30)
        cache.step(0, q[200:600], k[200:600], v[200:600])
        cache.evict_range(400, 150)
        out, _ = cache.step(0, q[600:650], k[600:650], v[600:650])
        pinned, info = np.arange(10, 40), cache.info()
        # The window had 348 to 599 at the edit; 50 tokens are new.
        window = np.r_[348:400, 550:650]
        held = np.r_[:SINKS, pinned, window]
        print(f"{info.pinned_tokens} pinned, {info.segments} runs of tokens held, room for {info.room} more")
        assert (info.pinned_tokens, info.cached_tokens, info.room) == (30, len(held), WINDOW - len(window))
        assert (info.segments, info.counted_segments) == (4, 2)
        want = reference(q[:650], k[:650], v[:650], held)
        difference = np.abs(out[-1] - want).max() / np.abs(want).max()
        print(f"largest difference from NumPy: {difference:.1e} of the largest value")
        assert difference <= 1e-5
        try:
            cache.pin(500, 1)
        except Error as error:
            print(f"expected error: {error}")
            assert error.status == constant("SKC_STATUS_TOKENS_GONE")
        else:
            raise AssertionError("a token that is gone was pinned")


def main():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((TOKENS, heads, DIM)).astype(np.float32) for heads in (Q_HEADS, KV_HEADS, KV_HEADS))
    layer = dict(n_sink=SINKS, window=WINDOW)
    tag = hashlib.sha256(b"the model's name, its revision, this shard").digest()
    with Cache(Q_HEADS, KV_HEADS, DIM, layer, kv_dtype=constant("SKC_DTYPE_F32")) as cache:
        cache.step(0, q[:1000], k[:1000], v[:1000])
        for i in range(1000, TOKENS - 1):
            cache.step(0, q[i : i + 1], k[i : i + 1], v[i : i + 1])
        # The sequence goes on in this cache, and from its snapshot in another one: with the same bits.
        snapshot = cache.save(host_tag=tag)
        out, _ = cache.step(0, q[-1:], k[-1:], v[-1:])
        with Cache(Q_HEADS, KV_HEADS, DIM, layer, kv_dtype=constant("SKC_DTYPE_F32"), n_seqs=3) as other:
            other.load(snapshot, seq_id=2, host_tag=tag)
            other.copy(other, src_seq_id=2, seq_id=0)
            for seq_id in (2, 0):
                again, _ = other.step(0, q[-1:], k[-1:], v[-1:], seq_ids=[seq_id])
                assert (again == out).all()
        print(f"a snapshot of {len(snapshot)} bytes goes on with the same bits")
        info = cache.info()
        print(f"sinkcache {lib.skc_version().decode()}: {info.length_min} tokens, {info.cached_tokens} cached, "
              f"{info.evicted_tokens} evicted")
        assert info.cached_tokens == SINKS + WINDOW and info.evicted_tokens == TOKENS - SINKS - WINDOW
        want = reference(q, k, v, np.r_[:SINKS, TOKENS - WINDOW : TOKENS])
        difference = np.abs(out[0] - want).max() / np.abs(want).max()
        print(f"largest difference from NumPy: {difference:.1e} of the largest value")
        assert difference <= 1e-5
        try:
            cache.rewind(1000)
        except Error as error:
            print(f"expected error: {error}")
            assert error.status == constant("SKC_STATUS_TOKENS_GONE")
        else:
            raise AssertionError("a rewind of more than max_rewind tokens succeeded")
    pins_and_ranges(q, k, v, layer)


if __name__ == "__main__":
    main()
