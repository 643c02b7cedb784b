"""sinkcache-llama: what it refuses, with which words, and what the program gets that it starts.

The programs here are small ones that a C compiler makes: with shared libraries called libllama, and without.
"""
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import unittest

LAUNCHER = pathlib.Path(__file__).resolve().parent / "sinkcache-llama"
COMPILER = os.environ.get("CC", "cc")
LLAMA = "int llama_init_from_model(void) { return 0; }\n"
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
extern char **environ;
int llama_init_from_model(void);
int main(int argc, char **argv) {
    for (int i = 0; i < argc; ++i) printf("argument %s\n", argv[i]);
    for (char **e = environ; *e; ++e) printf("%s\n", *e);
    return CALL;
}
"""


@unittest.skipUnless(shutil.which(COMPILER) and shutil.which("ldd"), "no C compiler, or no ldd")
class Launcher(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name).resolve()
        cls.library = cls.folder / "libsinkcache_llama.so"
        cls.compile(cls.library, "int nothing;\n", "-shared")

    @classmethod
    def compile(cls, output, source, *options):
        output.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([COMPILER, "-fPIC", "-x", "c", "-", "-x", "none", "-o", output, *options], input=source,
                       text=True, check=True)
        return output

    def host(self, version):
        """A program linked with a libllama.so of that version, as a release lays them out."""
        folder = self.folder / f"host-{version}"
        if not folder.exists():
            self.compile(folder / f"libllama.so{version}", LLAMA, "-shared", "-Wl,-soname,libllama.so.0")
            if version != ".0":
                (folder / "libllama.so.0").symlink_to(f"libllama.so{version}")
            self.compile(folder / "llama-server", PROGRAM, "-DCALL=llama_init_from_model()",
                         folder / f"libllama.so{version}", "-Wl,-rpath,$ORIGIN")
        return folder / "llama-server"

    def start(self, *arguments, library=True, env=None):
        options = ["--library", self.library] if library is True else ["--library", library] if library else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SINKCACHE_")}
        environment.pop("LD_PRELOAD", None)
        return subprocess.run([str(a) for a in (LAUNCHER, *options, *arguments)], env={**environment, **(env or {})},
                              capture_output=True, text=True, check=False)

    def refuses(self, code, texts, *arguments, **options):
        done = self.start(*arguments, **options)
        self.assertEqual((done.returncode, done.stdout), (code, ""), done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("sinkcache-llama: "), done.stderr)
        for text in texts:
            self.assertIn(str(text), done.stderr)

    def test_arguments(self):
        host = self.host(".0.6.0")
        for option in ("--sink", "--window", "--length", "--max-rewind"):
            for value in ("", "-1", "4k", "1.5", " 4"):
                self.refuses(2, [f"{option} is '{value}'", "whole number"], option, value, "--", host)
        for value in ("q5", "f16/", "/q8", "f16/q8/q4", ""):
            self.refuses(2, [f"'{value}'", "f32, f16, bf16, q8, q4"], "--kv-dtype", value, "--", host)
        self.refuses(2, ["'maybe'", "fail and stock"], "--unsupported", "maybe", "--", host)
        self.refuses(2, ["'yes'", "on and off"], "--checkpoints", "yes", "--", host)
        self.refuses(2, ["'on'", "auto and off"], "--gpu", "on", "--", host)
        self.refuses(2, ["'--windows'", "--help"], "--windows", "5", "--", host)
        self.refuses(2, ["--window needs a value"], "--window")
        self.refuses(2, ["no program"], "--window", "5")
        self.refuses(2, ["no program"], "--window", "5", "--")

    def test_library(self):
        host = self.host(".0.6.0")
        self.refuses(127, ["/nowhere/lib.so", "no such file"], "--", host, library="/nowhere/lib.so")
        self.refuses(127, ["no libsinkcache_llama.so in", "--library"], "--", host, library=None)
        blank = self.folder / "a folder" / "libsinkcache_llama.so"
        blank.parent.mkdir()
        shutil.copy(self.library, blank)
        self.refuses(127, [blank, "LD_PRELOAD", "blank"], "--", host, library=blank)

    def test_library_where_it_is_installed(self):
        host = self.host(".0.6.0")
        for library in ("bin", "lib", "lib64", "lib/x86_64-linux-gnu"):
            with self.subTest(library), tempfile.TemporaryDirectory() as prefix:
                prefix = pathlib.Path(prefix).resolve()
                for folder in ("bin", library):
                    (prefix / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(LAUNCHER, prefix / "bin")
                shutil.copy(self.library, prefix / library)
                (prefix / "link").symlink_to("bin/sinkcache-llama")
                done = subprocess.run([prefix / "link", "--check", host], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertIn(str(prefix / library / "libsinkcache_llama.so"), done.stdout)

    def test_programs_that_are_none(self):
        self.refuses(127, ["no program 'llama-serverr'"], "--", "llama-serverr")
        self.refuses(127, ["no program 'cd'"], "--", "cd")
        self.refuses(127, ["no program '/nowhere/llama-server'"], "--", "/nowhere/llama-server")
        text = self.folder / "text"
        text.write_text("no program\n")
        self.refuses(126, [text, "is not a program"], "--", text)
        text.chmod(0o755)
        self.refuses(126, [text, "no program for Linux"], "--", text)
        self.refuses(126, [self.folder, "is not a program"], "--", self.folder)
        script = self.folder / "script"
        script.write_text("#!/bin/sh\nexit 0\n")
        script.chmod(0o755)
        self.refuses(126, [script, "is a script", "install()"], "--", script)

    def test_static_builds(self):
        # llama.cpp's libraries linked in; and all libraries, in both forms that a static program has.
        for name, options in (("part", []), ("static", ["-static"]), ("static-pie", ["-static-pie"])):
            with self.subTest(name):
                program = self.compile(self.folder / name, LLAMA + PROGRAM, "-DCALL=llama_init_from_model()", *options)
                self.refuses(126, [program, "statically", "BUILD_SHARED_LIBS=ON"], "--", program)

    def test_other_programs(self):
        plain = self.compile(self.folder / "plain", PROGRAM, "-DCALL=0")
        self.refuses(126, [plain, "not linked with libllama.so", f"GGML_BACKEND_PATH={self.library}"], "--", plain)
        static = self.compile(self.folder / "plain-static", PROGRAM, "-DCALL=0", "-static")
        self.refuses(126, [static, "statically", "no llama.cpp"], "--", static)
        python = self.compile(self.folder / "python3.11", PROGRAM, "-DCALL=0")
        self.refuses(126, [python, "install()"], "--", python)

    def test_versions(self):
        for version, named in ((".0.7.0", "0.7"), (".0.5.1", "0.5"), (".1.6.0", "1.6")):
            self.refuses(126, [f"libllama.so{version}", f"llama.cpp {named}", "for 0.6"], "--", self.host(version))
        unknown = self.folder / "bin/sinkcache-llama"
        unknown.parent.mkdir()
        unknown.write_text(LAUNCHER.read_text().replace("\nversion=0.6\n", "\nversion=\n"))
        unknown.chmod(0o755)
        done = subprocess.run([unknown, "--library", self.library, "--check", self.host(".0.7.0")],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        # The library decides about a file that has no version in its name.
        for version in (".0.6.0", ".0.6.7", ".0"):
            self.assertEqual(self.start("--check", "--", self.host(version)).returncode, 0)

    def test_missing_libraries(self):
        folder = self.folder / "incomplete"
        self.compile(folder / "libllama.so.0", LLAMA, "-shared", "-Wl,-soname,libllama.so.0")
        program = self.compile(folder / "llama-server", PROGRAM, "-DCALL=llama_init_from_model()",
                               folder / "libllama.so.0")
        self.refuses(126, [program, "does not find its libraries: libllama.so.0"], "--", program)
        # What the loader is told is what counts.
        found = self.start("--check", "--", program, env={"LD_LIBRARY_PATH": str(folder)})
        self.assertEqual(found.returncode, 0, found.stderr)

    def test_set_user_id(self):
        program = self.folder / "raised"
        shutil.copy(self.host(".0.6.0"), program)
        for bit in (stat.S_ISUID, stat.S_ISGID):
            program.chmod(0o755 | bit)
            self.refuses(126, [program, "set-user-ID"], "--", program)

    def test_what_the_program_gets(self):
        host = self.host(".0.6.0")
        other = self.compile(self.folder / "libother.so", "int other;\n", "-shared")
        done = self.start("--sink=4", "--window", 4092, "--kv-dtype", "q8/q4", "--length", 100000, "--max-rewind", 64,
                          "--unsupported", "stock", "--checkpoints", "on", "--gpu", "off",
                          "--", host, "--window", "a b", env={"LD_PRELOAD": str(other)})
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual([line for line in lines if line.startswith("argument ")],
                         [f"argument {host}", "argument --window", "argument a b"])
        settings = {line for line in lines if line.startswith(("SINKCACHE_", "LD_PRELOAD="))}
        self.assertEqual(settings, {
            "SINKCACHE_LLAMA_SINK=4", "SINKCACHE_LLAMA_WINDOW=4092", "SINKCACHE_LLAMA_KV=q8/q4",
            "SINKCACHE_LLAMA_LENGTH=100000", "SINKCACHE_LLAMA_CHECKPOINTS=on", "SINKCACHE_LLAMA_MAX_REWIND=64",
            "SINKCACHE_LLAMA_UNSUPPORTED=stock", "SINKCACHE_LLAMA_GPU=off",
            f"LD_PRELOAD={self.library}:{other}"})

    def test_a_program_of_the_path_and_no_options(self):
        host = self.host(".0.6.0")
        done = self.start("llama-server", "--sink", env={"PATH": f"{host.parent}:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("argument --sink\n", done.stdout)
        self.assertNotIn("SINKCACHE_", done.stdout)

    def test_help(self):
        done = self.start("--help", library=None)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for option in ("--sink", "--window", "--kv-dtype", "--length", "--max-rewind", "--checkpoints",
                       "--gpu", "--unsupported", "--library", "--check "):
            self.assertIn(option, done.stdout)


if __name__ == "__main__":
    unittest.main()
