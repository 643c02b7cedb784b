"""Requests of random length over a few texts, several at a time: slots that are taken over, prompts that share a
beginning, states that the server keeps and drops. Each answer is that of a server which reads its prompt from the
beginning, alone."""
import concurrent.futures
import random
import unittest

import places
import same
import server

REQUESTS = 400 if places.EVERYTHING else 30
SEED = 5


class ManyRequests(unittest.TestCase):
    def check(self, *arguments, settings=None):
        draw = random.Random(SEED)
        requests = []
        for _ in range(REQUESTS):
            start = 100 * draw.randrange(6)
            requests.append((places.TEXT[start:start + draw.randrange(50, 900)], draw.randrange(1, 80)))
        # Room for a few states: most are dropped again.
        busy = server.serve(self, "-np", 4, "-c", 256, "--cache-ram", 4, *arguments, settings=settings or {})
        alone = server.serve(self, "-np", 1, "-c", 256, settings={})
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda request: busy.compared(*request), requests))
        agreed = 0
        for (prompt, tokens), answer in zip(requests, answers):
            self.assertEqual((answer.tokens, answer.truncated), (tokens, False))
            agreed += same.agreement(answer.steps, alone.afresh(prompt, tokens).steps)
        total = sum(tokens for _, tokens in requests)
        kept = sum(answer.kept for answer in answers)
        print(f"{agreed} of {total} tokens before a tie; {kept} tokens of prompts were in the cache")
        self.assertGreater(agreed, total // 2)
        self.assertGreater(kept, 0)

    def test_slots_and_states(self):
        self.check()

    def test_with_checkpoints(self):
        self.check(settings={"checkpoints": "on"})

    def test_with_short_rewinds(self):
        self.check("-ub", 32, settings={"max_rewind": 0})


if __name__ == "__main__":
    unittest.main()
