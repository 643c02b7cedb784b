"""What `cmake --install` puts into a prefix works from there: the launcher and the Python module find the library."""
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import places
import process

# Of the folder that the library was built in, with its subfolders.
SCRIPT = places.LIBRARY.parent.parent / "cmake_install.cmake"


@unittest.skipUnless(SCRIPT.is_file() and shutil.which("cmake"), "the library does not lie in its build folder")
class Installed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.prefix = pathlib.Path(folder.name).resolve()
        subprocess.run(["cmake", f"-DCMAKE_INSTALL_PREFIX={cls.prefix}", "-P", SCRIPT], check=True, capture_output=True)

    def test_launcher(self):
        code, out, err = process.run(
            [self.prefix / "bin/sinkcache-llama", "--window", 300, "--", places.PROGRAMS / "llama-completion", "-m",
             places.MODEL, "-t", 1, "-tb", 1, "--no-warmup", "-no-cnv", "--no-display-prompt", "--ignore-eos",
             "-n", 500, "-p", places.TEXT[:100]], process.environment(preload=False))
        self.assertEqual(code, 0, err)
        self.assertIn("4 sinks and the last 300 tokens", err)
        self.assertGreater(len(out), 450)

    def test_python_module(self):
        program = ("import sys; sys.path.insert(0, sys.argv[1]); import sinkcache_llama; "
                   "print(sinkcache_llama._find_library(None))")
        code, out, err = process.run(["/usr/bin/env", "python3", "-B", "-c", program, self.prefix / "share/sinkcache"],
                                     process.environment(preload=False))
        self.assertEqual(code, 0, err)
        self.assertEqual(pathlib.Path(out.strip()).name, "libsinkcache_llama.so")
        self.assertTrue(pathlib.Path(out.strip()).is_relative_to(self.prefix))

    def test_shim(self):
        """It finds the library beside it; llama.cpp is where the loader is told."""
        shims = list(self.prefix.glob("lib*/**/shim/libllama.so"))
        self.assertEqual(len(shims), 1, shims)
        program = ("import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); "
                   "print(bool(l.llama_init_from_model), bool(l.llama_backend_init))")
        env = process.environment(preload=False)
        env["LD_LIBRARY_PATH"] = str(places.PROGRAMS)
        code, out, err = process.run(["/usr/bin/env", "python3", "-B", "-c", program, shims[0]], env)
        self.assertEqual((code, out), (0, "True True\n"), err)


if __name__ == "__main__":
    unittest.main()
