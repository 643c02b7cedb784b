"""Speculation of llama-server: drafts that are rejected are cut off the cache, and no character changes."""
import unittest

import places
import server

CONTEXT = ["-c", 256, "-np", 1, "-ctk", "f32", "-ctv", "f32"]
TOKENS = 1100


class Speculation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # A prompt that repeats itself, so that drafts of n-grams are found.
        cls.prompt = places.TEXT[1000:1100] * 3
        plain = server.serve(cls, *CONTEXT, settings={})
        cls.plain = plain.complete(cls.prompt, TOKENS)

    def check(self, *arguments):
        ours = server.serve(self, *CONTEXT, *arguments, settings={})
        answer = ours.complete(self.prompt, TOKENS)
        self.assertEqual((answer.tokens, answer.truncated), (TOKENS, False))
        self.assertEqual(answer.text, self.plain.text)
        print(f"{answer.accepted} of {answer.drafted} drafted tokens accepted")
        return answer

    def test_drafts_of_ngrams(self):
        answer = self.check("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", 6)
        self.assertGreater(answer.accepted, 100)
        # Else nothing was ever cut off.
        self.assertLess(answer.accepted, answer.drafted)

    def test_drafts_of_a_model(self):
        """The draft model has a context of its own, which streams as well."""
        answer = self.check("--spec-type", "draft-simple", "-md", places.MODEL)
        self.assertGreater(answer.accepted, TOKENS // 2)


if __name__ == "__main__":
    unittest.main()
