"""One stream of 100,000 tokens over HTTP (a tenth of it in a share): memory and cost of a token stay what they were."""
import statistics
import threading
import time
import unittest

import places
import server

TOKENS = 100_000 if places.EVERYTHING else 10_000
TENTH = TOKENS // 10
# The server itself keeps some 150 bytes for each token; what is more than stock's growth is the library's.
MOST_GROWTH = 2 * 2**20
MOST_SLOWDOWN = 1.05
PAIRS, SHORT = 21, 250


class Endurance(unittest.TestCase):
    def generate(self, host, prompt):
        """The text of TOKENS tokens, and how much the resident memory grew after the first tenth.

        In one answer, since pieces that a slow client has not fetched yet would be counted too.
        """
        answers, size = [], 0
        request = threading.Thread(target=lambda: answers.append(
            host.complete(prompt, TOKENS, temperature=0.8, seed=2)))
        request.start()
        while request.is_alive() and not size:
            decoded = host.get("/slots")[0].get("next_token", [{}])[0].get("n_decoded", 0)
            size = host.resident_bytes() if decoded >= TENTH else 0
            time.sleep(0.05)
        request.join()
        self.assertTrue(size)
        self.assertEqual((answers[0].tokens, answers[0].stop), (TOKENS, "limit"))
        return answers[0].text, host.resident_bytes() - size

    def test_memory_and_cost(self):
        prompt = places.TEXT[:100]
        stock = server.serve(self, "-c", 256, "-np", 1, "--context-shift", settings=None)
        _, own = self.generate(stock, prompt)
        stock.stop()

        old = server.serve(self, "-c", 256, "-np", 1, settings={})
        text, growth = self.generate(old, prompt)
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
        for pair in range(PAIRS):
            seconds = {}
            for host in ((old, new), (new, old))[pair % 2]:
                answer = host.complete(prompts[host], SHORT)
                self.assertEqual((answer.tokens, answer.truncated), (SHORT, False))
                self.assertLessEqual(answer.read, 12)
                prompts[host] += answer.text
                seconds[host] = answer.seconds
            ratios.append(seconds[old] / seconds[new])
        ratio = statistics.median(ratios)
        print(f"time of a token after {TOKENS} tokens: {ratio:.3f} of that after {TENTH} (median of {PAIRS} pairs; "
              f"{min(ratios):.3f} to {max(ratios):.3f})")
        # Beside other work on a machine a share's pairs say nothing.
        if places.EVERYTHING:
            self.assertLess(ratio, MOST_SLOWDOWN)


if __name__ == "__main__":
    unittest.main()
