"""One stream of 100,000 tokens over HTTP (a tenth of it in a share): memory and cost of a token stay what they were."""
import statistics
import unittest

import places
import server

TOKENS = 100_000 if places.EVERYTHING else 10_000
TENTH = TOKENS // 10
# The server itself keeps some 180 bytes for each token of a stream; what is more than stock's growth is the library's.
MOST_GROWTH = 4 * 2**20
MOST_SLOWDOWN = 1.05 if places.EVERYTHING else 1.15
PAIRS, SHORT = 21, 250


class Endurance(unittest.TestCase):
    def stream(self, host, prompt, tokens):
        """Its text, and the resident memory after each tenth."""
        sizes, pieces = [], []
        for piece in host.stream(prompt, tokens, temperature=0.8, seed=2):
            pieces.append(piece)
            if len(pieces) % TENTH == 0:
                sizes.append(host.resident_bytes())
        # The server ends a stream with a piece without text.
        self.assertIn(len(pieces), (tokens, tokens + 1))
        return "".join(pieces), sizes

    def test_memory_and_cost(self):
        prompt = places.TEXT[:100]
        stock = server.serve(self, "-c", 256, "-np", 1, "--context-shift", settings=None)
        _, sizes = self.stream(stock, prompt, TOKENS)
        stock.stop()
        own = sizes[-1] - sizes[0]

        old = server.serve(self, "-c", 256, "-np", 1, settings={})
        text, sizes = self.stream(old, prompt, TOKENS)
        growth = sizes[-1] - sizes[0]
        print(f"{TOKENS} tokens: resident memory {growth / 2**20:+.1f} MiB since the first tenth, of stock "
              f"{own / 2**20:+.1f} MiB")
        self.assertGreater(len(text), TOKENS * 9 // 10)
        self.assertLess(growth, own + MOST_GROWTH)

        # The stream goes on, in turn with one that is as old as this one was in its second tenth: other programs that
        # come and go slow down both.
        new = server.serve(self, "-c", 256, "-np", 1, settings={})
        prompts = {old: prompt + text, new: prompt + text[:TENTH]}
        new.complete(prompts[new], 1)
        ratios = []
        for _ in range(PAIRS):
            seconds = {}
            for host in (old, new):
                answer = host.complete(prompts[host], SHORT)
                self.assertEqual((answer.tokens, answer.truncated), (SHORT, False))
                self.assertLessEqual(answer.read, 12)
                prompts[host] += answer.text
                seconds[host] = answer.seconds
            ratios.append(seconds[old] / seconds[new])
        ratio = statistics.median(ratios)
        print(f"time of a token after {TOKENS} tokens: {ratio:.3f} of that after {TENTH} (median of {PAIRS} pairs; "
              f"{min(ratios):.3f} to {max(ratios):.3f})")
        self.assertLess(ratio, MOST_SLOWDOWN)


if __name__ == "__main__":
    unittest.main()
