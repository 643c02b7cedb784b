"""The binding is the header's: structs, functions, constants, statuses."""
import ctypes
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import sinkcache
from sinkcache import _abi, _errors
from sinkcache._library import lib
from support import ROOT

STRUCTS = {name: value for name, value in vars(_abi).items()
           if isinstance(value, type) and issubclass(value, ctypes.Structure)}
LIBRARY = re.compile(r"-l:(\S+)")


class Abi(unittest.TestCase):
    def test_structs_are_laid_out_as_a_c_compiler_does(self):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            self.skipTest("skipped: no C compiler")
        lines, want = [], []
        for name, struct in STRUCTS.items():
            lines.append(f'printf("%zu\\n", sizeof({name}));')
            want.append(ctypes.sizeof(struct))
            for field, _ in struct._fields_:
                lines.append(f'printf("%zu %zu\\n", offsetof({name}, {field}), sizeof((({name} *)0)->{field}));')
                place = getattr(struct, field)
                want += [place.offset, place.size]
        self.assertGreater(len(want), 300)
        program = "#include <sinkcache.h>\n#include <stdio.h>\nint main(void) {" + "\n".join(lines) + "}"
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "layout.c")
            file.write_text(program)
            command = [compiler, *sinkcache.get_cflags().split(), str(file), "-o", folder + "/layout"]
            subprocess.run(command, check=True)
            got = subprocess.run([folder + "/layout"], check=True, capture_output=True, text=True).stdout
        self.assertEqual([int(number) for number in got.split()], want)

    def test_every_function_is_declared(self):
        for name in (ROOT / "cpp_tests" / "exports.txt").read_text().split():
            self.assertIsNotNone(getattr(lib, name).argtypes, name)

    def test_constants_are_the_library_s(self):
        names = [name for name in vars(_abi) if name.startswith("SKC_")]
        self.assertGreater(len(names), 50)
        for name in names:
            value = ctypes.c_int64()
            if lib.skc_constant(name.encode(), ctypes.byref(value)) == 0:
                self.assertEqual(value.value, getattr(_abi, name), name)
            else:
                self.fail(name)

    def test_every_status_has_a_name_and_an_exception(self):
        names = {name for name in vars(_abi) if name.startswith("SKC_STATUS_")}
        self.assertEqual(names, {f"SKC_STATUS_{status.name}" for status in sinkcache.Status})
        # A bug of the library, or of this package.
        plain = {sinkcache.Status.OK, sinkcache.Status.NULL_POINTER, sinkcache.Status.VERSION_MISMATCH,
                 sinkcache.Status.INTERNAL}
        self.assertEqual(set(_errors._CLASSES) | plain, set(sinkcache.Status))
        self.assertEqual(_errors.error(-999, "text").status, -999)

    def test_the_binding_is_current(self):
        generator = ROOT / "scripts" / "python_abi.py"
        subprocess.run([sys.executable, generator, "--check"], check=True, capture_output=True)


class Package(unittest.TestCase):
    def test_a_c_program_with_the_package_s_library(self):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler or not sys.platform.startswith("linux"):
            self.skipTest("skipped: no C compiler")
        flags = subprocess.run([sys.executable, "-m", "sinkcache", "--cflags", "--libs"], check=True,
                               capture_output=True, text=True).stdout.split()
        self.assertTrue(any(LIBRARY.fullmatch(flag) for flag in flags), flags)
        with tempfile.TemporaryDirectory() as folder:
            source = ROOT / "examples" / "c" / "minimal.c"
            subprocess.run([compiler, source, "-o", folder + "/minimal", *flags, "-lm"], check=True)
            subprocess.run([folder + "/minimal"], check=True, capture_output=True)

    def test_headers_are_in_the_package(self):
        folder = pathlib.Path(sinkcache.get_include())
        for name in ("sinkcache.h", "sinkcache.hpp"):
            self.assertEqual((folder / name).read_bytes(), (ROOT / "include" / name).read_bytes())

    def test_info(self):
        text = subprocess.run([sys.executable, "-m", "sinkcache", "info"], check=True, capture_output=True,
                              text=True).stdout
        values = dict(line.split(": ", 1) for line in text.splitlines())
        self.assertIn(f"ABI {_abi.SKC_ABI_VERSION}", values["version"])
        self.assertEqual(values["library"], sinkcache.get_library())
        self.assertEqual(values["K and V"], "f32, f16, bf16, q8, q4")
        self.assertIn("decode", values["cpu"])
        self.assertIn("cuda", values)

    def test_bench(self):
        text = subprocess.run([sys.executable, "-m", "sinkcache", "bench", "--seconds", "0.01", "--window", "64",
                               "--heads", "4", "2", "32"], check=True, capture_output=True, text=True).stdout
        lines = [line.split() for line in text.splitlines()[1:]]
        self.assertEqual([line[:3] for line in lines[1:]], [["64", "float32", "1"], ["64", "bfloat16", "1"]])
        self.assertTrue(all(float(line[3]) > 0 for line in lines[1:]))

    def test_a_library_that_is_not_there(self):
        code = "import os; os.environ['SINKCACHE_LIBRARY'] = '/nowhere/lib.so'; import sinkcache"
        failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertIn("ImportError: the sinkcache library cannot be loaded", failed.stderr)
        self.assertIn("/nowhere/lib.so", failed.stderr)

    def test_no_dependency(self):
        code = "import sinkcache, sys; print(*({'numpy', 'torch'} & {name.split('.')[0] for name in sys.modules}))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        self.assertEqual(done.stdout.strip(), "")


if __name__ == "__main__":
    unittest.main()
