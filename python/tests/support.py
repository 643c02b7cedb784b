"""The repository's test vectors, and what the tests share. Needs NumPy alone."""
import json
import pathlib
import unittest

import numpy as np

import sinkcache

ROOT = pathlib.Path(__file__).resolve().parents[2]
TYPES = {"F32": np.float32}
# Largest difference from the vectors relative to the largest value, by the type of the inputs and the storage.
BOUNDS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def to_bf16(x):
    """The bits of bfloat16, rounded to even, as uint16."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class Vector:
    """One file of tests/vectors."""

    def __init__(self, path):
        data = path.read_bytes()
        n = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + n])
        meta = header.pop("__metadata__")
        self.name = path.stem
        self.config, self.events = json.loads(meta["config"]), json.loads(meta["events"])
        self.tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            flat = np.frombuffer(data, TYPES[entry["dtype"]], (end - begin) // 4, 8 + n + begin)
            self.tensors[name] = flat.reshape(entry["shape"])

    def layer(self, applied=False):
        c, t = self.config, self.tensors
        rope = None
        if c["rope"] != "none":
            rope = sinkcache.Rope(theta=c["rope_base"], dim=c["rope_dim"], interleaved=c["rope"] == "interleaved",
                                  scale=c["rope_scale"], inv_freq=t.get("inv_freq"), applied=applied,
                                  mscale=c["rope_mscale"])
        return sinkcache.Layer(
            window_length=c["n_sink"] + c["window"], num_sink_tokens=c["n_sink"], rope=rope,
            alibi_slopes=t.get("alibi"), sm_scale=c["scale"], logits_soft_cap=c["softcap"],
            sink_logits=t.get("sink_logits"), max_pinned=c.get("max_pinned", 0), max_segments=c.get("max_segments", 0))

    def cache(self, applied=False, **settings):
        c = self.config
        settings.setdefault("num_threads", 1)
        return sinkcache.KVCache(1, c["n_q_heads"], c["n_kv_heads"], c["head_dim"], head_dim_vo=c["head_dim_v"],
                                 layers=[self.layer(applied)], max_rewind=c["max_rewind"], **settings)


def vectors():
    folder = ROOT / "tests" / "vectors"
    return [Vector(path) for path in sorted(folder.rglob("*.safetensors"))]


def edit(cache, event, seq_id, start=0):
    what, *numbers = event
    if what == "reset":
        cache.reset(seq_id, start)
    else:
        getattr(cache, what)(*numbers, seq_id)


def random_rows(rng, rows, *heads, dim=64):
    return [rng.standard_normal((rows, n, dim)).astype(np.float32) for n in heads]


class CacheTest(unittest.TestCase):
    def state(self, cache):
        """All that a cache holds. Needs layers in step."""
        return [(cache.info(i), cache.save(i)) for i in range(cache.max_batch_size)]

    def rejects(self, kind, text, cache, call):
        """The call raises `kind` with a text like `text`, and the cache is as before."""
        before = self.state(cache)
        with self.assertRaisesRegex(kind, text):
            call()
        self.assertEqual(self.state(cache), before)

    def close_to(self, got, want, bound, name=""):
        self.assertTrue(np.isfinite(got).all(), name)
        difference = np.abs(got.astype(np.float64) - want).max() / max(np.abs(want).max(), 1e-30)
        self.assertLessEqual(difference, bound, name)
