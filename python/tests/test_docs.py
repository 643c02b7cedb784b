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

# A folder "model".
TINY_MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, eos_token_id=None, bos_token_id=1, pad_token_id=0)
LlamaForCausalLM(config).save_pretrained("model")
"""


class Documents(unittest.TestCase):
    def run_all(self, name, before=""):
        """Programs of a document, and what each prints; None of one that this Python cannot run. `before` is a program
        that makes the files they read."""
        printed = []
        blocks = BLOCK.findall((ROOT / name).read_text())
        self.assertTrue(blocks, name)
        for block in blocks:
            missing = [module for module in OPTIONAL if not importlib.util.find_spec(module)]
            if any(f"import {module}" in block or f"from {module}" in block for module in missing):
                printed.append(None)
                continue
            with tempfile.TemporaryDirectory() as folder:
                if before:
                    subprocess.run([sys.executable, "-c", before], cwd=folder, capture_output=True, check=True)
                done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, f"{name}: {block}{done.stderr}")
            printed.append(done.stdout)
        return blocks, printed

    def test_the_readme(self):
        _, printed = self.run_all("README.md")
        self.assertEqual(printed, ["256\n"])

    def test_the_package_s_readme(self):
        _, printed = self.run_all("python/README.md")
        self.assertIn("0: 256 of 1000 tokens held", printed[0])

    def test_the_document_on_python(self):
        blocks, printed = self.run_all("docs/python.md")
        self.assertEqual(len(blocks[0].strip().splitlines()), 10)
        self.assertIn("0: 256 of 1000 tokens held", printed[0])
        self.assertEqual(printed[1].splitlines()[0], "32")
        self.assertIn("num_tokens[0] is 100", printed[1])
        if printed[2] is None:
            self.skipTest("skipped: no PyTorch with transformers")
        self.assertEqual(printed[2].splitlines()[0], "320 128")

    def test_the_document_on_other_implementations(self):
        blocks, printed = self.run_all("docs/coming-from.md", TINY_MODEL)
        if None in printed:
            self.skipTest("skipped: no PyTorch with transformers")
        self.assertEqual(printed, ["150 64\n", "150 64\n", "149 64\n"])


if __name__ == "__main__":
    unittest.main()
