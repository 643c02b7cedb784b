"""Arrays of which only DLPack is known, in host memory and in that of a CUDA device."""
import ctypes
import os
import unittest

import numpy as np

import sinkcache
from sinkcache import InvalidArgumentError, KVCache
from support import CacheTest, random_rows

HOST, CUDA = (1, 0), (2, 0)


class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("dtype", ctypes.c_uint8 * 2), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64)]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


class Exported:
    """Memory of NumPy, by DLPack alone. With a device's address, that of its memory."""

    def __init__(self, array, device=HOST, address=None, dtype=(2, 32), packed=False):
        self.array, self.device, self.streams = array, device, []
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        # An offset, as slices of some libraries have it.
        data = (address or array.ctypes.data) - 64
        strides = None if packed else self.strides
        tensor = DLTensor(data, device, array.ndim, dtype, 1, self.shape, strides, 64)
        self.managed = Managed(tensor, None, DELETER())

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **arguments):
        self.streams.append(arguments)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), b"dltensor", None)


class DLPack(CacheTest):
    def setUp(self):
        self.rows = random_rows(np.random.default_rng(0), 20, 8, 2, 2)

    def test_strides_and_offsets(self):
        with KVCache(1, 8, 2, 64, window_length=16) as cache, KVCache(1, 8, 2, 64, window_length=16) as numpy:
            want, want_lse = numpy.step(0, *self.rows, return_lse=True)
            apart = [np.zeros((20, 3 * x.shape[1], 64), np.float32)[:, ::3] for x in (*self.rows, want)]
            for to, x in zip(apart, self.rows):
                to[:] = x
            lse = np.zeros((20, 8), np.float32)
            q, k, v, out = map(Exported, apart)
            self.assertIs(cache.step(0, q, k, v, out=out, lse=Exported(lse)), out)
            self.assertEqual((apart[3].tobytes(), lse.tobytes()), (want.tobytes(), want_lse.tobytes()))
            self.assertEqual(q.streams, [{}])
            cache.reset()
            q, k, v = (Exported(x, packed=True) for x in self.rows)
            out = np.zeros_like(want)
            cache.step(0, q, k, v, out=out)
            self.assertEqual(out.tobytes(), want.tobytes())

    def test_types(self):
        bits = [x.astype(np.float16).view(np.uint16) for x in self.rows]
        with KVCache(1, 8, 2, 64, dtype="float16") as cache:
            q, k, v = (Exported(x, dtype=(2, 16)) for x in bits)
            out = np.zeros((20, 8, 64), np.float16)
            cache.step(0, q, k, v, out=out)
            self.assertTrue(out.any())
            for dtype, text in (((4, 16), "bfloat16"), ((2, 64), "type 2 of 64 bits"), ((0, 16), "type 0 of 16 bits")):
                self.rejects(InvalidArgumentError, text, cache,
                             lambda: cache.step(0, Exported(bits[0], dtype=dtype), k, v, out=out))

    def test_rejected(self):
        q, k, v = self.rows
        with KVCache(1, 8, 2, 64) as cache:
            self.rejects(InvalidArgumentError, "out is needed", cache, lambda: cache.step(0, Exported(q), k, v))
            self.rejects(InvalidArgumentError, "q is on cuda:0, and the cache is on cpu", cache,
                         lambda: cache.step(0, Exported(q, CUDA), k, v, out=q.copy()))
            self.rejects(InvalidArgumentError, "device of DLPack's type 8", cache,
                         lambda: cache.step(0, Exported(q, (8, 0)), k, v, out=q.copy()))
            wrong = np.zeros((20, 8, 32), np.float32)
            self.rejects(InvalidArgumentError, r"q has the shape \[20, 8, 32\]", cache,
                         lambda: cache.step(0, Exported(wrong), k, v, out=q.copy()))


class Device(CacheTest):
    """A CUDA cache; on the stand-in, whose device memory is ordinary memory."""

    @classmethod
    def setUpClass(cls):
        if not sinkcache.capabilities().backends & 1 << 2:
            raise unittest.SkipTest("skipped: no CUDA device, and no stand-in")
        if "shim" not in os.environ.get("LD_LIBRARY_PATH", ""):
            raise unittest.SkipTest("skipped: memory of a GPU needs PyTorch")

    def setUp(self):
        self.driver = ctypes.CDLL("libcuda.so.1")
        context, device = ctypes.c_void_p(), ctypes.c_int()
        for call in (self.driver.cuInit(0), self.driver.cuDeviceGet(ctypes.byref(device), 0),
                     self.driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
                     self.driver.cuCtxSetCurrent(context)):
            self.assertEqual(call, 0)

    def on_device(self, array):
        address = ctypes.c_uint64()
        self.assertEqual(self.driver.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(array.nbytes)), 0)
        self.driver.cuMemcpyHtoD_v2(address, ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes))
        return Exported(array, CUDA, address.value)

    def on_host(self, exported):
        array = np.empty_like(exported.array)
        address = exported.managed.tensor.data + 64
        self.assertEqual(self.driver.cuMemcpyDtoH_v2(ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
                                                     ctypes.c_size_t(array.nbytes)), 0)
        return array

    def test_a_stream(self):
        rows = random_rows(np.random.default_rng(0), 90, 8, 2, 2)
        stream = ctypes.c_void_p()
        self.assertEqual(self.driver.cuStreamCreate(ctypes.byref(stream), 0), 0)
        settings = dict(window_length=32, max_batch_size=2)
        with KVCache(1, 8, 2, 64, device="cuda:0", **settings) as cache, KVCache(1, 8, 2, 64, **settings) as cpu:
            self.assertEqual(cache.device, "cuda:0")
            cache.stream = stream.value
            for begin, end in ((0, 60), (60, 61), (61, 90)):
                q, k, v, out = (self.on_device(x[begin:end].copy()) for x in (*rows, rows[0]))
                cache.step(0, q, k, v, seq_ids=1, out=out)
                self.driver.cuStreamSynchronize(stream)
                self.assertEqual(q.streams, [{"stream": stream.value}])
                want = cpu.step(0, *(x[begin:end] for x in rows), seq_ids=1)
                self.close_to(self.on_host(out), want, 1e-5)
                for each in (cache, cpu):
                    each.rewind(1, 1)
                    each.evict([2], [1])
            self.assertEqual(cache.info(1), cpu.info(1))
            self.assertEqual(cache.info(1, read_back=True), cpu.info(1))
            self.assertEqual(cache.save(1, read_back=True), cache.save(1))
            cpu.load(cache.save(1), 0)
            self.assertEqual(cpu.info(0), cpu.info(1))
            cache.copy_from(cpu, 0, 0)
            cache.fork(1, 0)
            self.assertIsNone(cache.poll_error())
            with self.assertRaisesRegex(InvalidArgumentError, "q is on cpu, and the cache is on cuda:0"):
                cache.step(0, *rows, seq_ids=0)


if __name__ == "__main__":
    unittest.main()
