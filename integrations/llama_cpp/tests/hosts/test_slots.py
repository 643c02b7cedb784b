"""Several conversations in one llama-server."""
import concurrent.futures
import unittest

import places
import same
import server

SLOTS = 4


class Slots(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.ours = server.serve(cls, "-c", 256, "-np", SLOTS, settings={})

    def test_four_at_once_each_as_alone(self):
        prompts = [places.TEXT[i * 3000:i * 3000 + 700] for i in range(SLOTS)]

        def ask(slot):
            return self.ours.compared(prompts[slot], 400, id_slot=slot, cache_prompt=False)

        alone = [ask(slot) for slot in range(SLOTS)]
        with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
            together = list(pool.map(ask, range(SLOTS)))
        self.assertEqual(len({answer.text for answer in alone}), SLOTS)
        agreed = []
        for slot in range(SLOTS):
            self.assertEqual((together[slot].tokens, together[slot].truncated), (400, False))
            agreed.append(same.agreement(together[slot].steps, alone[slot].steps))
        print(f"the same tokens together and alone: {agreed} of 400 each")
        self.assertGreater(sum(agreed), 400)

    def test_stock_has_no_room_for_them(self):
        """Stock shares its 256 cells among the slots."""
        stock = server.serve(self, "-c", 256, "-np", SLOTS)
        with self.assertRaises(server.Refused):
            stock.complete(places.TEXT[:700], 400, id_slot=0)

    def test_several_completions_of_one_prompt(self):
        """The server reads the prompt once and copies the sequence (n_cmpl)."""
        prompt = places.TEXT[50000:50600]

        def several(**options):
            body = self.ours.request(prompt, 300, n_cmpl=3, cache_prompt=False, **options)
            answers = self.ours.post("/completion", body)
            self.assertEqual(sorted(answer["index"] for answer in answers), [0, 1, 2])
            for answer in answers:
                self.assertEqual((answer["tokens_predicted"], answer["truncated"]), (300, False))
            return answers

        self.assertEqual(len({answer["content"] for answer in several(temperature=0.9, seed=5)}), 3)
        alone = self.ours.afresh(prompt, 300)
        for answer in several(n_probs=2):
            self.assertGreater(same.agreement(same.top_two(answer), alone.steps), 50)

    def test_questions_while_it_generates(self):
        """The server answers them on other threads, in the middle of a decode."""
        prompt = places.TEXT[70000:70600]
        alone = self.ours.afresh(prompt, 600)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            generating = pool.submit(self.ours.afresh, prompt, 600)
            asked = 0
            while not generating.done():
                self.assertEqual(len(self.ours.get("/slots")), SLOTS)
                self.assertEqual(self.ours.get("/props")["total_slots"], SLOTS)
                asked += 1
            answer = generating.result()
        self.assertGreater(asked, 5)
        self.assertGreater(same.agreement(answer.steps, alone.steps), 50)

    def test_chat(self):
        """An answer in a chat goes past the window too, and the numbers count the whole conversation."""
        body = {"messages": [{"role": "user", "content": places.TEXT[60000:60400]}], "max_tokens": 500,
                "temperature": 0, "ignore_eos": True}
        answer = self.ours.post("/v1/chat/completions", body)
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")
        self.assertEqual(answer["usage"]["completion_tokens"], 500)
        self.assertGreater(answer["usage"]["total_tokens"], 900)


if __name__ == "__main__":
    unittest.main()
