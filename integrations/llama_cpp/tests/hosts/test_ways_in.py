"""Ways to bring the library into a program, and programs other than the server."""
import subprocess
import unittest

import places
import process
import server

PROMPT = places.TEXT[:200]


class BackendPath(unittest.TestCase):
    """For programs whose start one cannot change: llama.cpp itself loads the library as a backend."""

    def test_the_server_starts_anew(self):
        env = process.environment({"window": 252}, preload=False)
        env["GGML_BACKEND_PATH"] = str(places.LIBRARY)
        ours = server.serve(self, "-c", 256, "-np", 1, env=env)
        answer = ours.complete(PROMPT, 1000)
        self.assertEqual((answer.tokens, answer.truncated), (1000, False))
        preloaded = server.serve(self, "-c", 256, "-np", 1, settings={"window": 252})
        self.assertEqual(answer.text, preloaded.complete(PROMPT, 1000).text)


class Launcher(unittest.TestCase):
    def test_it_starts_the_server(self):
        env = process.environment(preload=False)
        started = process.Process(
            [places.LAUNCHER, "--library", places.LIBRARY, "--sink", 2, "--window", 300, "--",
             places.PROGRAMS / "llama-completion", *Programs.COMMON, *Programs.ONCE, "-n", 400], env)
        self.addCleanup(started.stop)
        self.assertEqual(started.popen.wait(120), 0, started.log())
        self.assertIn("2 sinks", started.log())


class Programs(unittest.TestCase):
    COMMON = ["-m", places.MODEL, "-t", 1, "-tb", 1, "-c", 256, "--no-warmup", "--temp", 0]
    ONCE = ["-no-cnv", "--no-display-prompt", "--ignore-eos", "-p", PROMPT]

    def completion(self, tokens, env):
        return process.run([places.PROGRAMS / "llama-completion", *self.COMMON, *self.ONCE, "-n", tokens], env)

    def test_completion(self):
        """llama-completion of stock stops, or fails, when its context is full."""
        _, stock, _ = self.completion(2000, process.environment(preload=False))
        self.assertLess(len(stock), 300)
        code, ours, log = self.completion(2000, process.environment({}))
        self.assertEqual(code, 0, log)
        # A token is a byte of text, but for the few that are not printed.
        self.assertGreater(len(ours), 1900)
        self.assertEqual(ours[:50], stock[:50])

    def cli(self, env):
        questions = "\n".join(places.TEXT[i:i + 100].replace("\n", " ") for i in (300, 5000)) + "\n/exit\n"
        return process.run([places.PROGRAMS / "llama-cli", *self.COMMON, "--ignore-eos", "-n", 600], env, questions)

    def test_cli(self):
        """Two rounds, each longer than the context."""
        _, stock, _ = self.cli(process.environment(preload=False))
        self.assertLess(len(stock), 1500)
        code, ours, log = self.cli(process.environment({}))
        self.assertEqual(code, 0, log)
        self.assertGreater(len(ours), 1200)

    def test_other_programs_do_not_notice(self):
        """LD_PRELOAD reaches every child: the library must do nothing there, and print nothing."""
        for command in (["/bin/true"], ["/bin/sh", "-c", "exit 0"], ["/usr/bin/env", "python3", "-c", "pass"]):
            code, out, err = process.run(command, process.environment({}))
            self.assertEqual((code, out, err), (0, "", ""), command)
        eager = process.environment({})
        eager["LD_BIND_NOW"] = "1"
        self.assertEqual(process.run(["/bin/true"], eager), (0, "", ""))

    def test_it_needs_no_llama_cpp(self):
        """It is one file: it brings no second libllama or libggml into a process."""
        needed = subprocess.run(["readelf", "-d", places.LIBRARY], capture_output=True, text=True, check=True).stdout
        needed = [line for line in needed.splitlines() if "NEEDED" in line]
        self.assertTrue(needed)
        for line in needed:
            self.assertNotRegex(line, "llama|ggml|sinkcache")


if __name__ == "__main__":
    unittest.main()
