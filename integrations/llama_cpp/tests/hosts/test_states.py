"""States: slots that are saved and restored, the server's prompt cache, and what happens to bytes that are no state."""
import pathlib
import tempfile
import unittest

import places
import same
import server


class SavedSlots(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def serve(self, **options):
        return server.serve(self, "-c", 256, "-np", 2, "--slot-save-path", self.folder.name,
                            **{"settings": {}, **options})

    def saved(self, first, name):
        return first.post("/slots/0?action=save", {"filename": name})

    def test_over_a_restart(self):
        prompt = places.TEXT[70000:70300]
        first = self.serve()
        told = first.complete(prompt, 900, id_slot=0)
        saved = self.saved(first, "conversation")
        self.assertGreaterEqual(saved["n_saved"], 1200)
        longer = prompt + told.text + " And then"
        expected = first.compared(longer, 100, id_slot=0)
        first.stop()

        second = self.serve()
        # Another slot of the new server.
        restored = second.post("/slots/1?action=restore", {"filename": "conversation"})
        self.assertEqual(restored["n_restored"], saved["n_saved"])
        answer = second.compared(longer, 100, id_slot=1)
        self.assertLessEqual(answer.read, 12)
        self.assertGreaterEqual(answer.kept, 1190)
        self.assertGreater(same.agreement(answer.steps, expected.steps), 50)

    def test_bytes_that_are_no_state(self):
        ours = self.serve()
        prompt = places.TEXT[80000:80300]
        ours.complete(prompt, 400, id_slot=0)
        self.saved(ours, "good")
        good = (pathlib.Path(self.folder.name) / "good").read_bytes()
        stock = self.serve(settings=None)
        stock.complete(places.TEXT[:50], 20, id_slot=0)
        self.saved(stock, "stock")
        for at in (0, 5, len(good) // 2, len(good) - 1):
            changed = bytearray(good)
            changed[at] ^= 0x40
            (pathlib.Path(self.folder.name) / f"changed-{at}").write_bytes(changed)
        (pathlib.Path(self.folder.name) / "short").write_bytes(good[:-1])
        (pathlib.Path(self.folder.name) / "empty").write_bytes(b"")
        expected = ours.compared(prompt, 50, id_slot=1, cache_prompt=False)
        for path in sorted(pathlib.Path(self.folder.name).iterdir()):
            if path.name == "good":
                continue
            with self.subTest(path.name), self.assertRaises(server.Refused):
                ours.post("/slots/1?action=restore", {"filename": path.name})
            # Nothing of it is in the slot.
            after = ours.compared(prompt, 50, id_slot=1)
            self.assertGreater(same.agreement(after.steps, expected.steps), 10, path.name)
        self.assertEqual(ours.post("/slots/1?action=restore", {"filename": "good"})["n_restored"],
                         len(prompt) + 400)

    def test_another_window_is_refused_or_right(self):
        first = self.serve()
        prompt = places.TEXT[90000:90300]
        first.complete(prompt, 400, id_slot=0)
        self.saved(first, "wide")
        narrow = self.serve(settings={"window": 100, "length": 10000})
        with self.assertRaises(server.Refused):
            narrow.post("/slots/0?action=restore", {"filename": "wide"})


class PromptCache(unittest.TestCase):
    """One slot, two conversations in turn: the server keeps the state of the one that waits."""

    def test_there_and_back(self):
        ours = server.serve(self, "-c", 256, "-np", 1, settings={})
        a, b = places.TEXT[:1500], places.TEXT[40000:41500]
        first = ours.complete(a, 40)
        other = ours.complete(b, 40)
        self.assertGreater(other.read, 1400)
        for prompt in (a + first.text + " More", b + other.text + " More"):
            again = ours.compared(prompt, 40)
            self.assertLessEqual(again.read, 12)
            self.assertGreater(same.agreement(again.steps, ours.afresh(prompt, 40).steps), 10)

    def drop_an_answer(self, settings):
        """As chat templates drop thoughts: the end changes further back than a rewind reaches."""
        ours = server.serve(self, "-c", 256, "-np", 1, settings=settings)
        prompt = places.TEXT[100000:101500]
        ours.complete(prompt, 700)
        other = prompt + " Other turn"
        answer = ours.compared(other, 40)
        self.assertGreater(same.agreement(answer.steps, ours.afresh(other, 40).steps), 10)
        return answer.read / len(other)

    def test_an_answer_is_dropped(self):
        self.assertGreater(self.drop_an_answer({}), 0.9)

    def test_an_answer_is_dropped_with_checkpoints(self):
        """The server goes on from a state of the prompt."""
        self.assertLess(self.drop_an_answer({"checkpoints": "on"}), 0.5)


if __name__ == "__main__":
    unittest.main()
