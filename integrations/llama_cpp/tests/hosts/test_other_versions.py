"""A llama.cpp that is not the one the library was compiled for: it is refused, or left alone, and never guessed at."""
import os
import pathlib
import subprocess
import tempfile
import unittest

import places
import process

HERE = pathlib.Path(__file__).resolve().parent
COMPILER = os.environ.get("CC", "cc")


class OtherVersions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)

    def build(self, which):
        """The small host, linked with the pretending library, or for 0 with llama.cpp itself."""
        program = self.folder / f"host-{which}"
        libraries = [f"-L{places.PROGRAMS}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{places.PROGRAMS}"]
        common = [COMPILER, f"-I{places.PROGRAMS.parent / 'include'}", f"-DWHICH={which}", "-fPIC"]
        if which:
            pretend = self.folder / f"libpretend-{which}.so"
            subprocess.run([*common, f'-DREAL="{places.PROGRAMS / "libllama.so.0"}"', "-shared", "-o", pretend,
                            HERE / "pretend_llama.c", "-Wl,--no-as-needed", *libraries], check=True)
            libraries = [pretend, f"-Wl,-rpath,{self.folder}", *libraries]
        subprocess.run([*common, "-o", program, HERE / "small_host.c", "-Wl,--no-as-needed", *libraries], check=True)
        return program

    def run_host(self, which, settings, preload=True):
        return process.run([self.build(which), places.PROGRAMS, places.MODEL], process.environment(settings, preload))

    def test_this_version(self):
        code, out, err = self.run_host(0, {})
        self.assertEqual((code, out), (0, f"a context of {2**24}\n"), err)

    def test_versions_that_are_refused(self):
        for which, texts in ((1, ["llama_context_params", "bytes"]), (2, ["llama_context_params", "defaults"]),
                             (3, ["q8_9", "q8_0"])):
            with self.subTest(which):
                # The pretending library by itself works.
                code, out, err = self.run_host(which, {}, preload=False)
                self.assertEqual(code, 0, out + err)
                stock = out
                for settings in ({}, {"unsupported": "fail"}):
                    code, out, err = self.run_host(which, settings)
                    self.assertEqual((code, out), (1, "no context\n"), err)
                    for text in (f"libpretend-{which}.so", "not the llama.cpp", "SINKCACHE_LLAMA_UNSUPPORTED", *texts):
                        self.assertIn(text, err)
                # Its own struct arrives whole, whatever its size.
                code, out, err = self.run_host(which, {"unsupported": "stock"})
                self.assertEqual((code, out), (0, stock), err)
                for text in (f"libpretend-{which}.so", "own cache", *texts):
                    self.assertIn(text, err)


if __name__ == "__main__":
    unittest.main()
