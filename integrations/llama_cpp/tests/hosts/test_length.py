"""llama-server with a context of 256: streams, prompts and conversations of any length, and rewinds into them."""
import unittest

import places
import same
import server


class Length(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stock = server.serve(cls, "-c", 256, "-np", 1)
        cls.ours = server.serve(cls, "-c", 256, "-np", 1, settings={})

    def test_what_the_server_reports(self):
        """The longest stream instead of the context: by it the server decides when to stop and what to refuse."""
        self.assertEqual(self.stock.get("/props")["default_generation_settings"]["n_ctx"], 256)
        self.assertEqual(self.ours.get("/props")["default_generation_settings"]["n_ctx"], 2**24)
        # Also with a window of its own, whatever context is asked for, by the user or by the server itself.
        for arguments in (("-c", 4096), ()):
            narrow = server.serve(self, *arguments, "-np", 1, settings={"window": 100})
            self.assertEqual(narrow.get("/props")["default_generation_settings"]["n_ctx"], 2**24)
            self.assertEqual(narrow.complete(places.TEXT[:50], 400).tokens, 400)

    def test_5000_tokens(self):
        prompt = places.TEXT[:100]
        stock = self.stock.complete(prompt, 5000)
        self.assertEqual((stock.tokens, stock.truncated), (155, True))
        ours = self.ours.complete(prompt, 5000)
        self.assertEqual((ours.tokens, ours.stop, ours.truncated), (5000, "limit", False))
        # Below the window the two say the same.
        self.assertEqual(ours.text[:100], stock.text[:100])
        # A cache that lost its sinks, or whose positions are wrong, repeats itself or falls silent.
        words = ours.text[-2000:].split()
        self.assertGreater(len(words), 200)
        self.assertGreater(len(set(words)), 5)

    def test_a_prompt_beyond_the_window(self):
        prompt = places.TEXT[:3000]
        with self.assertRaises(server.Refused) as refused:
            self.stock.complete(prompt, 20)
        self.assertEqual(refused.exception.code, 400)
        ours = self.ours.complete(prompt, 20, cache_prompt=False)
        # The prompt and the token that begins it.
        self.assertEqual((ours.read, ours.tokens, ours.truncated), (3001, 20, False))

    def test_a_conversation_goes_on_where_it_was(self):
        prompt = places.TEXT[10000:10100]
        first = self.ours.complete(prompt, 1000)
        longer = prompt + first.text + " And then"
        second = self.ours.compared(longer, 60)
        self.assertLessEqual(second.read, 12)
        self.assertGreaterEqual(second.kept, 1090)
        self.assertGreater(same.agreement(second.steps, self.ours.afresh(longer, 60).steps), 10)

    def test_a_rewind_of_a_few_tokens(self):
        prompt = places.TEXT[20000:20600]
        first = self.ours.complete(prompt, 60)
        other = prompt + first.text[:40] + " But"
        second = self.ours.compared(other, 60)
        self.assertLessEqual(second.read, 12)
        self.assertGreater(same.agreement(second.steps, self.ours.afresh(other, 60).steps), 10)

    def test_a_rewind_to_what_has_left_the_window(self):
        """The server reads all of it again, by itself."""
        prompt = places.TEXT[30000:30100]
        first = self.ours.complete(prompt, 2000)
        other = prompt + first.text[:700] + " But"
        second = self.ours.compared(other, 60)
        self.assertEqual(second.read + second.kept, len(other) + 1)
        self.assertGreater(same.agreement(second.steps, self.ours.afresh(other, 60).steps), 10)

    def test_the_comparison_sees_another_window(self):
        narrower = server.serve(self, "-c", 200, "-np", 1, settings={})
        prompt = places.TEXT[40000:40600]
        with self.assertRaisesRegex(AssertionError, "likelier than the next best"):
            same.agreement(narrower.afresh(prompt, 400).steps, self.ours.afresh(prompt, 400).steps)

    def test_a_shift_is_not_needed(self):
        """--context-shift is switched off by the server, since the cache says that it cannot shift."""
        shifting = server.serve(self, "-c", 256, "-np", 1, "--context-shift", settings={})
        answer = shifting.complete(places.TEXT[:100], 600)
        self.assertEqual((answer.tokens, answer.truncated), (600, False))
        self.assertEqual(answer.text, self.ours.complete(places.TEXT[:100], 600, cache_prompt=False).text)


if __name__ == "__main__":
    unittest.main()
