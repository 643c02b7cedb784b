"""Wrong arguments: the text names the value and what is allowed, and nothing has changed."""
import unittest

import numpy as np

import sinkcache
from sinkcache import InvalidArgumentError, InvalidConfigError, KVCache, Layer, OutOfRangeError, Rope
from support import CacheTest, random_rows


class Calls(CacheTest):
    def setUp(self):
        self.cache = KVCache(2, 8, 2, 64, window_length=32, max_batch_size=3, num_threads=1)
        self.addCleanup(self.cache.close)
        rng = np.random.default_rng(0)
        self.q, self.k, self.v = random_rows(rng, 6, 8, 2, 2)
        for layer in range(2):
            self.cache.step(layer, self.q, self.k, self.v, seq_ids=0)

    def step(self, layer=0, **changes):
        arguments = {"q": self.q, "k": self.k, "v": self.v, "seq_ids": 0, **changes}
        return self.cache.step(layer, **arguments)

    def refuse(self, kind, text, call):
        self.rejects(kind, text, self.cache, call)

    def test_tensors(self):
        q, k = self.q, self.k
        read_only = np.zeros((6, 8, 64), np.float32)
        read_only.flags.writeable = False
        for text, changes in (
            (r"q has the shape \[6, 2, 64\]; \[rows, 8, 64\] is allowed", {"q": k}),
            (r"k has the shape \[5, 2, 64\]; \[6, 2, 64\] is allowed", {"k": k[:5]}),
            (r"v has the shape \[6, 64\]", {"v": k[:, 0]}),
            ("q is of type float64; this cache's is float32", {"q": q.astype(np.float64)}),
            ("k is of type float16", {"k": k.astype(np.float16)}),
            ("q has bytes in another order", {"q": q.astype(">f4")}),
            ("v is of type int32", {"v": k.astype(np.int32)}),
            ("q has a stride of 2 between dims", {"q": np.zeros((6, 8, 128), np.float32)[..., ::2]}),
            ("q has a stride of -1 between dims", {"q": q[..., ::-1]}),
            (r"k has rows that are one and the same in memory \(stride 0\)", {"k": np.broadcast_to(k[:1], k.shape)}),
            ("k has heads that are one and the same", {"k": np.broadcast_to(k[:, :1], k.shape)}),
            (r"out has the shape \[6, 8, 32\]", {"out": np.zeros((6, 8, 32), np.float32)}),
            ("out is of type float16", {"out": np.zeros((6, 8, 64), np.float16)}),
            ("out is read-only", {"out": read_only}),
            (r"lse has the shape \[6, 2\]; \[6, 8\] is allowed", {"lse": np.zeros((6, 2), np.float32)}),
            ("lse is of type float64", {"lse": np.zeros((6, 8))}),
        ):
            with self.subTest(text):
                self.refuse(InvalidArgumentError, text, lambda: self.step(**changes))
        for wrong in (None, [[1.0]], "q", 3):
            self.refuse(TypeError, "q must be an array of NumPy, PyTorch", lambda: self.step(q=wrong))

    def test_numbers_of_numpy(self):
        self.cache.fork(np.int64(0), np.int64(1))
        self.assertEqual(self.cache.info(np.array(1)), self.cache.info(0))
        self.refuse(TypeError, "layer must be an integer", lambda: self.step(layer=np.array([0, 1])))
        self.refuse(InvalidArgumentError, "layer is 4294967295", lambda: self.step(layer=np.uint32(2**32 - 1)))

    def test_strides_in_fractions_of_elements(self):
        records = np.zeros(6, np.dtype([("x", np.float32, (2, 64)), ("odd", np.uint8, (2,))]))
        self.refuse(InvalidArgumentError, "no multiples of 4", lambda: self.step(k=records["x"]))

    def test_outputs_that_overlap_themselves(self):
        out = np.lib.stride_tricks.as_strided(np.zeros(6 * 8 * 64, np.float32), (6, 8, 64), (4 * 64, 4 * 64, 4))
        self.refuse(InvalidArgumentError, "overlap", lambda: self.step(out=out))

    def test_misaligned(self):
        shifted = np.zeros(6 * 2 * 64 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(6, 2, 64)
        self.refuse(InvalidArgumentError, "align", lambda: self.step(k=shifted))

    def test_batches(self):
        for kind, text, changes in (
            (InvalidArgumentError, "seq_ids is needed: the cache has 3 sequences", {"seq_ids": None}),
            (InvalidArgumentError, "qo_indptr is needed: there are 6 rows of 2 sequences", {"seq_ids": [0, 1]}),
            (InvalidArgumentError, "qo_indptr is needed: there are 6 rows of 0 sequences", {"seq_ids": []}),
            (InvalidArgumentError, "begins with 1", {"seq_ids": [0], "qo_indptr": [1, 6]}),
            (InvalidArgumentError, "begins with nothing", {"seq_ids": [], "qo_indptr": []}),
            (InvalidArgumentError, "ends with 5; it has to end with the number of rows, 6",
             {"seq_ids": [0], "qo_indptr": [0, 5]}),
            (InvalidArgumentError, "decreases", {"seq_ids": [0, 1], "qo_indptr": [0, 7, 6]}),
            (InvalidArgumentError, "qo_indptr has 2 values for 2 sequences", {"seq_ids": [0, 1], "qo_indptr": [0, 6]}),
            (OutOfRangeError, "3", {"seq_ids": 3}),
            (OutOfRangeError, "-2", {"seq_ids": -2}),
            (InvalidArgumentError, "seq_ids has 4294967296", {"seq_ids": 2**32}),
            (InvalidArgumentError, "sequence", {"seq_ids": [1, 1], "qo_indptr": [0, 3, 6]}),
            (TypeError, "seq_ids must be integers", {"seq_ids": 0.0}),
            (TypeError, "seq_ids must be integers", {"seq_ids": np.zeros(1)}),
            (TypeError, "seq_ids must be integers", {"seq_ids": "0"}),
            (TypeError, "qo_indptr must be integers", {"qo_indptr": [0, 6.0]}),
            (OutOfRangeError, "layer", {"layer": 2}),
            (InvalidConfigError, "layer is -1", {"layer": -1}),
            (InvalidArgumentError, "layer is 4294967295", {"layer": 2**32 - 1}),
            (TypeError, "layer must be an integer", {"layer": 0.5}),
        ):
            with self.subTest(changes):
                self.refuse(kind, text, lambda: self.step(**changes))

    def test_edits(self):
        cache = self.cache
        for kind, text, call in (
            (OutOfRangeError, r"num_tokens\[0\] is 7: sequence 0 holds 6", lambda: cache.rewind(7, 0)),
            (InvalidArgumentError, "num_tokens has 2 values for 1 sequences", lambda: cache.evict([1, 2], [0])),
            (InvalidArgumentError, "num_tokens has 2147483648", lambda: cache.evict(2**31, 0)),
            (InvalidArgumentError, "-1", lambda: cache.evict(-1, 0)),
            (TypeError, "num_tokens must be integers", lambda: cache.evict(1.0, 0)),
            (InvalidArgumentError, "seq_ids is needed", lambda: cache.evict(1)),
            (OutOfRangeError, "3", lambda: cache.reset(3)),
            (InvalidArgumentError, "start_positions has -1; 0 to 18446744073709551615", lambda: cache.reset(0, -1)),
            (InvalidArgumentError, "start_positions has 18446744073709551616", lambda: cache.reset(0, 2**64)),
            (InvalidArgumentError, "first has -1", lambda: cache.evict_range(-1, 1, 0)),
            (sinkcache.NoRoomError, "max_pinned", lambda: cache.pin(4, 1, 0)),
            (InvalidArgumentError, "src_seq_ids has 2 values for 1", lambda: cache.fork([0, 1], 2)),
            (InvalidArgumentError, "0", lambda: cache.fork(0, 0)),
            (OutOfRangeError, "9", lambda: cache.fork(0, 9)),
            (OutOfRangeError, "5", lambda: cache.save(5)),
            (InvalidArgumentError, "seq_id has 4294967296", lambda: cache.save(2**32)),
            (OutOfRangeError, "-3", lambda: cache.info(-3)),
            (OutOfRangeError, "layer", lambda: cache.info(0, 2)),
            (OutOfRangeError, "8", lambda: cache.abort_step(8)),
            (InvalidArgumentError, "", lambda: cache.note_replay(1, 0)),
        ):
            with self.subTest(text):
                self.refuse(kind, text, call)

    def test_a_stream_on_a_cpu_cache(self):
        self.cache.stream = 1
        with self.assertRaisesRegex(InvalidArgumentError, "stream"):
            self.step()
        self.cache.stream = None
        self.assertEqual(self.cache.info(0).length_max, 6)

    def test_no_rows(self):
        empty = [np.zeros((0, heads, 64), np.float32) for heads in (8, 2, 2)]
        before = self.state(self.cache)
        self.assertEqual(self.cache.step(0, *empty, seq_ids=[], qo_indptr=[0]).shape, (0, 8, 64))
        self.assertEqual(self.cache.step(0, *empty, seq_ids=[0, 1], qo_indptr=[0, 0, 0]).shape, (0, 8, 64))
        self.assertEqual(self.state(self.cache), before)


class Settings(unittest.TestCase):
    def test_settings(self):
        for kind, text, changes in (
            (InvalidConfigError, "num_qo_heads is 7; it has to be a multiple of num_kv_heads, which is 2",
             {"num_qo_heads": 7}),
            (InvalidConfigError, "num_kv_heads", {"num_kv_heads": 0}),
            (InvalidConfigError, "head_dim", {"head_dim": 60}),
            (InvalidConfigError, "head_dim_vo", {"head_dim_vo": 1000}),
            (InvalidConfigError, "num_layers is -1; 0 to 4294967295", {"num_layers": -1}),
            (InvalidConfigError, "num_layers", {"num_layers": 0}),
            (InvalidConfigError, "max_batch_size is 4294967297", {"max_batch_size": 2**32 + 1}),
            (InvalidConfigError, "max_batch_size", {"max_batch_size": 0}),
            (TypeError, "head_dim must be an integer", {"head_dim": 64.0}),
            (InvalidConfigError, "window_length is 4: it has to exceed num_sink_tokens, which is 4",
             {"window_length": 4}),
            (InvalidConfigError, "num_sink_tokens is -1", {"num_sink_tokens": -1}),
            (InvalidConfigError, "dtype is 'float64'; allowed are float32, float16, bfloat16", {"dtype": "float64"}),
            (InvalidConfigError, "kv_dtype is 'int8'", {"kv_dtype": "int8"}),
            (InvalidConfigError, "out_dtype is 'q8'", {"out_dtype": "q8"}),
            (InvalidConfigError, "device is 'mps'; allowed are 'cpu', 'cuda'", {"device": "mps"}),
            (InvalidConfigError, "device is 'cuda:x'", {"device": "cuda:x"}),
            (InvalidConfigError, "num_threads", {"num_threads": 0}),
            (InvalidConfigError, "rope.dim is 0", {"rope": Rope(dim=0)}),
            (InvalidConfigError, "rope.dim", {"rope": Rope(dim=63)}),
            (InvalidConfigError, "rope.theta", {"rope": Rope(theta=-1.0)}),
            (InvalidConfigError, "inv_freq", {"rope": Rope(inv_freq=[1.0])}),
            (InvalidConfigError, "rope.inv_freq is empty", {"rope": Rope(inv_freq=[])}),
            (InvalidConfigError, "rope.inv_freq has 2 dimensions", {"rope": Rope(inv_freq=np.zeros((2, 16)))}),
            (TypeError, "rope.inv_freq must be a sequence of numbers", {"rope": Rope(inv_freq=["a"])}),
            (TypeError, "rope must be a Rope or None", {"rope": "neox"}),
            (TypeError, "rope.applied must be True or False", {"rope": Rope(applied=np.zeros(3))}),
            (TypeError, "rope.interleaved must be True or False", {"rope": Rope(interleaved="no")}),
            (TypeError, "in_step must be True or False", {"in_step": 2}),
            (TypeError, "log must be a function of a level and a text, not 3", {"log": 3}),
            (InvalidConfigError, "alibi_slopes are allowed only with rope=None", {"alibi_slopes": [1.0] * 8}),
            (InvalidConfigError, "alibi_slopes", {"alibi_slopes": [1.0] * 7, "rope": None}),
            (InvalidConfigError, "sink_logits", {"sink_logits": [0.0] * 3}),
            (InvalidConfigError, "sm_scale is 0", {"sm_scale": 0}),
            (InvalidConfigError, "logits_soft_cap", {"logits_soft_cap": -1}),
            (InvalidConfigError, "max_segments", {"max_segments": 1025}),
            (InvalidConfigError, "window_length and layers|window_length are|window_length", {
                "window_length": 64, "layers": [Layer()]}),
            (InvalidConfigError, "layers has 2 elements, and num_layers is 1", {"layers": [Layer()] * 2}),
            (TypeError, "layers must be of type Layer", {"layers": [{}]}),
        ):
            arguments = {"num_layers": 1, "num_qo_heads": 8, "num_kv_heads": 2, "head_dim": 64, **changes}
            with self.subTest(text), self.assertRaisesRegex(kind, text):
                KVCache(**arguments)
        with self.assertRaises(TypeError):
            KVCache(1, 8, 2, 64, windw_length=3)

    def test_no_gpu(self):
        if sinkcache.capabilities().backends & 1 << 2:
            self.skipTest("skipped: there is a GPU, or a stand-in")
        with self.assertRaises(sinkcache.BackendUnavailableError) as caught:
            KVCache(1, 8, 2, 64, device="cuda")
        self.assertEqual(caught.exception.status, sinkcache.Status.BACKEND_UNAVAILABLE)


if __name__ == "__main__":
    unittest.main()
