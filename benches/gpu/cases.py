"""What is measured: shapes of a step, in the order of what they are worth when time is short."""
import dataclasses

N_SINK = 4
HEADS = ((32, 8, 128), (32, 32, 128), (64, 8, 128), (16, 1, 128), (8, 8, 64))
SEQUENCES = (1, 64, 8, 256)
CACHED = (2048, 4096, 256, 1024, 16384)
CHUNKS = (512, 2048, 8192, 128, 1024, 4096, 256)
# Bytes of a value.
SIZE = {"bf16": 2, "f16": 2, "f32": 4}


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of every sequence: `chunk` tokens each, over `cached` tokens of which N_SINK are sinks."""

    n_seqs: int
    cached: int
    q_heads: int
    kv_heads: int
    dim: int
    dtype: str
    chunk: int = 1
    # Stream position of the first token.
    start: int = 0
    # Contenders that cost seconds to prepare are measured here only.
    core: bool = False

    @property
    def window(self):
        return self.cached - N_SINK

    @property
    def decode(self):
        return self.chunk == 1

    @property
    def key(self):
        at = f" from {self.start}" if self.start else ""
        return (
            f"{self.n_seqs} x {self.chunk} over {self.cached}, {self.q_heads}/{self.kv_heads} x {self.dim} "
            f"{self.dtype}{at}"
        )

    @property
    def layer_bytes(self):
        """K and V that a step sees."""
        return self.n_seqs * self.cached * self.kv_heads * 2 * self.dim * SIZE[self.dtype]

    @property
    def step_bytes(self):
        """The fewest a step can move: what it sees read once, new rows read and stored, queries read, results written.
        A query of a chunk sees `cached` tokens, all queries together those of the chunk beside them."""
        row = self.dim * SIZE[self.dtype]
        seen = self.n_seqs * (self.cached - 1) * self.kv_heads * 2 * row
        rows = self.n_seqs * self.chunk
        return seen + rows * (2 * 2 * self.kv_heads + 2 * self.q_heads) * row

    @property
    def step_flops(self):
        """Two products of every query with every key it sees."""
        return 4 * self.n_seqs * self.chunk * self.cached * self.q_heads * self.dim


def _worth(value, order):
    return order.index(value)


def all_cases():
    """Everything the benchmark knows, the most valuable first."""
    ranked = []
    for heads in HEADS:
        for dtype in ("bf16", "f16"):
            for n_seqs in SEQUENCES:
                for cached in CACHED:
                    far = (3 * _worth(heads, HEADS) + 4 * (dtype == "f16")
                           + 1.5 * _worth(n_seqs, SEQUENCES) + 2 * _worth(cached, CACHED))
                    core = heads == HEADS[0] and dtype == "bf16" and cached == 2048 and n_seqs in (1, 64)
                    ranked.append((far, Case(n_seqs, cached, *heads, dtype, core=core)))
            for chunk in CHUNKS:
                for cached in (2048, 16384):
                    far = (
                        1
                        + 4 * _worth(heads, HEADS)
                        + 4 * (dtype == "f16")
                        + 1.5 * _worth(chunk, CHUNKS)
                        + 3 * (cached > 2048)
                    )
                    core = heads == HEADS[0] and dtype == "bf16" and cached == chunk == 2048
                    ranked.append((far, Case(1, cached, *heads, dtype, chunk, core=core)))
    # The price of a far position: nothing, if angles are exact at any.
    for start in (10_000, 10_000_000):
        ranked.append((0.5, Case(1, 2048, *HEADS[0], "bf16", start=start)))
    ranked.sort(key=lambda pair: pair[0])
    return [case for _, case in ranked]


def smoke_cases(dtypes=("bf16", "f16"), dim=64):
    """Tiny ones, to see that everything runs."""
    return [
        Case(2, 48, 4, 2, dim, dtypes[0], core=True),
        Case(1, 48, 4, 2, dim, dtypes[-1], start=10_000_000),
        Case(2, 48, 4, 2, dim, dtypes[-1], chunk=20, core=True),
        # More than travel inside a launch.
        Case(70, 24, 2, 1, dim, dtypes[0]),
    ]


def select(cases, text):
    """Those whose key holds one of the words of `text`, which are separated by semicolons; all if it is empty."""
    words = [w.strip() for w in text.split(";") if w.strip()]
    return [c for c in cases if not words or any(w in c.key for w in words)]
