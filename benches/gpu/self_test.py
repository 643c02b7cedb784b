"""Tests of the benchmark: wrong results get no time, failures become rows, runs can be resumed. `python self_test.py`

Needs PyTorch and SINKCACHE_LIBRARY, no GPU.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch

from cases import Case, all_cases, select, smoke_cases
from contenders import copy, streaming_llm, window
from contenders.base import Contender
from contenders.sinkcache import Step, TwoCalls
from data import Data, TOLERANCE, error_of, rotate
from gpu_specs import ARCHS, DEVICES, occupancy
from journal import Journal
from measure import layers_for, measure
from platforms import Cpu
import model
import report

CASE = Case(2, 48, 4, 2, 64, "f32", core=True)
CHUNK = Case(2, 48, 4, 2, 64, "f32", chunk=20, core=True)


def rows_of(kind, case=CASE):
    platform = Cpu()
    return measure(kind, case, platform, Data(case, platform, 2), 0.005)


class Measure(unittest.TestCase):
    def test_all_contenders_are_correct_in_f32_and_are_timed(self):
        both = Step, TwoCalls, window.CONTENDERS[0], window.Flex
        for case, kinds in ((CASE, (*both, *streaming_llm.CONTENDERS, window.Rows, *copy.CONTENDERS)), (CHUNK, both)):
            for kind in kinds:
                for row in rows_of(kind, case):
                    self.assertEqual(row["status"], "ok", (kind.name, row))
                    self.assertGreater(row["us"], 0)
                    self.assertLess(row["error"], TOLERANCE["f32"])

    def test_a_window_that_is_off_by_one_is_wrong_and_not_timed(self):
        class Off(Step):
            def prepare(self):
                self.case = Case(2, 47, 4, 2, 64, "f32")
                super().prepare()

        for row in rows_of(Off):
            self.assertEqual(row["status"], "wrong", row)
            self.assertNotIn("us", row)

    def test_a_step_that_is_correct_only_once_is_wrong(self):
        class Stale(Step):
            def step(self, layer):
                if self.out[layer].isnan().any():
                    super().step(layer)

        # At the second step a token occurs twice: the correct result differs from the first.
        self.assertEqual([r["status"] for r in rows_of(Stale)], ["wrong"])

    def test_rows_that_are_not_written_are_wrong(self):
        class Silent(Step):
            def step(self, layer):
                pass

        self.assertEqual({r["status"] for r in rows_of(Silent)}, {"wrong"})

    def test_exceptions_are_rows(self):
        class Broken(Contender):
            name, modes = "broken", ("graph", "eager")

            def step(self, layer):
                raise RuntimeError("no such kernel\nmore")

        class Missing(Broken):
            def prepare(self):
                import a_module_that_is_not_there  # noqa: F401

        self.assertEqual(
            [(r["mode"], r["status"], r["note"]) for r in rows_of(Broken)],
            [(m, "error", "RuntimeError: no such kernel") for m in ("graph", "eager")],
        )
        self.assertEqual({r["status"] for r in rows_of(Missing)}, {"unavailable"})

    def test_errors_of_the_library_are_rows(self):
        class Rejected(Step):
            def prepare(self):
                self.case = Case(2, 4, 4, 2, 64, "f32")
                super().prepare()

        row = rows_of(Rejected)[0]
        self.assertEqual(row["status"], "error")
        self.assertIn("window", row["note"])


class Tokens(unittest.TestCase):
    def test_visible_kv_is_sinks_and_the_last_tokens(self):
        data = Data(CASE, Cpu(), 1)
        stream_k = torch.cat([data.block_k] * data.blocks + [data.k[0]] * 3, 1).transpose(1, 2)
        k, _ = data.visible_kv(0, passes=3)
        self.assertTrue(torch.equal(k, torch.cat([stream_k[:, :, :4], stream_k[:, :, -44:]], 2)))

    def test_rotation_depends_on_distance_alone(self):
        q, k = torch.randn(2, 1, 64, dtype=torch.float64)
        at = lambda x, p: rotate(x, torch.tensor([p]))
        near, far = (float(at(q, p + 7) @ at(k, p).T) for p in (0, 1000))
        self.assertAlmostEqual(near, far, places=9)

    def test_nan_exceeds_every_tolerance(self):
        x = torch.ones(4)
        x[1] = float("nan")
        self.assertFalse(error_of(x, torch.ones(4).double()) <= 1e9)


class Cases(unittest.TestCase):
    def test_all_shapes_are_there_those_of_aims_first(self):
        cases = all_cases()
        decode = {
            (c.n_seqs, c.cached, c.q_heads, c.kv_heads, c.dim, c.dtype) for c in cases if c.decode and not c.start
        }
        # 8192 and 32768 tokens of one sequence besides: others have published times.
        self.assertEqual(len(decode), 4 * 5 * 5 * 2 + 2)
        self.assertEqual(len(cases), len(set(cases)))
        self.assertEqual(cases[0], Case(1, 2048, 32, 8, 128, "bf16", core=True))
        self.assertEqual({c.start for c in cases}, {0, 10_000, 10_000_000})
        self.assertEqual(len(select(cases, "1 x 1 over 256, 32/8 x 128 bf16; nothing")), 1)

    def test_layers_exceed_the_cache_three_times(self):
        class Place(Cpu):
            def cache_bytes(self):
                return 50 << 20

            def free_bytes(self):
                return 70 << 30

        for case in all_cases():
            n = layers_for(case, Place())
            if n and case.decode:
                # Enough layers, or fewer if a single one takes gigabytes.
                self.assertTrue(
                    n >= 32 and n * case.layer_bytes > 3 * (50 << 20) or case.layer_bytes >= 1 << 30, case.key
                )


class Bytes(unittest.TestCase):
    def test_floors_by_hand(self):
        c = Case(1, 2048, 32, 8, 128, "bf16")
        self.assertEqual(c.layer_bytes, 2048 * 8 * 128 * 2 * 2)
        # One token less is read from the cache; the new one is read and stored; queries and results.
        self.assertEqual(c.step_bytes, 2047 * 4096 + 2 * 4096 + 2 * 32 * 256)
        self.assertEqual(c.step_flops, 4 * 2048 * 32 * 128)

    def test_occupancy(self):
        # 133 registers are allocated as 136: each of 4 schedulers holds 3 warps in a quarter of 65536: 12 warps,
        # 3 blocks.
        self.assertEqual(occupancy(ARCHS["sm_90a"], 128, 133, 1024), (3, "registers"))
        self.assertEqual(occupancy(ARCHS["sm_90a"], 128, 64, 87104), (2, "shared memory"))
        self.assertEqual(occupancy(ARCHS["sm_86"], 128, 32, 512)[0], 12)
        self.assertEqual(occupancy(ARCHS["sm_86"], 128, 32, 100 << 10)[0], 0)


class Splits(unittest.TestCase):
    def test_they_are_those_of_the_library(self):
        # The list of `splits_that_predictions_rest_on` in src/backend/cuda/heuristics.rs.
        k = model.Kernel(128, 2, 3, "shared memory", 0)
        for heads, rounds, want in ((8, 32, 16), (64, 32, 4), (512, 32, 1), (8, 256, 32), (8, 4, 4)):
            self.assertEqual(model.n_splits(heads, 64 * rounds, k, 132), want, (heads, rounds))
        # That of `splits_of_chunks_that_predictions_rest_on`.
        k = model.Kernel(128, 2, 2, "shared memory", 0)
        for tiles, rounds, want in ((64, 35, 4), (64, 259, 4), (8, 33, 11), (128, 37, 2), (136, 37, 1), (64, 3, 1)):
            self.assertEqual(model.chunk_splits(tiles, 64 * rounds, 128, k, 132), (want, False), (tiles, rounds))
        # That of `clusters_of_chunks_that_predictions_rest_on`.
        for tiles, rounds, want in ((64, 35, 4), (64, 259, 4), (8, 33, 8), (128, 37, 2), (136, 37, 1), (64, 3, 1)):
            split = model.chunk_splits(tiles, 64 * rounds, 128, k, 132, 256)
            self.assertEqual(split, (want, want > 1), (tiles, rounds))


class Runs(unittest.TestCase):
    def test_an_incomplete_line_is_dropped_and_what_was_running_is_an_error(self):
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(folder, False, 10)
            journal.add({"key": "a", "contender": "x", "status": "ok"})
            with (pathlib.Path(folder) / "rows.jsonl").open("a") as file:
                file.write('{"key": "b", "cont')
            (pathlib.Path(folder) / "now.json").write_text('{"key": "c", "contender": "y"}')
            again = Journal(folder, True, 10)
            self.assertEqual([(r["key"], r["status"]) for r in again.rows], [("a", "ok"), ("c", "error")])
            third = Journal(folder, True, 10)
            self.assertEqual(third.rows, again.rows)
            self.assertEqual(third.until, journal.until)

    def test_half_written_files_are_as_none(self):
        with tempfile.TemporaryDirectory() as folder:
            Journal(folder, False, 10).add({"key": "a", "contender": "x", "status": "ok"})
            for name, text in (("now.json", ""), ("now.json", '{"key": "c", "con'), ("began", ""), ("began", "12.3.")):
                (pathlib.Path(folder) / name).write_text(text)
                again = Journal(folder, True, 10)
                self.assertEqual([(r["key"], r["status"]) for r in again.rows], [("a", "ok")], (name, text))
                self.assertGreater(again.seconds_left(), 5)

    def test_a_full_disk_ends_the_run_and_room_lets_it_continue(self):
        # A limit of file sizes fails as a full disk does: in the middle of a line.
        program = (
            f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport resource, run, contenders\n"
            "from contenders.sinkcache import Step, TwoCalls\n"
            "contenders.contenders_for = lambda case, platform: [Step, TwoCalls]\n"
            "limit = int(sys.argv.pop(1))\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
            "sys.exit(run.main_or_full_disk())\n"
        )
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "program.py"
            file.write_text(program)

            def run(limit, *options):
                command = [sys.executable, str(file), str(limit), "--device", "cpu", "--smoke", "--seconds", "0.005",
                           "--cases", "2 x 1 over 48", "--out", f"{folder}/out", *options]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
                return done.returncode, done.stdout

            for limit in (10, 700):
                code, said = run(limit)
                self.assertEqual(code, 3, (limit, said))
                self.assertIn("--out: File too large: what was written stays", said)
            code, said = run(-1, "--resume")
            self.assertEqual(code, 0, said)
            rows = json.loads((pathlib.Path(folder) / "out" / "results.json").read_text())["rows"]
            keys = [(r["contender"], r["mode"]) for r in rows if r["status"] == "ok"]
            self.assertEqual(len(keys), 4, rows)
            self.assertEqual(len(set(keys)), 4, rows)

    def run_with(self, change, *options):
        """Runs run.py in a process of its own, after executing `change`. -> (exit code, results)"""
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / "program.py"
            program.write_text(
                f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport os, time, run, contenders\n"
                f"from contenders.sinkcache import Step, TwoCalls\n{change}\nsys.exit(run.main())\n"
            )
            command = [
                sys.executable,
                str(program),
                "--device",
                "cpu",
                "--smoke",
                "--seconds",
                "0.005",
                "--out",
                folder,
                *options,
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
            results = pathlib.Path(folder) / "results.json"
            self.assertTrue(results.exists(), done.stdout)
            return done.returncode, json.loads(results.read_text())

    def test_a_hang_becomes_a_row_and_the_run_continues(self):
        change = (
            "class Hang(Step):\n    name, limit_factor = 'hang', 0.05\n"
            "    def step(self, layer):\n        time.sleep(600)\n"
            "contenders.contenders_for = lambda case, platform: [Hang, TwoCalls]"
        )
        code, results = self.run_with(change, "--cases", "2 x 1 over 48", "--limit", "60", "--strict")
        self.assertEqual(
            [(r["contender"], r["status"]) for r in results["rows"]],
            [("hang", "error"), ("sinkcache append, attend", "ok"), ("sinkcache append, attend", "ok")],
        )
        self.assertIn("longer than 3 s", results["rows"][0]["note"])
        self.assertEqual(code, 1)

    def test_a_device_failure_restarts_the_run(self):
        change = (
            "class Fault(Step):\n    name = 'fault'\n"
            "    def step(self, layer):\n        raise RuntimeError('illegal address')\n"
            "first = '--resume' not in sys.argv\nrun.alive = lambda platform: not first\n"
            "contenders.contenders_for = lambda case, platform: [Fault, TwoCalls]"
        )
        code, results = self.run_with(change, "--cases", "2 x 1 over 48")
        self.assertEqual(
            [(r["contender"], r["status"]) for r in results["rows"]],
            [
                ("fault", "error"),
                ("fault", "error"),
                ("sinkcache append, attend", "ok"),
                ("sinkcache append, attend", "ok"),
            ],
        )
        self.assertEqual(code, 0)

    def test_without_time_cases_are_listed_as_left_out(self):
        code, results = self.run_with("", "--budget", "0")
        self.assertEqual(len(results["left_out"]), len(smoke_cases()))
        self.assertEqual((code, results["rows"]), (0, []))


class Report(unittest.TestCase):
    def results(self, ours, flash):
        main = {"n_seqs": 1, "cached": 2048, "chunk": 1, "start": 0, **report.MAIN, "status": "ok", "key": "k"}
        rows = [
            {
                **main,
                "contender": "sinkcache skc_step",
                "family": "sinkcache",
                "mode": "graph",
                "us": ours,
                "gb_s": 1.0,
            },
            {**main, "contender": "torch SDPA, flash", "family": "window", "mode": "graph", "us": flash, "gb_s": 1.0},
        ]
        return {"rows": rows, "copy_bytes_per_s": 3e12}

    def test_aims_are_evaluated_on_rows_and_undecided_without_them(self):
        for ours, flash, step, ratio in ((7.5, 10.0, True, True), (9.0, 10.0, False, False)):
            found = {v.aim: v.holds for v in report.aims(self.results(ours, flash), None)}
            self.assertEqual(found["step of 1 sequence, 2048 cached, <= 8 us"], step)
            self.assertEqual(found["1 sequences: over the best attention on a pre-rotated window, >= 1.2 x"], ratio)
            self.assertIsNone(found["64 sequences: over StreamingLLM eager, >= 20 x"])
        # A wrong row does not count.
        results = self.results(7.5, 10.0)
        results["rows"][0]["status"] = "wrong"
        self.assertFalse(any(v.holds for v in report.aims(results, None)))
        report.table(report.aims(results, None))

    def test_the_exit_code_tells_of_what_failed_or_was_left_out(self):
        good = {"check": "cuda: steps", "ok": True, "said": ""}
        left = {**good, "ok": False, "said": "left out: no time"}
        failed = {**good, "ok": False}
        base = {"device": {"name": "x"}, "commit": "", "date": "", "copy_bytes_per_s": 1, "platform": "cpu"}
        row = {"key": "k", "contender": "c", "family": "sinkcache", "status": "ok"}
        for checks, row_status, left_out, code, said in (
            ([good], {}, [], 0, "1 of 1 passed\n"),
            ([good, left], {}, [], 1, "1 of 2 passed, 1 left out for time\n"),
            ([good, failed], {}, [], 1, "1 of 2 passed\n    FAILED cuda: steps\n"),
            ([good], {"status": "wrong"}, [], 1, ""),
            ([good], {"status": "error", "family": "window"}, [], 0, ""),
            ([good], {}, ["k"], 1, ""),
        ):
            with tempfile.TemporaryDirectory() as folder:
                results = {**base, "rows": [{**row, **row_status}], "left_out": left_out}
                for name, content in (("gpu_check", {"rows": checks}), ("results", results)):
                    (pathlib.Path(folder) / f"{name}.json").write_text(json.dumps(content))
                done = subprocess.run(
                    [sys.executable, str(HERE / "report.py"), folder], stdout=subprocess.PIPE, text=True
                )
            self.assertEqual(done.returncode, code, (checks, done.stdout))
            self.assertIn(said, done.stdout)

    def test_published_times_stand_beside_what_was_measured_at_the_same_length(self):
        def row(cached, contender, family, us, **more):
            case = {"n_seqs": 1, "cached": cached, "chunk": 1, "start": 0, **report.MAIN}
            return {**case, "contender": contender, "family": family, "mode": "graph", "us": us, "status": "ok"} | more

        rows = [
            row(2048, "sinkcache skc_step", "sinkcache", 7.0),
            row(2048, "FlashInfer, XQA", "window", 9.0),
            row(8192, "FlashInfer, XQA", "window", 15.0, status="wrong"),
            row(4096, "FlashInfer, XQA", "window", 11.0, dtype="f16"),
        ]
        results = {"rows": rows, "copy_bytes_per_s": 0}
        found = {p.cached: (p.xqa, p.xqa_here, p.sinkcache) for p in report.published_lines(results)}
        self.assertEqual(found[2048], (8.1, 9.0, 7.0))
        self.assertEqual(found[8192], (14.5, None, None))
        self.assertEqual(found[4096], (10.5, None, None))
        self.assertEqual(len(report.published_table(results).splitlines()), 2)
        self.assertEqual(report.published_table({**results, "rows": []}), "")

    def test_measured_columns_alone_are_not_compared_with_the_committed_predictions(self):
        import floors

        table = "| aim | predicted | measured |\n|---|---|---|\n| x | {} | {} |\n\n| a | b |\n|---|---|\n| c | {} |\n"
        self.assertEqual(floors.strip(table.format(1, 2, 3)), floors.strip(table.format(1, "none", 3)))
        self.assertNotEqual(floors.strip(table.format(1, 2, 3)), floors.strip(table.format(2, 2, 3)))
        self.assertNotEqual(floors.strip(table.format(1, 2, 3)), floors.strip(table.format(1, 2, 4)))

    def test_every_predicted_aim_is_evaluated_by_the_report(self):
        import floors

        predicted = {a.aim for a in model.aims(floors.resources(), DEVICES["H100 SXM"])}
        evaluated = {v.aim for v in report.aims(self.results(1, 1), None)}
        self.assertEqual(predicted - evaluated, set())


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    unittest.main()
