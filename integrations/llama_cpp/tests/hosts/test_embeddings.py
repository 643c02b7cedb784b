"""llama-server as a server of embeddings: they are those of stock, whether the library serves the context or not."""
import unittest

import places
import server


class Embeddings(unittest.TestCase):
    def embedding(self, settings, slots, pooling):
        host = server.serve(self, "-c", 512, "-np", slots, "--embedding", "--pooling", pooling, settings=settings)
        answer = host.post("/embedding", {"content": places.TEXT[:100]})
        host.stop()
        return answer[0]["embedding"]

    def test_as_stock(self):
        for pooling, rows in (("mean", 1), ("last", 1), ("none", 101)):
            for slots in (1, 2):
                with self.subTest(pooling=pooling, slots=slots):
                    ours, stock = (self.embedding(settings, slots, pooling) for settings in ({}, None))
                    self.assertEqual((len(ours), len(stock)), (rows, rows))
                    for one, other in zip(ours, stock):
                        self.assertEqual(len(one), len(other))
                        scale = max(map(abs, other))
                        for a, b in zip(one, other):
                            self.assertAlmostEqual(a, b, delta=5e-3 * scale)


if __name__ == "__main__":
    unittest.main()
