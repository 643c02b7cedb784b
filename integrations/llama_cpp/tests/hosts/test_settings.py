"""Settings of the library: what is wrong is refused with the value and what is allowed; what is right is used."""
import unittest

import places
import process
import server

HOST = [places.PROGRAMS / "llama-completion", "-m", places.MODEL, "-t", 1, "-tb", 1, "-c", 256, "--no-warmup",
        "--temp", 0, "-no-cnv", "--no-display-prompt", "--ignore-eos", "-p", places.TEXT[:100]]


class Settings(unittest.TestCase):
    def run_host(self, settings, tokens=5, arguments=()):
        return process.run([*HOST, "-n", tokens, *arguments], process.environment(settings))

    def test_values_that_are_wrong(self):
        numbers = ["-1", "4k", " 4", "1.5", "99999999999999999999", "0x10"]
        wrong = {name: numbers for name in ("sink", "window", "length", "max_rewind")}
        wrong["window"] = ["0", *numbers]
        wrong["length"] = ["0", *numbers]
        wrong.update(kv=["q5", "f16/", "f16,f16", "F16"], unsupported=["maybe", "STOCK"], log=["loud", "2"],
                     checkpoints=["yes"])
        for name, values in wrong.items():
            for value in values:
                with self.subTest(f"{name}={value}"):
                    code, out, err = self.run_host({name: value})
                    self.assertNotEqual(code, 0)
                    self.assertGreater(code, 0, "ended by a signal")
                    self.assertEqual(out.strip(), "")
                    self.assertIn(f"SINKCACHE_LLAMA_{name.upper()}", err)
                    self.assertIn(value, err)
                    self.assertIn("allowed", err)

    def test_a_name_that_is_none(self):
        code, _, err = self.run_host({"windows": 252})
        self.assertGreater(code, 0, "it ended with 0, or by a signal")
        self.assertIn("SINKCACHE_LLAMA_WINDOWS is not a setting", err)

    def test_a_cache_that_is_too_large(self):
        code, _, err = self.run_host({"window": 2**28})
        self.assertGreater(code, 0, "it ended with 0, or by a signal")
        self.assertIn("sinkcache: ", err)

    def test_the_longest_stream(self):
        """LENGTH is what a host is told, and where it ends."""
        code, out, err = self.run_host({"window": 252, "length": 400}, 1000)
        self.assertGreaterEqual(code, 0, err)
        self.assertLess(len(out), 500)
        short = server.serve(self, "-c", 256, "-np", 1, settings={"window": 252, "length": 400})
        answer = short.complete(places.TEXT[:100], 1000)
        self.assertEqual((answer.tokens + 101, answer.truncated), (400, True))

    def test_storage(self):
        """Of KV, or of the host's -ctk and -ctv; narrower storage takes less memory, and says so."""
        sizes = {}
        for kv in ("f32", "f16", "bf16", "q8", "q4", "q8/q4"):
            code, out, err = self.run_host({"kv": kv, "window": 4000}, 600)
            self.assertEqual(code, 0, err)
            self.assertGreater(len(out), 500)
            sizes[kv] = int(err.split(" tokens of each, ")[1].split(" MiB")[0])
        self.assertGreater(sizes["f32"], sizes["f16"])
        self.assertGreater(sizes["f16"], sizes["q8"])
        self.assertGreater(sizes["q8"], sizes["q4"])
        for arguments, kv in ((["-ctk", "f32", "-ctv", "f32"], "f32"), (["-ctk", "q8_0", "-ctv", "q4_0"], "q8/q4")):
            code, _, err = self.run_host({"window": 4000}, 5, arguments)
            self.assertEqual(code, 0, err)
            self.assertIn(f" tokens of each, {sizes[kv]} MiB", err)

    def test_quiet(self):
        code, _, err = self.run_host({"log": "quiet"})
        self.assertEqual(code, 0, err)
        self.assertNotIn("sinkcache", err)


if __name__ == "__main__":
    unittest.main()
