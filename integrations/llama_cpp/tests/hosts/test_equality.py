"""Greedy text of llama-server with the library, beside that of stock llama.cpp."""
import unittest

import places
import server

F32 = ["-ctk", "f32", "-ctv", "f32"]


class Equality(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # What a cache of sinks and a window does, stock does too if it shifts its cache by one cell for every token.
        cls.stock = server.serve(cls, "-c", 256, "-np", 1, "--context-shift", "-fa", "off", *F32)

    def shifted_by_one(self, prompt, tokens):
        # Three tokens and the one that begins the prompt are kept: four sinks.
        return self.stock.complete(prompt, tokens, n_keep=3, n_discard=1, cache_prompt=False)

    def test_below_the_window(self):
        ours = server.serve(self, "-c", 256, "-np", 1, *F32, settings={})
        for start in (0, 40000, 200000):
            prompt = places.TEXT[start:start + 100]
            stock, answer = (host.post("/completion", host.request(prompt, 150, n_probs=5, cache_prompt=False))
                             for host in (self.stock, ours))
            self.assertEqual(answer["content"], stock["content"])
            # The logarithms of the five likeliest tokens' probabilities. The model's weights are f16, and so is, after
            # rounding, what they are multiplied with.
            for step, (one, other) in enumerate(zip(answer["completion_probabilities"],
                                                    stock["completion_probabilities"], strict=True)):
                self.assertEqual(len(one["top_logprobs"]), 5)
                for ours_, stocks in zip(one["top_logprobs"], other["top_logprobs"]):
                    self.assertAlmostEqual(ours_["logprob"], stocks["logprob"], delta=5e-3, msg=f"token {step}")

    def test_past_the_window(self):
        # Stock's context of 256 holds 255 tokens while it computes one more.
        ours = server.serve(self, "-c", 255, "-np", 1, *F32, settings={"sink": 4, "window": 251})
        narrower = server.serve(self, "-c", 124, "-np", 1, *F32, settings={"sink": 4, "window": 120})
        prompt = places.TEXT[:200]
        stock = self.shifted_by_one(prompt, 1200)
        self.assertEqual(stock.tokens, 1200)
        answer = ours.complete(prompt, 1200)
        self.assertEqual(answer.tokens, 1200)
        self.assertEqual(answer.text, stock.text)
        # The text depends on what the cache holds: with half the window it is another.
        self.assertNotEqual(narrower.complete(prompt, 1200).text, stock.text)


if __name__ == "__main__":
    unittest.main()
