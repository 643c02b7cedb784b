"""A llama.cpp that is not the one the library was compiled for: it is refused, or left alone, and never guessed at."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import places
import process

HERE = pathlib.Path(__file__).resolve().parent
# Version 0.7.0-dev (b11739), from PyPI. It was built for glibc 2.38.
NEWER, NEWER_HASH = "llama_cpp_py_sync==0.11739", "c97dd32b41841ab779172f9d20616cc915a73045ae5dca4b81051e6cd2751714"
NEWER_GLIBC = (2, 38)
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

    @unittest.skipUnless(places.EVERYTHING, "a newer llama.cpp is downloaded with --everything")
    def test_a_newer_version(self):
        glibc = tuple(int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))
        if glibc < NEWER_GLIBC:
            self.skipTest(f"{NEWER} needs glibc 2.38, this is {glibc[0]}.{glibc[1]}")
        requirements = self.folder / "requirements"
        requirements.write_text(f"{NEWER} --hash=sha256:{NEWER_HASH}\n")
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                        "--target", self.folder / "newer", "-r", requirements], check=True)
        self.check_newer(self.folder / "newer/llama_cpp_py_sync")

    def check_newer(self, libraries):
        program = self.folder / "newer-host"
        # Its struct is larger by one size_t, as that of the first pretender.
        subprocess.run([COMPILER, f"-I{places.PROGRAMS.parent / 'include'}", "-DWHICH=1", "-o", program,
                        HERE / "small_host.c", libraries / "libllama.so", libraries / "libggml.so.0",
                        libraries / "libggml-base.so.0", f"-Wl,-rpath,{libraries}",
                        "-Wl,--unresolved-symbols=ignore-in-shared-libs"], check=True)
        arguments = [program, libraries, places.MODEL]
        code, stock, err = process.run(arguments, process.environment(preload=False))
        self.assertEqual(code, 0, err)
        for settings, expected in (({}, (1, "no context\n")), ({"unsupported": "stock"}, (0, stock))):
            code, out, err = process.run(arguments, process.environment(settings))
            self.assertEqual((code, out), expected, err)
            self.assertRegex(err, r"libllama\.so.* is not the llama\.cpp .*llama_context_params has \d+ bytes, not \d+")


if __name__ == "__main__":
    unittest.main()
