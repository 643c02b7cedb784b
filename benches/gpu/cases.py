"""What is measured: shapes of a step, ordered by value for a run whose time is limited."""

import dataclasses

import published

N_SINK = 4
HEADS = ((32, 8, 128), (32, 32, 128), (64, 8, 128), (16, 1, 128), (8, 8, 64))
SEQUENCES = (1, 64, 8, 256)
CACHED = (2048, 4096, 256, 1024, 16384)
CHUNKS = (512, 2048, 8192, 128, 1024, 4096, 256)
# Bytes of an element.
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
    # Contenders that take seconds to prepare are measured in core cases only.
    core: bool = False

    @property
    def window(self):
        return self.cached - N_SINK

    @property
    def decode(self):
        return self.chunk == 1

    @property
    def key(self):
        start = f" from {self.start}" if self.start else ""
        heads = f"{self.q_heads}/{self.kv_heads} x {self.dim}"
        return f"{self.n_seqs} x {self.chunk} over {self.cached}, {heads} {self.dtype}{start}"

    @property
    def layer_bytes(self):
        """K and V that are visible to a step."""
        return self.n_seqs * self.cached * self.kv_heads * 2 * self.dim * SIZE[self.dtype]

    @property
    def step_bytes(self):
        """The fewest bytes that a step can move: visible K and V read once, new rows read and stored, queries read,
        results written. Of a chunk, each query sees `cached` tokens; together they see the chunk in addition."""
        row = self.dim * SIZE[self.dtype]
        visible = self.n_seqs * (self.cached - 1) * self.kv_heads * 2 * row
        rows = self.n_seqs * self.chunk
        return visible + rows * (2 * 2 * self.kv_heads + 2 * self.q_heads) * row

    @property
    def step_flops(self):
        """QK^T and PV of every query with every key it sees."""
        return 4 * self.n_seqs * self.chunk * self.cached * self.q_heads * self.dim


def all_cases():
    """Everything the benchmark measures, the most valuable first."""
    ranked = []
    for heads in HEADS:
        for dtype in ("bf16", "f16"):
            for n_seqs in SEQUENCES:
                for cached in CACHED:
                    rank = (
                        3 * HEADS.index(heads)
                        + 4 * (dtype == "f16")
                        + 1.5 * SEQUENCES.index(n_seqs)
                        + 2 * CACHED.index(cached)
                    )
                    core = heads == HEADS[0] and dtype == "bf16" and cached == 2048 and n_seqs in (1, 64)
                    ranked.append((rank, Case(n_seqs, cached, *heads, dtype, core=core)))
            for chunk in CHUNKS:
                for cached in (2048, 16384):
                    rank = (
                        1
                        + 4 * HEADS.index(heads)
                        + 4 * (dtype == "f16")
                        + 1.5 * CHUNKS.index(chunk)
                        + 3 * (cached > 2048)
                    )
                    core = heads == HEADS[0] and dtype == "bf16" and cached == chunk == 2048
                    ranked.append((rank, Case(1, cached, *heads, dtype, chunk, core=core)))
    # Lengths for which others have published times (published.py), where they are not there already.
    for cached in sorted(set(published.CACHED) - set(CACHED)):
        ranked.append((3.0, Case(1, cached, *HEADS[0], "bf16")))
    # A far stream position should cost nothing: phases are exact at every position.
    for start in (10_000, 10_000_000):
        ranked.append((0.5, Case(1, 2048, *HEADS[0], "bf16", start=start)))
    ranked.sort(key=lambda pair: pair[0])
    return [case for _, case in ranked]


def smoke_cases(dtypes=("bf16", "f16"), dim=64):
    """Tiny cases, to test that everything runs."""
    return [
        Case(2, 48, 4, 2, dim, dtypes[0], core=True),
        Case(1, 48, 4, 2, dim, dtypes[-1], start=10_000_000),
        Case(2, 48, 4, 2, dim, dtypes[-1], chunk=20, core=True),
        # More batch entries than fit into the parameters of a launch.
        Case(70, 24, 2, 1, dim, dtypes[0]),
    ]


def matches(name, text):
    """Whether `name` contains one of the words of `text`, separated by semicolons. An empty text matches any name."""
    words = [w.strip() for w in text.split(";") if w.strip()]
    return not words or any(w in name for w in words)


def select(cases, text):
    """The cases whose key matches."""
    return [c for c in cases if matches(c.key, text)]
