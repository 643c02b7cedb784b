"""The programs of the documents run, and print what their comments say."""
import importlib.util
import re
import subprocess
import sys
import tempfile
import unittest

from support import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
OPTIONAL = ("torch", "transformers")
DOCUMENTS = ("README.md", "docs/python.md", "python/README.md")


class Documents(unittest.TestCase):
    def run_all(self, name):
        printed = []
        blocks = BLOCK.findall((ROOT / name).read_text())
        for block in blocks:
            if any(f"import {m}" in block or f"from {m}" in block for m in OPTIONAL if not importlib.util.find_spec(m)):
                printed.append(None)
                continue
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, f"{name}: {block}{done.stderr}")
            printed.append(done.stdout)
        return blocks, printed

    def test_programs_of_the_documents(self):
        for name in DOCUMENTS:
            with self.subTest(name):
                blocks, _ = self.run_all(name)
                self.assertTrue(blocks)

    def test_what_they_print(self):
        blocks, printed = self.run_all("docs/python.md")
        self.assertIn("0: 256 of 1000 tokens held", printed[0])
        self.assertEqual(len(blocks[0].strip().splitlines()), 10)
        self.assertEqual(printed[1].splitlines()[0], "32")
        self.assertIn("num_tokens[0] is 100", printed[1])
        if printed[2] is None:
            self.skipTest("skipped: no PyTorch with transformers")
        self.assertEqual(printed[2].splitlines()[0], "320 128")


if __name__ == "__main__":
    unittest.main()
