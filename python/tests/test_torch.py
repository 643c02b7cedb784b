"""Tensors of PyTorch. Skipped where there is no PyTorch; the tests on a GPU where there is no GPU."""
import unittest

import numpy as np

try:
    import torch
except ImportError as reason:
    raise unittest.SkipTest("skipped: no PyTorch") from reason

import sinkcache
from sinkcache import InvalidArgumentError, KVCache
from support import BOUNDS, CacheTest, random_rows, vectors


class Torch(CacheTest):
    device = "cpu"

    def rows(self, count, dtype=torch.float32, seed=0):
        rows = random_rows(np.random.default_rng(seed), count, 8, 2, 2)
        return [torch.from_numpy(x).to(self.device, dtype) for x in rows]

    def cache(self, *arguments, **settings):
        return KVCache(*(arguments or (1, 8, 2, 64)), device=self.device, **settings)

    def test_vectors(self):
        for vector in vectors():
            if len(vector.events) > 1 and "chunk" not in vector.name and any(e[0] != "chunk" for e in vector.events):
                continue  # Edits are tested with NumPy.
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                q, k, v = (torch.from_numpy(vector.tensors[name].copy()).to(self.device, dtype) for name in "qkv")
                with self.subTest(vector.name, dtype=dtype), vector.cache(dtype=dtype, device=self.device) as cache:
                    out, lse = cache.step(0, q, k, v, return_lse=True)
                    self.assertEqual((out.dtype, lse.dtype, out.device), (dtype, torch.float32, q.device))
                    bound = BOUNDS[str(dtype).removeprefix("torch.")]
                    self.close_to(out.float().cpu().numpy(), vector.tensors["out"], bound, vector.name)

    def test_layouts_of_models(self):
        """Views of one projection for q, k and v, and [heads, rows, dims] in memory: nothing is copied."""
        q, k, v = self.rows(40)
        with self.cache() as cache:
            want = cache.step(0, q, k, v)
            fused = torch.cat((q, k, v), 1)
            cache.reset()
            got = cache.step(0, *fused.split((8, 2, 2), 1))
            self.assertTrue(torch.equal(got, want))
            cache.reset()
            q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
            out = torch.empty(8, 40, 64, device=self.device).transpose(0, 1)
            self.assertIs(cache.step(0, q, k, v, out=out), out)
            self.assertTrue(torch.equal(out, want))

    def test_the_same_as_numpy_and_dlpack(self):
        class Opaque:
            def __init__(self, tensor):
                self.tensor = tensor

            def __dlpack_device__(self):
                return self.tensor.__dlpack_device__()

            def __dlpack__(self, **arguments):
                return self.tensor.__dlpack__(**arguments)

        for dtype in (torch.float32, torch.bfloat16):
            rows = self.rows(30, dtype)
            with self.cache(dtype=dtype) as cache:
                want = cache.step(0, *rows)
                cache.reset()
                out = torch.zeros_like(want)
                cache.step(0, *map(Opaque, rows), out=Opaque(out))
                self.assertTrue(torch.equal(out, want))
                if self.device == "cpu":
                    cache.reset()
                    views = [x.view(torch.uint16).numpy() if dtype == torch.bfloat16 else x.numpy() for x in rows]
                    out = cache.step(0, *views)
                    self.assertEqual(out.tobytes(), want.view(torch.uint8).numpy().tobytes())

    def test_batches_in_tensors(self):
        q, k, v = self.rows(9)
        with self.cache(max_batch_size=3) as cache:
            cache.step(0, q, k, v, seq_ids=torch.tensor([2, 0]), qo_indptr=torch.tensor([0, 4, 9]))
            self.assertEqual([cache.info(i).length_min for i in range(3)], [5, 0, 4])
            cache.rewind(torch.tensor([1, 2]), torch.tensor([0, 2]))
            self.assertEqual([cache.info(i).length_min for i in range(3)], [4, 0, 2])
            q, k, v = self.rows(3)
            out = cache.step(0, q, k, v, seq_ids=[0, sinkcache.PADDING, 2])
            self.assertFalse(out[1].any())
            self.assertTrue(out[2].all())

    def test_rejected(self):
        q, k, v = self.rows(3)
        with self.cache() as cache:
            wanted = q.clone().requires_grad_()
            self.rejects(InvalidArgumentError, "no_grad", cache, lambda: cache.step(0, wanted, k, v))
            self.rejects(InvalidArgumentError, "q is on meta", cache, lambda: cache.step(0, q.to("meta"), k, v))
            self.rejects(InvalidArgumentError, "k has the layout", cache,
                         lambda: cache.step(0, q, k.to_sparse(), v))
            self.rejects(InvalidArgumentError, "stride 0", cache, lambda: cache.step(0, q, k[:1].expand(3, 2, 64), v))
            self.rejects(InvalidArgumentError, "q is of type bfloat16", cache,
                         lambda: cache.step(0, q.bfloat16(), k, v))
            with torch.no_grad():
                cache.step(0, wanted, k, v)
            with torch.inference_mode():
                cache.step(0, wanted * 1, k, v)

    def test_no_rows(self):
        empty = [torch.empty(0, heads, 64, device=self.device) for heads in (8, 2, 2)]
        with self.cache(max_batch_size=2) as cache:
            self.assertEqual(tuple(cache.step(0, *empty, seq_ids=[0, 1], qo_indptr=[0, 0, 0]).shape), (0, 8, 64))

    def test_threads_are_those_of_pytorch(self):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            q, k, v = self.rows(3)
            with self.cache() as cache:
                cache.step(0, q, k, v)
        finally:
            torch.set_num_threads(before)

    def test_against_attention_of_pytorch(self):
        """Below the window the cache is causal attention."""
        q, k, v = self.rows(100)
        with self.cache(1, 8, 2, 64, rope=None, window_length=128) as cache:
            parts = [cache.step(0, q[i:i + 33], k[i:i + 33], v[i:i + 33]) for i in range(0, 100, 33)]
        want = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1)[None].double() for x in (q, k, v)), is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        self.close_to(torch.cat(parts).cpu().numpy(), want.cpu().numpy(), 1e-5)


@unittest.skipUnless(torch.cuda.is_available(), "skipped: no CUDA device")
class OnCuda(Torch):
    device = "cuda"

    def test_the_current_stream(self):
        q, k, v = self.rows(50)
        with self.cache() as cache, self.cache() as other:
            want = other.step(0, q, k, v)
            torch.cuda.synchronize()
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                self.assertEqual(cache._stream(), stream.cuda_stream)
                got = cache.step(0, q, k, v)
            stream.synchronize()
            self.assertTrue(torch.equal(got, want))

    def test_a_graph(self):
        q, k, v = self.rows(60)
        with self.cache() as cache, self.cache() as eager:
            cache.step(0, q[:40], k[:40], v[:40])
            eager.step(0, q[:40], k[:40], v[:40])
            row = [x[:1].clone() for x in (q, k, v, q)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                cache.step(0, *row[:3], out=row[3])
            for i in range(40, 60):
                for to, x in zip(row, (q, k, v)):
                    to.copy_(x[i:i + 1])
                graph.replay()
                cache.note_replay(1)
                self.assertTrue(torch.equal(row[3], eager.step(0, q[i:i + 1], k[i:i + 1], v[i:i + 1])))
            self.assertEqual(cache.info(), eager.info())


if __name__ == "__main__":
    unittest.main()
