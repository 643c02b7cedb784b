"""Tests of the contenders that need other libraries, with fake_peers.py in their place. `python self_test_peers.py`

Needs PyTorch and SINKCACHE_LIBRARY, no GPU. With FlashInfer installed, or in SKC_PEERS (`make gpu-peers`), its own
Python runs too, and only its kernels are replaced.
"""

import importlib
import inspect
import os
import pathlib
import sys
import tempfile
import types
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch

from cases import Case, all_cases
from contenders import contenders_for, flash_attention, flashinfer_decode
from installed import is_installed
from data import Data
from measure import measure
from platforms import Cpu
import fake_peers
import peer_kernels
import published

# 40 tokens: two and a half pages.
CASES = [Case(2, 40, 4, 2, 64, dtype, core=True) for dtype in ("bf16", "f16")]
CHUNK = Case(2, 40, 4, 2, 64, "bf16", chunk=20, core=True)


class LikeGpu(Cpu):
    name = "cuda"


def rows_of(kind, case, modules=None):
    platform = LikeGpu()
    with mock.patch.dict(sys.modules, fake_peers.modules() if modules is None else modules):
        return measure(kind, case, platform, Data(case, platform, 2), 0.001)


def statuses(kind, case=CASES[0], modules=None):
    return [r["status"] for r in rows_of(kind, case, modules)]


class Correct(unittest.TestCase):
    def test_all_contenders_agree_with_the_reference(self):
        for kind in (*flashinfer_decode.CONTENDERS, *flash_attention.CONTENDERS):
            for case in CASES:
                for row in rows_of(kind, case):
                    self.assertEqual(row["status"], "ok", (kind.name, case.key, row))
        for kind in flash_attention.CONTENDERS:
            self.assertEqual(statuses(kind, CHUNK), ["ok"], kind.name)

    def test_a_sliding_window_of_one_token_more_or_less_is_wrong(self):
        for change in (-1, 1):

            class Off(flashinfer_decode.SlidingWindow):
                def prepare(self):
                    self.window_left += change
                    super().prepare()

            self.assertEqual(statuses(Off), ["wrong"], change)

    def test_lengths_that_include_padding_are_wrong(self):
        class Padded(flashinfer_decode.Xqa):
            def prepare(self):
                super().prepare()
                self.lengths = torch.full((2,), 48, dtype=torch.int32).view(torch.uint32)
                # Else the fake rejects them.
                self.case = Case(2, 48, 4, 2, 64, "bf16", core=True)

        self.assertEqual(statuses(Padded), ["wrong"])

    def test_streaming_that_does_not_rotate_or_order_or_store_is_wrong(self):
        class Unordered(flashinfer_decode.Streaming):
            def advance(self):
                kept = self.indices.clone()
                super().advance()
                self.indices.copy_(kept)

        class NextSlot(flashinfer_decode.Streaming):
            def prepare(self):
                super().prepare()
                self.head.add_(1)

        class Unstored(flashinfer_decode.Streaming):
            def step(self, layer):
                kept = self.k[layer].clone()
                super().step(layer)
                self.k[layer].copy_(kept)
                super().step(1)

        class OtherBase(flashinfer_decode.Streaming):
            def prepare(self):
                super().prepare()
                self.wrapper.theta = 1e6

        for kind in (Unordered, NextSlot, Unstored, OtherBase):
            self.assertEqual(statuses(kind), ["wrong"], kind.__name__)


class Rows(unittest.TestCase):
    def missing(self):
        return {name: None for name in fake_peers.modules()}

    def test_what_is_not_installed_is_unavailable_in_core_cases_and_left_out_of_others(self):
        with mock.patch.dict(sys.modules, self.missing()):
            peers = {*flashinfer_decode.CONTENDERS, *flash_attention.CONTENDERS}
            for case in all_cases():
                found = peers & set(contenders_for(case, LikeGpu()))
                self.assertEqual(bool(found), case.core, case.key)
        for kind in peers:
            row = rows_of(kind, CASES[0], self.missing())[0]
            self.assertEqual(row["status"], "unavailable", (kind.name, row))
            self.assertIn("flash", row["note"])

    def test_a_library_that_cannot_compile_or_does_not_know_the_device_is_unavailable(self):
        for text, status in (
            ("Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "unavailable"),
            ("XQA is only supported on SM90, SM100, SM120 GPUs", "unavailable"),
            ("Ninja build failed. Ninja output:\nmore", "error"),
        ):
            modules = fake_peers.modules()

            def fail(*args, **more):
                raise RuntimeError(text)

            modules["flashinfer.decode"].xqa_batch_decode_with_kv_cache = fail
            row = rows_of(flashinfer_decode.Xqa, CASES[0], modules)[0]
            self.assertEqual(row["status"], status, row)
            self.assertIn(text.split("\n")[0], row["note"])

    def test_xqa_runs_at_every_length_of_the_published_table(self):
        with mock.patch.dict(sys.modules, fake_peers.modules()):
            cases = [c for c in all_cases() if flashinfer_decode.Xqa in contenders_for(c, LikeGpu())]
        self.assertLessEqual(set(published.CACHED), {c.cached for c in cases if c.n_seqs == 1})


class Kernels:
    """In place of what FlashInfer compiles. Takes the arguments that its Python passes to kernels."""

    def __init__(self):
        self.prefills, self.xqas = [], []

    def prefill(self, *arguments):
        """get_batch_prefill_module"""
        self.prefills.append(arguments)
        rotation, slides = arguments[7:9]

        def plan(*more):
            # On Hopper FlashInfer's own calls have 16 and 19 arguments.
            assert len(more) == {"fa2": 19, "fa3": 16}[arguments[0]], len(more)
            return [0]

        def paged_run(*more):
            q, k, v, _, indptr, indices, last, out = more[3:11]
            left, scale, theta = more[14], more[23], more[28]
            assert (left >= 0) == slides, (left, slides)
            wrapper = fake_peers.BatchDecodeWithPagedKVCacheWrapper(torch.zeros(1, dtype=torch.uint8))
            mode = "ROPE_LLAMA" if rotation else "NONE"
            heads = q.shape[1], k.shape[2], k.shape[3], k.shape[1]
            given = {"q_data_type": q.dtype, "kv_data_type": k.dtype, "sm_scale": scale, "rope_theta": theta}
            wrapper.plan(indptr, indices, last, *heads, pos_encoding_mode=mode, window_left=left, **given)
            out.copy_(wrapper.run(q, (k, v)))

        return types.SimpleNamespace(plan=plan, paged_run=paged_run)

    def xqa(self, *arguments):
        """get_xqa_module"""
        self.xqas.append(arguments)

        def xqa(fp8, multiprocessors, heads, window, q_scale, out, _, q, sinks, k, v, table, most, lengths, n, *more):
            kv_scale, _, work = more[:3]
            # The kernel scales scores by 1 / sqrt(head_dim) itself.
            scale = q_scale * kv_scale / q.shape[-1] ** 0.5
            assert (fp8, window, sinks, tuple(lengths.shape)) == (False, 0, None, (n, 1))
            found = fake_peers.xqa_batch_decode_with_kv_cache(
                q[:, 0], (k, v), work, table, lengths[:, 0], most, bmm1_scale=scale, bmm2_scale=kv_scale
            )
            out.copy_(found[:, None])

        return types.SimpleNamespace(xqa=xqa)


class RealPython(unittest.TestCase):
    """FlashInfer's Python on the CPU, with kernels in NumPy."""

    @classmethod
    def setUpClass(cls):
        if not is_installed("flashinfer"):
            why = "FlashInfer is not installed: make gpu-peers, then SKC_PEERS"
            print(f"skipped: {why}", flush=True)
            raise unittest.SkipTest(why)
        # It reads these when it is imported.
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        environment = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a", "FLASHINFER_WORKSPACE_BASE": folder.name}
        patch = mock.patch.dict(os.environ, environment)
        patch.start()
        cls.addClassCleanup(patch.stop)

    def setUp(self):
        self.decode, self.xqa = (importlib.import_module(f"flashinfer.{name}") for name in ("decode", "xqa"))
        self.kernels = Kernels()
        empty = torch.empty
        for owner, name, fake in (
            (self.decode, "get_batch_prefill_module", self.kernels.prefill),
            (self.xqa, "get_xqa_module", self.kernels.xqa),
            (self.xqa, "get_compute_capability", lambda device: (9, 0)),
            (self.decode, "get_device_sm_count", lambda device: 132),
            # Pinned memory needs a GPU.
            (torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more)),
        ):
            self.start(mock.patch.object(owner, name, fake))

    def start(self, patch):
        patch.start()
        self.addCleanup(patch.stop)

    def test_contenders_are_right_and_use_the_kernels_that_are_compiled_ahead(self):
        case = Case(2, 40, 32, 8, 128, "bf16", core=True)
        for kind in flashinfer_decode.CONTENDERS:
            for row in rows_of(kind, case, {}):
                self.assertEqual(row["status"], "ok", (kind.name, row))
        self.assertEqual(set(self.kernels.prefills), set(peer_kernels.prefill_arguments()))
        self.assertEqual(set(self.kernels.xqas), {peer_kernels.xqa_arguments()})
        self.assertEqual(len({module.name for module in peer_kernels.modules()}), 5)

    def test_packed_kernels_are_used_where_they_fit_and_load(self):
        env, core = (importlib.import_module(f"flashinfer.jit.{name}") for name in ("env", "core"))
        modules = list(peer_kernels.modules())
        unloadable, built = modules[1].name, []

        def load(module, path):
            if module.name == unloadable:
                raise RuntimeError("libcudart.so.12: cannot open shared object file")

        self.start(mock.patch.object(core.JitSpec, "load", load))
        self.start(mock.patch.object(core.JitSpec, "build", lambda module, verbose: built.append(module.name)))
        for archs, want in (("9.0a", [unloadable]), ("10.0a", [m.name for m in modules])):
            with tempfile.TemporaryDirectory() as folder:
                packed = pathlib.Path(folder) / "aot"
                for module in modules:
                    (packed / module.name).mkdir(parents=True)
                    (packed / module.name / f"{module.name}.so").touch()
                (packed / peer_kernels.ARCHS).write_text(archs)
                built.clear()
                with mock.patch.object(env, "FLASHINFER_AOT_DIR", packed), mock.patch("builtins.print"):
                    self.assertEqual(peer_kernels.make_all(None), 0)
                    # FlashInfer itself takes what is left.
                    left = [m.name for m in modules if m.is_aot]
            self.assertEqual(built, want, archs)
            self.assertEqual(left, [m.name for m in modules if m.name not in want], archs)

    def test_kernels_are_packed_all_or_none(self):
        core = importlib.import_module("flashinfer.jit.core")
        last = list(peer_kernels.modules())[-1].name

        def build(module, verbose):
            if self.fails and module.name == last:
                raise RuntimeError("Ninja build failed.\nnvcc: not found\nninja: build stopped")
            module.build_dir.mkdir(parents=True, exist_ok=True)
            module.jit_library_path.write_text(module.name)

        self.start(mock.patch.object(core.JitSpec, "build", build))
        with tempfile.TemporaryDirectory() as folder:
            into = pathlib.Path(folder) / "kernels"
            self.start(mock.patch.object(sys, "argv", ["peer_kernels.py", "--into", str(into)]))
            for self.fails in (True, False):
                with mock.patch("builtins.print"):
                    self.assertEqual(peer_kernels.main(), int(self.fails))
                self.assertEqual(into.exists(), not self.fails)
            names = {m.name for m in peer_kernels.modules()}
            self.assertEqual({str(f.relative_to(into)) for f in into.rglob("*.so")}, {f"{n}/{n}.so" for n in names})
            self.assertEqual((into / peer_kernels.ARCHS).read_text(), "9.0a")

    def test_the_fake_has_the_parameters_of_the_real_library(self):
        for name in ("__init__", "plan", "run"):
            real, fake = (
                list(inspect.signature(getattr(module.BatchDecodeWithPagedKVCacheWrapper, name)).parameters)
                for module in (self.decode, fake_peers)
            )
            self.assertEqual(real, fake, name)
        real, fake = (
            list(inspect.signature(module.xqa_batch_decode_with_kv_cache).parameters)
            for module in (self.decode, fake_peers)
        )
        self.assertEqual(real, fake)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    unittest.main()
