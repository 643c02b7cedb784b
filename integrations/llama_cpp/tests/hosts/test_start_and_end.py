"""How llama-server with the library starts and ends."""
import signal
import threading
import time
import unittest

import places
import server


class StartAndEnd(unittest.TestCase):
    def end(self, settings, busy):
        """The exit code after SIGTERM, while it generates if `busy`."""
        host = server.serve(self, "-c", 256, "-np", 1, settings=settings)
        host.complete(places.TEXT[:100], 100)
        if busy:
            request = threading.Thread(target=self.generate, args=(host,), daemon=True)
            request.start()
            time.sleep(1)
        host.popen.send_signal(signal.SIGTERM)
        return host.popen.wait(60)

    def generate(self, host):
        try:
            host.complete(places.TEXT[:100], 100000)
        except (server.Refused, OSError, ValueError):
            # The connection ends with the server.
            pass

    def test_sigterm(self):
        for busy in (False, True):
            with self.subTest(busy=busy):
                stock = self.end(None, False)
                self.assertEqual(self.end({}, busy), stock)

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
