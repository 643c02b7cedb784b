"""Random calls with right and wrong arguments; `random_calls.py` runs more of them."""
import unittest

import random_calls


class RandomCalls(unittest.TestCase):
    def test_seeds(self):
        done = refused = 0
        for seed in range(1, 61):
            counts = random_calls.run(seed)
            done, refused = done + counts[0], refused + counts[1]
        # Neither kind is rare.
        self.assertGreater(done, 500)
        self.assertGreater(refused, 500)


if __name__ == "__main__":
    unittest.main()
