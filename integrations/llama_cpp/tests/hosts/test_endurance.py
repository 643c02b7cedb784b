"""One stream of 100,000 tokens over HTTP (a tenth of it in a share): memory and cost of a token stay what they were."""
import unittest

import places
import server

TOKENS = 100_000 if places.EVERYTHING else 10_000
MOST_GROWTH = 16 * 2**20
# Of processor time, since other programs may share the machine.
MOST_SLOWDOWN = 1.05 if places.EVERYTHING else 1.25


class Endurance(unittest.TestCase):
    def test_one_long_stream(self):
        ours = server.serve(self, "-c", 256, "-np", 1, settings={})
        marks, characters, pieces = [], 0, 0
        for piece in ours.stream(places.TEXT[:300], TOKENS, temperature=0.8, seed=2):
            pieces += 1
            characters += len(piece)
            if pieces % (TOKENS // 10) == 0:
                marks.append((ours.cpu_seconds(), ours.resident_bytes()))
        self.assertGreaterEqual(pieces, TOKENS - 1)
        self.assertGreater(characters, TOKENS * 9 // 10)
        spent = [marks[i + 1][0] - marks[i][0] for i in range(len(marks) - 1)]
        growth = marks[-1][1] - marks[0][1]
        print(f"{TOKENS} tokens: resident memory {growth / 2**20:+.1f} MiB since the first tenth; processor time of "
              f"each tenth: {', '.join(f'{s:.2f}' for s in spent)} s")
        self.assertLess(growth, MOST_GROWTH)
        # Of the second tenth and the last.
        self.assertLess(spent[-1], spent[0] * MOST_SLOWDOWN)


if __name__ == "__main__":
    unittest.main()
