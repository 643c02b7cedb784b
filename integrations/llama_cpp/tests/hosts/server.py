"""An unchanged llama-server, and requests to it."""
import dataclasses
import json
import re
import urllib.error
import urllib.request

import places
import process
import same

SECONDS = 600


@dataclasses.dataclass
class Completion:
    """An answer of /completion."""
    text: str
    tokens: int
    # "limit": all tokens that were asked for.
    stop: str
    # The host thinks that its context was too small.
    truncated: bool
    # Tokens of the prompt that were evaluated, and that were not, since the cache had them.
    read: int
    kept: int
    drafted: int
    accepted: int
    seconds: float
    # same.top_two() of each token, for a request with n_probs=2.
    steps: list

    @classmethod
    def of(cls, answer):
        timings = answer["timings"]
        steps = same.top_two(answer) if "completion_probabilities" in answer else []
        return cls(answer["content"], answer["tokens_predicted"], answer["stop_type"], answer["truncated"],
                   timings["prompt_n"], timings["cache_n"], timings.get("draft_n", 0),
                   timings.get("draft_n_accepted", 0), timings["predicted_ms"] / 1000, steps)


class Refused(Exception):
    """An HTTP error: `code`, and `message` of the server."""

    def __init__(self, code, body):
        super().__init__(f"HTTP {code}: {body}")
        self.code = code
        try:
            self.message = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            self.message = body


class Server(process.Process):
    """llama-server with the bundled model on a port that the system chose.

    `settings` are those of the library; None leaves the library out: stock llama-server.
    """

    def __init__(self, *arguments, settings=None, env=None, model=places.MODEL):
        if env is None:
            env = process.environment(settings, preload=settings is not None)
        super().__init__(
            [places.PROGRAMS / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", 0, "-t", 1, "-tb", 1,
             "--no-warmup", *arguments], env)
        self.url = self.wait_for(self.address, 120, "address").group(1)
        self.wait_for(self.is_ready, 120, "readiness")

    def address(self):
        return re.search(r"listening on (http://127\.0\.0\.1:[1-9][0-9]*)", self.log())

    def is_ready(self):
        try:
            return self.get("/health").get("status") == "ok"
        except (Refused, OSError):
            return False

    def open(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            return urllib.request.urlopen(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None

    def get(self, path):
        with self.open(path) as answer:
            return json.load(answer)

    def post(self, path, body):
        with self.open(path, body) as answer:
            return json.load(answer)

    def request(self, prompt, tokens, **options):
        """The body of a request: greedy, and exactly `tokens` long unless an option says something else."""
        return {"prompt": prompt, "n_predict": tokens, "temperature": 0, "ignore_eos": True, **options}

    def complete(self, prompt, tokens, **options):
        return Completion.of(self.post("/completion", self.request(prompt, tokens, **options)))

    def compared(self, prompt, tokens, **options):
        """A completion for same.agreement()."""
        return self.complete(prompt, tokens, n_probs=2, **options)

    def afresh(self, prompt, tokens):
        """The same, of a prompt that is read from its beginning."""
        return self.compared(prompt, tokens, cache_prompt=False)

    def events(self, prompt, tokens, **options):
        """What /completion sends while it generates; bytes that are no character yet come with a later token."""
        with self.open("/completion", self.request(prompt, tokens, stream=True, **options)) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    def stream(self, prompt, tokens, **options):
        """The text of events(), piece by piece."""
        for event in self.events(prompt, tokens, **options):
            yield event["content"]


def serve(case, *arguments, **options):
    """A server that ends with the test (`case` is a TestCase) or with all tests of a class (`case` is the class)."""
    server = Server(*arguments, **options)
    (case.addClassCleanup if isinstance(case, type) else case.addCleanup)(server.stop)
    return server
