"""How llama-server with the library starts and ends."""
import signal
import subprocess
import unittest

import places
import same
import server


class StartAndEnd(unittest.TestCase):
    def serve(self, settings):
        host = server.serve(self, "-c", 256, "-np", 1, settings=settings)
        host.complete(places.TEXT[:100], 100)
        return host

    def test_sigterm(self):
        codes = []
        for settings in (None, {}):
            host = self.serve(settings)
            host.popen.send_signal(signal.SIGTERM)
            codes.append(host.popen.wait(60))
        self.assertEqual(codes[1], codes[0])

    def test_sigterm_while_it_generates(self):
        """Stock llama-server takes a lock in its signal handler, so that it may wait for itself; a second SIGTERM ends
        it at once, with 1, while the other threads go on. That must not turn into a crash."""
        host = self.serve({})
        generation = host.stream(places.TEXT[:100], 100000)
        next(generation)
        host.popen.send_signal(signal.SIGTERM)
        try:
            code = host.popen.wait(3)
        except subprocess.TimeoutExpired:
            host.popen.send_signal(signal.SIGTERM)
            code = host.popen.wait(60)
        self.assertIn(code, (0, 1), host.log()[-2000:])

    def test_a_client_that_goes_away(self):
        """The server stops in the middle of an answer; the slot is as good as before."""
        host = self.serve({})
        expected = host.afresh(places.TEXT[:600], 50)
        for _ in range(3):
            generation = host.stream(places.TEXT[5000:5600], 100000)
            for _ in range(20):
                next(generation)
            generation.close()
            answer = host.afresh(places.TEXT[:600], 50)
            self.assertGreater(same.agreement(answer.steps, expected.steps), 10)

    def test_fit(self):
        """--fit makes a context of a model without weights, asks for its size and frees it."""
        for fit in ("on", "off"):
            with self.subTest(fit):
                ours = server.serve(self, "--fit", fit, "-np", 1, settings={"window": 252})
                answer = ours.complete(places.TEXT[:100], 600)
                self.assertEqual((answer.tokens, answer.truncated), (600, False))

    def test_many_requests_do_not_grow(self):
        """Contexts, batches and states that are made are freed."""
        ours = server.serve(self, "-c", 256, "-np", 2, settings={})
        sizes = []
        for round_ in range(40):
            start = 1000 * round_
            ours.complete(places.TEXT[start:start + 600], 20)
            sizes.append(ours.resident_bytes())
        # The server's prompt cache keeps states of up to 8 GiB: what it holds is not a leak.
        states = 40 * 256 * 6 * 2 * 2 * 64 * 4
        self.assertLess(sizes[-1] - sizes[10], states + 16 * 2**20)


if __name__ == "__main__":
    unittest.main()
