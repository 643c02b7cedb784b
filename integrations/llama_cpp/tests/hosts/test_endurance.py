"""One stream of 100,000 tokens over HTTP (a tenth of it in a share): memory and cost of a token stay what they were."""
import unittest

import places
import server

TOKENS = 100_000 if places.EVERYTHING else 10_000
TENTH = TOKENS // 10
# Tokens between two looks at the process.
STEP = TENTH // 20
# The server itself keeps some 180 bytes for each token of a stream; what is more than stock's growth is the library's.
MOST_GROWTH = 4 * 2**20
MOST_SLOWDOWN = 1.05 if places.EVERYTHING else 1.25


class Endurance(unittest.TestCase):
    def measure(self, prompt, *arguments, **options):
        """Processor time of each step and resident memory after it, of a stream of TOKENS."""
        host = server.serve(self, "-c", 256, "-np", 1, *arguments, **options)
        times, sizes, characters, pieces = [host.cpu_seconds()], [], 0, 0
        for piece in host.stream(prompt, TOKENS, temperature=0.8, seed=2):
            pieces += 1
            characters += len(piece)
            if pieces % STEP == 0:
                times.append(host.cpu_seconds())
                sizes.append(host.resident_bytes())
        host.stop()
        # The server ends a stream with a piece without text.
        self.assertIn(pieces, (TOKENS, TOKENS + 1))
        self.assertGreater(characters, TOKENS * 9 // 10)
        return [after - before for before, after in zip(times, times[1:])], sizes

    def test_one_long_stream(self):
        prompt = places.TEXT[:100]
        times, sizes = self.measure(prompt, settings={})
        _, stock = self.measure(prompt, "--context-shift", settings=None)
        growth, own = (all_[-1] - all_[19] for all_ in (sizes, stock))
        # On a machine with other work, the quickest quarter of a tenth's steps is what a step costs by itself.
        costs = [sum(sorted(times[i:i + 20])[:5]) / 5 / STEP * 1e6 for i in range(0, 200, 20)]
        print(f"{TOKENS} tokens: resident memory {growth / 2**20:+.1f} MiB since the first tenth, of stock "
              f"{own / 2**20:+.1f} MiB; processor time of a token in each tenth: "
              f"{', '.join(f'{cost:.0f}' for cost in costs)} us")
        self.assertLess(growth, own + MOST_GROWTH)
        self.assertLess(costs[-1], costs[1] * MOST_SLOWDOWN)


if __name__ == "__main__":
    unittest.main()
