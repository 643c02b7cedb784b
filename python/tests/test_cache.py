"""Edits, snapshots, state, lifetime and threads."""
import copy
import gc
import pickle
import threading
import unittest

import numpy as np

import sinkcache
from sinkcache import KVCache, Layer, Rope, Status
from support import CacheTest, random_rows


class Edits(CacheTest):
    def setUp(self):
        self.rng = np.random.default_rng(0)
        self.cache = KVCache(2, 8, 2, 64, window_length=32, max_batch_size=4, max_pinned=16, max_segments=4,
                             max_rewind=16, num_threads=1)
        self.addCleanup(self.cache.close)

    def feed(self, rows, seq_id=0, cache=None, rng=None):
        """A step in both layers; returns the output of the last."""
        q, k, v = random_rows(rng or self.rng, rows, 8, 2, 2)
        for layer in range(2):
            out = (cache or self.cache).step(layer, q, k, v, seq_ids=seq_id)
        return out

    def lengths(self):
        return [self.cache.info(i).length_min for i in range(4)]

    def test_counts_of_several_sequences_in_one_call(self):
        for seq_id in range(4):
            self.feed(20, seq_id)
        self.cache.rewind([1, 2], [0, 3])
        self.assertEqual(self.lengths(), [19, 20, 20, 18])
        self.cache.rewind(5, np.array([1, 2]))
        self.assertEqual(self.lengths(), [19, 15, 15, 18])
        self.cache.evict(np.array([3, 4]), (0, sinkcache.PADDING))
        self.assertEqual([self.cache.info(i).cached_tokens for i in range(4)], [16, 15, 15, 18])
        self.cache.reset([1, 3], [7, 2**64 - 1])
        self.assertEqual(self.lengths(), [19, 0, 15, 0])
        self.assertEqual([self.cache.info(i).start_position for i in range(4)], [0, 7, 0, 2**64 - 1])
        self.cache.reset()
        self.assertEqual(self.lengths(), [0] * 4)

    def test_pins_and_ranges(self):
        self.feed(30)
        self.cache.pin(6, 8, 0)
        self.feed(40)
        self.cache.evict_range([50], [5], [0])
        info = self.cache.info(0)
        # The window has had 28 tokens, 42 to 69, of which 5 are gone.
        self.assertEqual((info.pinned_tokens, info.cached_tokens, info.evicted_tokens), (8, 35, 35))
        # Sinks, pins, 42 to 49, 55 to 69.
        self.assertEqual((info.segments, info.counted_segments), (4, 2))
        self.rejects(sinkcache.TokensGoneError, "TOKENS_GONE", self.cache, lambda: self.cache.pin(20, 2, 0))
        self.rejects(sinkcache.NoRoomError, "NO_ROOM", self.cache, lambda: self.cache.pin(56, 9, 0))
        self.rejects(sinkcache.OutOfRangeError, "sink", self.cache, lambda: self.cache.evict_range(3, 2, 0))
        self.rejects(sinkcache.OutOfRangeError, "70", self.cache, lambda: self.cache.evict_range(2**64 - 1, 5, 0))

    def test_fork_goes_on_by_itself(self):
        self.feed(50)
        self.cache.fork(0, [1, 2])
        self.cache.fork([0], 3)
        self.assertEqual(self.lengths(), [50] * 4)
        want = self.feed(3, 0, rng=np.random.default_rng(5))
        self.assertEqual(self.feed(3, 2, rng=np.random.default_rng(5)).tobytes(), want.tobytes())
        self.assertEqual(self.lengths(), [53, 50, 53, 50])

    def test_abort_of_a_step(self):
        self.feed(40)
        q, k, v = random_rows(self.rng, 3, 8, 2, 2)
        self.cache.step(0, q, k, v, seq_ids=0)
        # The next pass is not taken for a part of this one, unless the caller wants layers in any order.
        with self.assertRaisesRegex(sinkcache.LayersOutOfStepError, "in layer 1"):
            self.cache.step(0, q, k, v, seq_ids=0)
        with self.assertRaisesRegex(sinkcache.LayersOutOfStepError, "in layer 1"):
            self.cache.append(0, k, v, seq_ids=0)
        with sinkcache.KVCache(2, 8, 2, 64, window_length=20, in_step=False) as cache:
            for layer in (0, 0, 1, 0):
                cache.step(layer, q, k, v)
            self.assertEqual((cache.info(0).length_min, cache.info(0).length_max), (3, 9))
        with self.assertRaises(sinkcache.LayersOutOfStepError) as caught:
            self.cache.evict(1, 0)
        self.assertEqual(caught.exception.status, Status.LAYERS_OUT_OF_STEP)
        self.assertEqual((self.cache.info(0).length_min, self.cache.info(0).length_max), (40, 43))
        self.cache.abort_step([])
        self.assertEqual(self.cache.info(0).length_max, 43)
        self.cache.abort_step()
        self.assertEqual((self.cache.info(0).length_min, self.cache.info(0).length_max), (40, 40))
        self.cache.step(0, q, k, v, seq_ids=0)
        self.cache.abort_step(0)
        self.assertEqual(self.cache.info(0).length_max, 40)

    def test_snapshots(self):
        self.feed(70)
        tag = bytes(range(32))
        snapshot = self.cache.save(0, tag=tag)
        self.assertIsInstance(snapshot, bytes)
        want = self.feed(2, rng=np.random.default_rng(5))
        settings = dict(window_length=32, max_pinned=16, max_segments=4, num_threads=1)
        with KVCache(2, 8, 2, 64, **settings) as other:
            for data in (snapshot, bytearray(snapshot), memoryview(snapshot), np.frombuffer(snapshot, np.uint8)):
                other.load(data, tag=tag)
                self.assertEqual(self.feed(2, 0, other, np.random.default_rng(5)).tobytes(), want.tobytes())
            for wrong in (snapshot[:-1], b"", snapshot[:50] + b"\x01" + snapshot[51:]):
                self.rejects(sinkcache.InvalidSnapshotError, "SNAPSHOT", other, lambda: other.load(wrong, tag=tag))
            self.rejects(sinkcache.InvalidSnapshotError, r"\btag\b", other, lambda: other.load(snapshot))
            self.rejects(sinkcache.InvalidArgumentError, "tag has 3 bytes", other,
                         lambda: other.load(snapshot, tag=b"abc"))
        self.rejects(sinkcache.InvalidArgumentError, "tag has 0 bytes", self.cache, lambda: self.cache.save(0, tag=b""))

    def test_copies_between_caches(self):
        self.feed(70, 1)
        with KVCache(2, 8, 2, 64, window_length=32, max_pinned=16, max_segments=4, num_threads=1) as other:
            other.copy_from(self.cache, 1)
            self.assertEqual(other.save(), self.cache.save(1))
        with KVCache(2, 8, 2, 64, window_length=33, num_threads=1) as other:
            self.rejects(sinkcache.InvalidArgumentError, "window", other, lambda: other.copy_from(self.cache, 1))
        with self.assertRaises(TypeError):
            self.cache.copy_from("a cache")

    def test_deepcopy(self):
        self.feed(70, 1)
        self.cache.reset(2, 99)
        twin = copy.deepcopy(self.cache)
        self.addCleanup(twin.close)
        self.assertEqual(self.state(twin), self.state(self.cache))
        self.feed(1, 1)
        self.assertEqual((twin.info(1).length_min, self.cache.info(1).length_min), (70, 71))
        q, k, v = random_rows(self.rng, 1, 8, 2, 2)
        self.cache.step(0, q, k, v, seq_ids=1)
        with self.assertRaises(sinkcache.LayersOutOfStepError):
            copy.deepcopy(self.cache)
        for other_way in (copy.copy, pickle.dumps):
            with self.assertRaises(TypeError):
                other_way(self.cache)

    def test_a_stream_past_the_window_is_attention_over_sinks_and_window(self):
        q, k, v = random_rows(self.rng, 100, 8, 2, 2)
        with KVCache(1, 8, 2, 64, layers=[Layer(window_length=20, num_sink_tokens=4, rope=None)]) as cache:
            out, lse = cache.step(0, q, k, v, return_lse=True)
            self.assertEqual(cache.info().cached_tokens, 20)
        held = np.r_[:4, 84:100]
        for head in range(8):
            scores = k[held, head // 4].astype(np.float64) @ q[-1, head] / 8
            weights = np.exp(scores)
            self.close_to(out[-1, head], weights @ v[held, head // 4] / weights.sum(), 1e-5)
            self.assertAlmostEqual(lse[-1, head], np.log(weights.sum()), 5)


class Settings(CacheTest):
    def test_layers_differ(self):
        layers = [Layer(window_length=16, num_sink_tokens=0), Layer(window_length=64, rope=Rope(theta=1e6))]
        rng = np.random.default_rng(0)
        with KVCache(2, 4, 4, 32, layers=layers) as cache:
            q, k, v = random_rows(rng, 100, 4, 4, 4, dim=32)
            for layer in range(2):
                cache.step(layer, q, k, v)
            self.assertEqual([cache.info(layer=layer).cached_tokens for layer in range(2)], [16, 64])
            self.assertEqual(cache.layers, tuple(layers))
            self.assertIn("0 + 16 or 4 + 60 tokens", repr(cache))

    def test_types_by_any_name(self):
        for dtype in ("float16", np.float16, np.dtype(np.float16)):
            with KVCache(1, 2, 2, 32, dtype=dtype, kv_dtype="q8", v_dtype="q4") as cache:
                self.assertEqual((cache.dtype, cache.out_dtype, cache.k_dtype, cache.v_dtype),
                                 ("float16", "float16", "q8", "q4"))

    def test_an_output_of_another_type(self):
        rng = np.random.default_rng(0)
        q, k, v = random_rows(rng, 5, 2, 2, 2)
        with KVCache(1, 2, 2, 64, out_dtype="float16") as narrow, KVCache(1, 2, 2, 64) as wide:
            out = narrow.step(0, q, k, v)
            self.assertEqual(out.dtype, np.float16)
            self.close_to(out, wide.step(0, q, k, v), 1e-3)

    def test_dims_of_v_differ(self):
        rng = np.random.default_rng(0)
        q, k = random_rows(rng, 5, 2, 2)
        v, = random_rows(rng, 5, 2, dim=32)
        with KVCache(1, 2, 2, 64, head_dim_vo=32) as cache:
            self.assertEqual(cache.step(0, q, k, v).shape, (5, 2, 32))

    def test_what_a_cache_says_of_itself(self):
        with KVCache(3, 8, 2, 64, window_length=32, max_batch_size=6, kv_dtype="float16") as cache:
            q, k, v = random_rows(np.random.default_rng(0), 50, 8, 2, 2)
            cache.step(0, q, k, v, seq_ids=1)
            text = repr(cache)
            for part in ("3 layers", "8 / 2 heads x 64", "4 + 28 tokens in float16 on cpu", "MiB",
                         "0: 0 of 0 tokens held", "1: 32 of 50 tokens held", "2 more sequences"):
                self.assertIn(part, text)
            self.assertGreater(cache.nbytes, 3 * 6 * 32 * 2 * 2 * 64 * 2)
            self.assertTrue(cache.kernel().startswith("cpu_"), cache.kernel())
            self.assertIsNone(cache.poll_error())

    def test_log(self):
        lines = []
        with KVCache(1, 2, 2, 64, log=lambda level, text: lines.append((level, text))) as cache:
            with self.assertRaises(sinkcache.OutOfRangeError):
                cache.rewind(1)
        self.assertEqual([level for level, _ in lines], [1, 2, 1])
        self.assertIn("n_tokens[0] is 1", lines[1][1])


class Lifetime(CacheTest):
    def test_a_closed_cache(self):
        cache = KVCache(1, 2, 2, 64)
        q, k, v = random_rows(np.random.default_rng(0), 5, 2, 2, 2)
        cache.close()
        cache.close()
        self.assertTrue(cache.closed)
        self.assertEqual(repr(cache), "<sinkcache.KVCache, closed>")
        with KVCache(1, 2, 2, 64) as newer:  # In the same slot of the library.
            for call in (lambda: cache.step(0, q, k, v), lambda: cache.append(0, k, v), lambda: cache.attend(0, q),
                         lambda: cache.evict(1), lambda: cache.rewind(1), cache.reset, cache.abort_step, cache.save,
                         lambda: cache.load(b""), cache.info, lambda: cache.pin(0, 1), lambda: cache.fork(0, 0),
                         lambda: cache.evict_range(0, 1), lambda: newer.copy_from(cache), lambda: cache.kernel(),
                         cache.poll_error, lambda: cache.note_replay(1)):
                with self.assertRaises(sinkcache.InvalidHandleError) as caught:
                    call()
                self.assertEqual(caught.exception.status, Status.INVALID_HANDLE)
            self.assertEqual(newer.info().length_max, 0)
            self.assertIn("cache destroyed", self.destroyed_log())

    def destroyed_log(self):
        """Garbage collection destroys a cache, and the callback is still there."""
        lines = []
        cache = KVCache(1, 2, 2, 64, log=lambda level, text: lines.append(text))
        del cache
        gc.collect()
        return lines

    def test_a_cache_that_was_never_created(self):
        cache = KVCache.__new__(KVCache)
        with self.assertRaises(sinkcache.Error):
            cache.__init__(1, 3, 2, 64)
        self.assertTrue(cache.closed)
        self.assertEqual(repr(cache), "<sinkcache.KVCache, closed>")
        cache.close()

    def test_two_threads(self):
        """One cache takes one call at a time; different caches go on beside each other, without the lock of Python."""
        q, k, v = random_rows(np.random.default_rng(0), 2000, 8, 2, 2)
        cache = KVCache(1, 8, 2, 64, window_length=2048, max_batch_size=2, num_threads=1)
        self.addCleanup(cache.close)
        begun, seen = threading.Event(), []

        def work():
            begun.set()
            while not seen:
                try:
                    cache.step(0, q, k, v, seq_ids=0)
                    seen.append("done")
                except sinkcache.BusyError:
                    # The other thread's question came first.
                    continue

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        busy = 0
        while not seen:
            try:
                cache.info(0)
            except sinkcache.BusyError as error:
                busy += 1
                self.assertEqual(error.status, Status.BUSY)
                with self.assertRaises((sinkcache.BusyError, AssertionError)):
                    self.close_a_busy_one(cache)
        thread.join()
        self.assertGreater(busy, 0)
        self.assertFalse(cache.closed)
        self.assertEqual(cache.info(0).length_min, 2000)

    def close_a_busy_one(self, cache):
        """Raises either way: the step may have ended in between, and then the cache must not be closed."""
        if cache.info(0).length_min:
            raise AssertionError("the step has ended")
        cache.close()

    def test_caches_in_several_threads(self):
        rng = np.random.default_rng(0)
        q, k, v = random_rows(rng, 300, 8, 2, 2)
        results = [None] * 4

        def work(i):
            with KVCache(1, 8, 2, 64, window_length=64, num_threads=1) as cache:
                results[i] = np.concatenate([cache.step(0, q[j:j + 1], k[j:j + 1], v[j:j + 1]) for j in range(300)])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len({result.tobytes() for result in results}), 1)


if __name__ == "__main__":
    unittest.main()
