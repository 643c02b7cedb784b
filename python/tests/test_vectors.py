"""The vectors of the definition: whole, in pieces, through strides, in every type, one of a ragged batch."""
import unittest

import numpy as np

import sinkcache
from support import BOUNDS, CacheTest, edit, from_bf16, to_bf16, vectors

CONVERT = {"float32": (lambda x: x, lambda x: x), "float16": (lambda x: x.astype(np.float16), lambda x: x),
           "bfloat16": (to_bf16, from_bf16)}


def strided(x):
    """The same rows inside a larger array: heads and rows further apart than packed ones."""
    room = np.full((x.shape[0], x.shape[1] + 3, 2 * x.shape[2] + 8), 99, x.dtype)
    view = room[:, 1:-2, 8:8 + x.shape[2]]
    view[:] = x
    return view


def backwards(x):
    """The same rows in memory in the opposite order: negative strides."""
    return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]


def transposed(x):
    """[heads, rows, dims] in memory."""
    return np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2)


class Vectors(CacheTest):
    def replay(self, vector, *, cut=10**9, dtype="float32", applied=False, layout=np.ascontiguousarray, start=0,
               seq_id=0, **settings):
        narrow, widen = CONVERT[dtype]
        names = ("q_rotated", "k_rotated", "v") if applied else ("q", "k", "v")
        q, k, v = (narrow(vector.tensors[name]) for name in names)
        want_out, want_lse = vector.tensors["out"], vector.tensors["lse"]
        with vector.cache(applied, dtype=dtype, **settings) as cache:
            cache.reset(seq_id, start)
            at = 0
            for event in vector.events:
                if event[0] == "refuse":
                    before = cache.info(seq_id), cache.save(seq_id)
                    with self.assertRaises(sinkcache.Error):
                        edit(cache, event[1], seq_id)
                    self.assertEqual((cache.info(seq_id), cache.save(seq_id)), before)
                elif event[0] != "chunk":
                    edit(cache, event, seq_id, start)
                else:
                    end = at + event[1]
                    while at < end:
                        rows = slice(at, min(end, at + cut))
                        out, lse = cache.step(0, layout(q[rows]), layout(k[rows]), layout(v[rows]), seq_ids=seq_id,
                                              return_lse=True)
                        self.assertEqual(out.dtype, q.dtype)
                        self.close_to(widen(out), want_out[rows], BOUNDS[dtype], f"{vector.name} out of {rows}")
                        scale = max(1.0, np.abs(want_lse).max())
                        self.assertLessEqual(np.abs(lse - want_lse[rows]).max() / scale, BOUNDS[dtype], vector.name)
                        at = rows.stop
            self.assertEqual(at, len(q))

    def test_whole_and_in_pieces(self):
        self.assertGreaterEqual(len(vectors()), 44)
        for vector in vectors():
            for cut in (10**9, 7, 1):
                with self.subTest(vector.name, cut=cut):
                    self.replay(vector, cut=cut)

    def test_at_any_position(self):
        for vector in vectors():
            for start in (1 << 24, (1 << 40) + 7):
                with self.subTest(vector.name, start=start):
                    self.replay(vector, cut=16, start=start)

    def test_rope_applied_by_the_caller(self):
        rotated = [vector for vector in vectors() if "q_rotated" in vector.tensors]
        self.assertGreaterEqual(len(rotated), 30)
        for vector in rotated:
            with self.subTest(vector.name):
                self.replay(vector, cut=9, applied=True)

    def test_through_strides(self):
        for layout in (strided, transposed, backwards):
            for vector in vectors():
                with self.subTest(vector.name, layout=layout.__name__):
                    self.replay(vector, cut=11, layout=layout)

    def test_half_types(self):
        for dtype in ("float16", "bfloat16"):
            for vector in vectors():
                with self.subTest(vector.name, dtype=dtype):
                    self.replay(vector, cut=13, dtype=dtype, layout=strided)

    def test_another_sequence_with_threads(self):
        for vector in vectors():
            with self.subTest(vector.name):
                self.replay(vector, cut=20, seq_id=2, max_batch_size=3, num_threads=2, max_chunk=8)

    def test_append_then_attend(self):
        for vector in vectors():
            q, k, v = (vector.tensors[name] for name in "qkv")
            with self.subTest(vector.name), vector.cache() as cache:
                at = 0
                for event in vector.events:
                    if event[0] == "chunk":
                        rows = slice(at, at + event[1])
                        cache.append(0, k[rows], v[rows])
                        out = strided(np.zeros((event[1], *vector.tensors["out"].shape[1:]), np.float32))
                        lse = np.zeros((event[1], 2 * q.shape[1]), np.float32)[:, ::2]
                        got, got_lse = cache.attend(0, q[rows], out=out, lse=lse, return_lse=True)
                        self.assertIs(got, out)
                        self.assertIs(got_lse, lse)
                        self.close_to(out, vector.tensors["out"][rows], BOUNDS["float32"], vector.name)
                        # What lies between the rows and heads is as it was.
                        self.assertEqual(set(out.base[:, 0].ravel()) | set(out.base[:, 1:, :8].ravel()), {99.0})
                        at = rows.stop
                    elif event[0] != "refuse":
                        edit(cache, event, 0)

    def test_ragged_batches_equal_single_sequences(self):
        """Bit for bit, whatever the others do; some rows are padding."""
        vector = next(v for v in vectors() if v.name == "gqa_neox")
        q, k, v = (vector.tensors[name] for name in "qkv")
        rng = np.random.default_rng(1)
        with vector.cache(max_batch_size=3) as cache, vector.cache(max_batch_size=3) as single:
            at = [0, 0, 0]
            for _ in range(12):
                order = [*rng.permutation(3), -1]
                counts = [int(n) for n in rng.integers(0, 7, 4)]
                parts = [np.arange(at[i], at[i] + n) if i >= 0 else np.zeros(n, int) for i, n in zip(order, counts)]
                rows = np.concatenate(parts)
                indptr = np.cumsum([0, *counts])
                out = cache.step(0, q[rows], k[rows], v[rows], seq_ids=np.array(order), qo_indptr=indptr)
                for i, begin, end in zip(order, indptr, indptr[1:]):
                    if i < 0:
                        self.assertFalse(out[begin:end].any())
                    elif end > begin:
                        part = slice(at[i], at[i] + end - begin)
                        want = single.step(0, q[part], k[part], v[part], seq_ids=i)
                        self.assertEqual(out[begin:end].tobytes(), want.tobytes())
                        at[i] += end - begin
            self.assertEqual([cache.info(i).length_min for i in range(3)], at)


if __name__ == "__main__":
    unittest.main()
