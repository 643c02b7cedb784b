"""Models with recurrent layers beside attention, with random weights: the server keeps checkpoints for them, since what
such layers have read cannot be taken back."""
import concurrent.futures
import pathlib
import subprocess
import tempfile
import unittest

import places
import same
import server

NAMES = ("granite_hybrid", "qwen3next_hybrid", "jamba_hybrid_no_rope")


@unittest.skipUnless(places.MAKE_MODEL.exists(), f"skipped: there is no {places.MAKE_MODEL}")
class Hybrids(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        for name in NAMES:
            subprocess.run([places.MAKE_MODEL, cls.file(name), "--hybrid", name, "--type", "f32"], check=True)

    @classmethod
    def file(cls, name):
        return pathlib.Path(cls.folder.name) / (name + ".gguf")

    def serve(self, name, *arguments, settings=None, stock=False):
        return server.serve(self, "-ctk", "f32", "-ctv", "f32", *arguments, model=self.file(name),
                            settings=None if stock else settings or {})

    def test_below_the_window_as_stock(self):
        for name in NAMES:
            with self.subTest(name):
                prompt = places.TEXT[3000:3400]
                ours = self.serve(name, "-c", 1024, "-np", 1).compared(prompt, 200)
                stock = self.serve(name, "-c", 1024, "-np", 1, stock=True).compared(prompt, 200)
                self.assertGreater(same.agreement(ours.steps, stock.steps), 50)

    def test_past_the_window(self):
        for name in NAMES:
            with self.subTest(name):
                ours = self.serve(name, "-c", 256, "-np", 1)
                prompt = places.TEXT[5000:5900]
                told = ours.complete(prompt, 700)
                self.assertEqual((told.tokens, told.stop, told.truncated), (700, "limit", False))
                other = prompt + " Another turn"
                answer = ours.compared(other, 60)
                self.assertGreater(same.agreement(answer.steps, ours.afresh(other, 60).steps), 5)
                if name == NAMES[0]:
                    with self.assertRaises(server.Refused):
                        self.serve(name, "-c", 256, "-np", 1, stock=True).complete(prompt, 1)

    def test_slots_at_once_are_as_alone(self):
        for name in NAMES:
            with self.subTest(name):
                busy = self.serve(name, "-c", 256, "-np", 4, "--cache-ram", 4)
                alone = self.serve(name, "-c", 256, "-np", 1)
                requests = [(places.TEXT[100 * (i % 3):100 * (i % 3) + 150 + 61 * i], 20 + 7 * i) for i in range(12)]
                with concurrent.futures.ThreadPoolExecutor(6) as pool:
                    answers = list(pool.map(lambda request: busy.compared(*request), requests))
                agreed = sum(same.agreement(answer.steps, alone.afresh(*request).steps)
                             for request, answer in zip(requests, answers))
                total = sum(tokens for _, tokens in requests)
                print(f"{name}: {agreed} of {total} tokens before a tie")
                self.assertGreater(agreed, total // 4)

    def test_a_checkpoint_is_gone_back_to(self):
        """The end of the prompt changes: the server goes on from a checkpoint and does not read all of it again."""
        for name in NAMES:
            with self.subTest(name):
                ours = self.serve(name, "-c", 256, "-np", 1, "-ub", 64, "-b", 64)
                prompt = places.TEXT[9000:10500]
                ours.complete(prompt, 100)
                other = prompt + " Other turn"
                answer = ours.compared(other, 40)
                print(f"{name}: {answer.read} of {len(other)} tokens read again")
                self.assertLess(answer.read, len(other) // 2)
                self.assertGreater(same.agreement(answer.steps, ours.afresh(other, 40).steps), 5)

    def test_slots_are_saved_and_restored(self):
        for name in NAMES:
            with self.subTest(name):
                first = self.serve(name, "-c", 256, "-np", 2, "--slot-save-path", self.folder.name)
                prompt = places.TEXT[7000:7300]
                # The token that it says is not read any more.
                first.complete(prompt, 1, id_slot=0)
                saved = first.post("/slots/0?action=save", {"filename": name})
                expected = first.compared(prompt + " And then", 60, id_slot=0)
                first.stop()
                second = self.serve(name, "-c", 256, "-np", 2, "--slot-save-path", self.folder.name)
                restored = second.post("/slots/1?action=restore", {"filename": name})
                self.assertEqual(restored["n_restored"], saved["n_saved"])
                answer = second.compared(prompt + " And then", 60, id_slot=1)
                self.assertEqual((answer.read, answer.kept), (expected.read, expected.kept))
                self.assertLess(answer.read, 15)
                self.assertGreater(same.agreement(answer.steps, expected.steps), 20)

    def test_drafts(self):
        """Of n-grams, which are rejected, and of the model itself. The server goes back by checkpoints."""
        for name in NAMES:
            for arguments in (("ngram-simple", "--spec-ngram-simple-size-n", 3),
                              ("draft-simple", "-md", self.file(name))):
                with self.subTest(name, drafts=arguments[0]):
                    prompt = places.TEXT[1000:1100] * 3
                    plain = self.serve(name, "-c", 256, "-np", 1).complete(prompt, 200)
                    answer = self.serve(name, "-c", 256, "-np", 1, "--spec-type", *arguments).complete(prompt, 200)
                    print(f"{name}: {answer.accepted} of {answer.drafted} drafted tokens accepted")
                    self.assertEqual((answer.tokens, answer.truncated), (200, False))
                    # Rows of several tokens round otherwise, and no probabilities of drafted tokens tell a tie.
                    self.assertEqual(answer.text[:40], plain.text[:40])
                    self.assertGreaterEqual(answer.accepted, 100 if arguments[0] == "draft-simple" else 0)


if __name__ == "__main__":
    unittest.main()
