"""Random calls of a cache, a third of them with one wrong argument, beside a cache that gets the same by the C ABI.

    python random_calls.py SECONDS [SEED]

What holds: a call gives the bits of the plain one, whatever arrays and numbers it is spelled with. A call that raises
raises the package's own Error or a TypeError with a text, writes nothing, and leaves every sequence as it was. What
means nothing, or a number that C cannot hold, raises.
"""
import ctypes
import itertools
import operator
import random
import sys
import time
from ctypes import byref, sizeof

import numpy as np

import sinkcache
from sinkcache import KVCache, Layer, Rope, _abi
from sinkcache._library import lib

HEADS, KV_HEADS, DIM, SEQS = 4, 2, 16, 3
TAG = bytes(range(32))
#: Written around every output, and in it before the call.
SENTINEL = np.float32(-77)
WRONG = (None, -1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -2**63, -2**200, 0.5, float("nan"), float("inf"), "a",
         "", b"\0" * 32, [], [0], [0, 1, 2, 3], [[0]], [None], [2**40], {}, object(), True, np.array(1),
         np.array([1.5]), np.array([], np.int64), np.array([[1]]), np.zeros((2, KV_HEADS, DIM), np.float32),
         np.zeros((0, 0, 0)),
         np.zeros((3, HEADS, DIM), ">f4"), np.zeros((3, HEADS, DIM), object), range(5), 1j, Ellipsis,
         np.datetime64("2020"), np.uint64(2**64 - 1), np.broadcast_to(np.float32(1), (3, KV_HEADS, DIM)))


class OnlyDLPack:
    """An array that is neither of NumPy nor of PyTorch."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **arguments):
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def read_before(arguments):
    """The arguments with lists for iterators, which can be read once, and those for the call."""
    known = {name: list(value) if hasattr(value, "__next__") else value for name, value in arguments.items()}
    return known, {name: iter(known[name]) if hasattr(value, "__next__") else value
                   for name, value in arguments.items()}


class Failure(AssertionError):
    """What must hold does not."""


def check(holds, what):
    if not holds:
        raise Failure(what)


class Meaningless(Exception):
    """An argument that a call has to refuse."""


def numbers_of(value, ctype, count=None):
    """What integers mean: one stands for `count`."""
    try:
        if hasattr(value, "__index__") and not getattr(value, "ndim", 0):
            numbers = [operator.index(value)] * (1 if count is None else count)
        else:
            numbers = [operator.index(n) for n in (value.tolist() if hasattr(value, "tolist") else value)]
    except TypeError as error:
        raise Meaningless(str(error)) from None
    if count is not None and len(numbers) != count:
        raise Meaningless(f"{len(numbers)} numbers, not {count}")
    array = (ctype * len(numbers))(*numbers)
    if list(array) != numbers:
        raise Meaningless(f"{numbers} does not fit")
    return array


def must_mean_rows(arguments, rows):
    """Of a step that was done: a batch of that many rows, and arrays of them."""
    numbers_of(arguments["layer"], ctypes.c_uint32, 1)
    ids = arguments["seq_ids"]
    bounds = None if arguments["qo_indptr"] is None else list(numbers_of(arguments["qo_indptr"], INT))
    # Without seq_ids, those from 0 on.
    ids = range(len(bounds or [0]) - 1) if ids is None else list(numbers_of(ids, INT))
    # Without qo_indptr, all rows are of one sequence, or one of each.
    if bounds is None and len(ids) != 1:
        bounds = list(range(len(ids) + 1))
    if bounds and (len(bounds) != len(ids) + 1 or bounds[0] != 0 or bounds[-1] != rows or bounds != sorted(bounds)):
        raise Meaningless(f"{bounds} of {rows} rows")
    for name in ("q", "k", "v", "out"):
        array = getattr(arguments[name], "array", arguments[name])
        if array is None and name == "out":
            continue
        heads = KV_HEADS if name in "kv" else HEADS
        right = array.shape == (rows, heads, DIM) and array.dtype == np.float32 and array.strides[2] == 4
        if not right or any(stride % 4 for stride in array.strides) or (name == "out" and not array.flags.writeable):
            raise Meaningless(f"{name} of shape {array.shape}, {array.dtype}, strides {array.strides}")


INT, LONG = ctypes.c_int32, ctypes.c_uint64
#: Name of the call: its struct, and the integers beside seq_ids.
EDITS = {
    "evict": (_abi.skc_evict_args, {"num_tokens": ("n_tokens", INT)}),
    "rewind": (_abi.skc_rewind_args, {"num_tokens": ("n_tokens", INT)}),
    "reset": (_abi.skc_reset_args, {"start_positions": ("start_positions", LONG)}),
    "pin": (_abi.skc_pin_args, {"first": ("first", LONG), "num_tokens": ("n_tokens", INT)}),
    "evict_range": (_abi.skc_evict_range_args, {"first": ("first", LONG), "num_tokens": ("n_tokens", INT)}),
    "fork": (_abi.skc_fork_args, {"src_seq_ids": ("src_seq_ids", INT)}),
}


def pointer(array):
    return array.ctypes.data


class Plain:
    """Calls of the C ABI with packed arrays. Each returns a status."""

    def __init__(self, cache):
        self.handle = cache._handle

    def step(self, layer, q, k, v, ids, counts, out, lse):
        args = _abi.skc_step_args(struct_size=sizeof(_abi.skc_step_args), flags=_abi.SKC_IN_STEP, layer=layer,
                                  n_entries=len(ids), seq_ids=(INT * len(ids))(*ids),
                                  n_tokens=(INT * len(ids))(*counts), q=pointer(q), k=pointer(k), v=pointer(v),
                                  out=pointer(out))
        args.lse = ctypes.cast(pointer(lse), ctypes.POINTER(ctypes.c_float))
        return lib.skc_step(self.handle, byref(args))

    def abort_step(self):
        args = _abi.skc_abort_step_args(struct_size=sizeof(_abi.skc_abort_step_args))
        return lib.skc_abort_step(self.handle, byref(args))

    def edit(self, name, arguments):
        kind, fields = EDITS[name]
        which = "dst_seq_ids" if name == "fork" else "seq_ids"
        ids = arguments[which]
        if ids is None:
            if name != "reset":
                raise Meaningless("None")
            ids = range(SEQS)
        ids = numbers_of(ids, INT)
        args = kind(struct_size=sizeof(kind), n_entries=len(ids), **{which: ids})
        for argument, (field, ctype) in fields.items():
            setattr(args, field, numbers_of(arguments[argument], ctype, len(ids)))
        return getattr(lib, f"skc_{name}")(self.handle, byref(args))

    def load(self, data, seq_id, tag):
        args = _abi.skc_load_sequence_args(struct_size=sizeof(_abi.skc_load_sequence_args),
                                           seq_id=numbers_of(seq_id, INT, 1)[0])
        try:
            data = bytes(memoryview(data))
        except (TypeError, ValueError) as error:
            raise Meaningless(str(error)) from None
        if tag is not None and not (isinstance(tag, bytes) and len(tag) == len(TAG)):
            raise Meaningless("no tag")
        tag = None if tag is None else (ctypes.c_uint8 * len(TAG))(*tag)
        args.data, args.n_bytes = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value, len(data)
        args.host_tag = tag
        return lib.skc_load_sequence(self.handle, byref(args))


class Run:
    """A cache, another that gets the same calls in plain form, and calls of both."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        sinks = self.random.randrange(4)
        pinned, segments = self.random.choice([(0, 0), (4, 3), (0, 2)])
        layers = [Layer(window_length=sinks + window, num_sink_tokens=sinks, rope=self.random.choice([Rope(), None]),
                        max_pinned=pinned, max_segments=segments) for window in (5, 9)]
        kv_dtype = self.random.choice(["float32", "float16", "q8"])
        settings = {"layers": layers, "max_batch_size": SEQS, "kv_dtype": kv_dtype, "max_chunk": 6,
                    "max_rewind": self.random.choice([0, 8]), "num_threads": 1}
        self.cache, self.other = (KVCache(2, HEADS, KV_HEADS, DIM, **settings) for _ in range(2))
        self.plain = Plain(self.other)
        self.raised = self.done = 0

    def close(self):
        self.cache.close()
        self.other.close()

    def state(self, cache):
        return [(cache.info(s, layer), cache.save(s)) for s in range(SEQS) for layer in range(2)]

    # Arguments

    def rows(self, count, heads):
        return self.rng.standard_normal((count, heads, DIM)).astype(np.float32)

    def spelled(self, array):
        """The same numbers in memory of another shape, or of another library."""
        way = self.random.randrange(5)
        if way == 0:
            wide = np.full((array.shape[0] * 2, array.shape[1], DIM + 8), SENTINEL)
            array, wide[::2, :, :DIM] = wide[::2, :, :DIM], array
        elif way == 1:
            array = np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(1, 0, 2)
        elif way == 2:
            array = np.ascontiguousarray(array[::-1])[::-1]
        elif way == 3:
            # DLPack does not hand out what is read-only, or in NumPy's odd strides.
            array = OnlyDLPack(np.ascontiguousarray(array))
        return array

    def numbers(self, values):
        values = list(values)
        kinds = [list, tuple, np.array, lambda v: np.array(v, np.uint64), lambda v: [np.int64(n) for n in v], iter]
        return self.random.choice(kinds)(values)

    def batch(self):
        """Sequences, each with a few rows."""
        ids = self.random.sample(range(SEQS), self.random.randint(1, SEQS))
        return ids, [self.random.randint(1, 4) for _ in ids]

    def damage(self, arguments):
        """One argument becomes wrong, or by chance is right all the same. Returns what it was."""
        if self.random.randrange(3) or not arguments:
            return None
        name = self.random.choice(list(arguments))
        near = self.nearly_right(arguments[name]) if self.random.randrange(2) else None
        arguments[name] = self.random.choice(WRONG) if near is None else near
        return name

    def nearly_right(self, value):
        """Numbers or an array of the right kind, with one thing wrong. None for others."""
        if isinstance(value, (list, tuple)):
            numbers = list(value)
            at = self.random.randrange(len(numbers))
            before, after = numbers[:at], numbers[at + 1:]
            return self.random.choice([before + after, numbers + numbers[-1:], numbers[::-1], [*before, -1, *after],
                                       [*before, 2**32, *after]])
        if isinstance(value, np.ndarray) and value.ndim == 3:
            fractions = np.zeros(value.shape[0], np.dtype([("x", value.dtype, value.shape[1:]), ("odd", np.uint8, 2)]))
            read_only = np.array(value)
            read_only.flags.writeable = False
            return self.random.choice([value[:-1], value[:, :-1], value[..., ::2], value.astype(np.float64),
                                       value.astype(np.float16), value[None], fractions["x"], read_only])
        return None

    # Calls

    def both(self, name, arguments, plain):
        """The call with `arguments`, one of which may be damaged, and `plain`, which is the same by the C ABI."""
        self.damage(arguments)
        known, arguments = read_before(arguments)
        before = self.state(self.cache)
        try:
            status = plain(known)
        except Meaningless as why:
            status = why
        try:
            getattr(self.cache, name)(**arguments)
        except (sinkcache.Error, TypeError) as error:
            self.is_refused(name, error, before)
            if isinstance(status, Meaningless):
                own = isinstance(error, TypeError) or error.status == sinkcache.Status.INVALID_ARGUMENT
                check(own, f"{name}: {error!r}, and the argument has no meaning: {status}")
            else:
                check(status == getattr(error, "status", None), f"{name}: {error!r}, and the C ABI returned {status}")
        else:
            self.done += 1
            check(status == 0, f"{name} took {known}, and the C ABI has {status}")
        check(self.state(self.cache) == self.state(self.other), f"{name}: both caches hold the same")

    def is_refused(self, name, error, before):
        self.raised += 1
        check(str(error), f"{name}: the error has a text")
        check(len(str(error)) < 2000, f"{name}: the error's text is short")
        check(self.state(self.cache) == before, f"{name}: nothing has changed after: {error}")

    def follow(self):
        """The plain cache becomes like the first."""
        for s in range(SEQS):
            self.other.load(self.cache.save(s), s)

    def step(self):
        """A step of both layers, by one call or two, each of which may be damaged."""
        ids, counts = self.batch()
        bounds = [0, *itertools.accumulate(counts)]
        split = self.random.randrange(3) == 0
        damaged = None
        before = self.lengths()
        for layer in range(2):
            q, k, v = (self.rows(bounds[-1], heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
            want, want_lse = np.empty((bounds[-1], HEADS, DIM), np.float32), np.empty((bounds[-1], HEADS), np.float32)
            status = self.plain.step(layer, q, k, v, ids, counts, want, want_lse)
            # Amid memory that must stay as it is.
            out, lse = (np.full((bounds[-1] + 2, *shape), SENTINEL) for shape in ((HEADS, DIM), (HEADS,)))
            arguments = {"layer": layer, "q": self.spelled(q), "k": self.spelled(k), "v": self.spelled(v),
                         "seq_ids": self.numbers(ids), "qo_indptr": self.numbers(bounds), "out": out[1:-1],
                         "lse": lse[1:-1]}
            now = self.damage(arguments)
            damaged = damaged or now
            known, arguments = read_before(arguments)
            try:
                self.call_step(arguments, split)
            except (sinkcache.Error, TypeError) as error:
                self.raised += 1
                check(damaged or error.status == status, f"step: {error!r}, and the C ABI returned {status}")
                check(str(error), "the error has a text")
                check((out == SENTINEL).all() and (lse == SENTINEL).all(), f"a call that fails writes nothing: {error}")
                self.cache.abort_step()
                check(split or layer == 1 or self.lengths() == before, f"lengths are as before: {error}")
                break
            self.done += 1
            try:
                must_mean_rows(known, bounds[-1])
            except Meaningless as why:
                raise Failure(f"step took {known}: {why}") from None
            check(damaged or status == 0, f"step took what the C ABI refused with {status}")
            edges = (out[[0, -1]] == SENTINEL).all() and (lse[[0, -1]] == SENTINEL).all()
            check(edges, "nothing beside out and lse is written")
            if not damaged:
                check((out[1:-1] == want).all() and (lse[1:-1] == want_lse).all(), "results are those of the C ABI")
        self.cache.abort_step()
        self.plain.abort_step()
        if damaged:
            self.follow()
        check(self.state(self.cache) == self.state(self.other), "both caches hold the same after a step")

    def call_step(self, arguments, split):
        if not split:
            self.cache.step(**arguments)
            return
        arguments, _ = read_before(arguments)
        self.cache.append(**{name: arguments[name] for name in ("layer", "k", "v", "seq_ids", "qo_indptr")})
        self.cache.attend(**{name: value for name, value in arguments.items() if name not in ("k", "v")})

    def lengths(self):
        return [(info.length_min, info.length_max) for info in map(self.cache.info, range(SEQS))]

    def edit(self):
        ids, _ = self.batch()
        name = self.random.choice(["evict", "rewind", "reset", "pin", "evict_range", "fork"])
        if name == "fork":
            pairs = {"src_seq_ids": [self.random.randrange(SEQS) for _ in ids], "dst_seq_ids": ids}
        elif name == "reset":
            pairs = {"seq_ids": ids, "start_positions": [self.random.choice([0, 5, 2**40]) for _ in ids]}
        else:
            pairs = {"num_tokens": [self.random.randrange(6) for _ in ids], "seq_ids": ids}
            if name in ("pin", "evict_range"):
                length = max(info.length_max for info in (self.cache.info(s) for s in ids))
                pairs["first"] = [self.random.randrange(length + 2) for _ in ids]
        arguments = {key: self.numbers(value) for key, value in pairs.items()}
        self.both(name, arguments, lambda known: self.plain.edit(name, known))

    def snapshot(self):
        source, to = self.random.randrange(SEQS), self.random.randrange(SEQS)
        data = self.cache.save(source, tag=TAG)
        if self.random.randrange(2):
            changed = bytearray(data)
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
            data = bytes(changed[: self.random.choice([len(changed), self.random.randrange(len(changed))])])
        arguments = {"snapshot": self.random.choice([bytes, bytearray, memoryview])(data), "seq_id": np.int64(to),
                     "tag": TAG}
        self.both("load", arguments, lambda known: self.plain.load(known["snapshot"], known["seq_id"], known["tag"]))

    def ask(self):
        """Calls that change nothing, with any arguments."""
        before = self.state(self.cache)
        name, arguments = self.random.choice([
            ("info", {"seq_id": 0, "layer": 1}), ("save", {"seq_id": 1, "tag": TAG}),
            ("kernel", {"layer": 1, "num_tokens": 3, "num_seqs": 2}), ("abort_step", {"seq_ids": [0, 2]}),
            ("poll_error", {}), ("note_replay", {"num_tokens": 1, "seq_ids": 0}),
            ("copy_from", {"source": self.cache, "src_seq_id": 1, "seq_id": 1}), ("__repr__", {})])
        self.damage(arguments)
        try:
            getattr(self.cache, name)(**arguments)
            self.done += 1
            self.follow()
        except (sinkcache.Error, TypeError) as error:
            self.is_refused(name, error, before)

    def create(self):
        """Settings of a cache that is small whatever they are."""
        arguments = {"num_layers": 1, "num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 16, "window_length": 12,
                     "num_sink_tokens": 4, "rope": Rope(), "max_batch_size": 1, "max_chunk": 8, "max_rewind": 4,
                     "sm_scale": 0.5, "logits_soft_cap": 0.0, "sink_logits": None, "alibi_slopes": None,
                     "max_pinned": 0, "max_segments": 0, "head_dim_vo": 16, "dtype": "float32", "out_dtype": None,
                     "kv_dtype": None,
                     "num_threads": 1, "device": "cpu", "log": None, "in_step": True, "layers": None}
        if self.random.randrange(2):
            arguments["rope"] = Rope(**{self.random.choice(
                ["theta", "dim", "interleaved", "scale", "inv_freq", "mscale", "applied"]): self.random.choice(WRONG)})
        else:
            arguments[self.random.choice(list(arguments))] = self.random.choice(WRONG)
        if arguments["layers"] is None:
            del arguments["layers"]
        # Gigabytes are allowed, and not what is looked for.
        if any(isinstance(n, int) and 2**24 < n < 2**32 for n in arguments.values()):
            return
        counts = [arguments[name] for name in (
            "num_layers", "num_qo_heads", "num_kv_heads", "head_dim", "window_length", "num_sink_tokens",
            "max_batch_size", "max_chunk", "max_rewind")]
        try:
            with KVCache(**arguments) as cache:
                check(cache.nbytes > 0 and repr(cache), "a cache has memory")
                check(all(hasattr(n, "__index__") and 0 <= n < 2**32 for n in counts), f"a cache of {arguments}")
            self.done += 1
        except (sinkcache.Error, TypeError) as error:
            check(str(error), "the error has a text")
            self.raised += 1

    def calls(self, count):
        for _ in range(count):
            self.random.choice([self.step, self.step, self.step, self.edit, self.edit, self.snapshot, self.ask,
                                self.create])()


def run(seed, calls=40):
    """One run. Returns how many calls were done, and how many were refused."""
    one = Run(seed)
    try:
        one.calls(calls)
    except Exception:
        print(f"seed {seed}", file=sys.stderr)
        raise
    finally:
        one.close()
    return one.done, one.raised


def main():
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    end = time.monotonic() + seconds
    done = raised = 0
    first = seed
    while time.monotonic() < end:
        counts = run(seed)
        done, raised, seed = done + counts[0], raised + counts[1], seed + 1
    print(f"seeds {first} to {seed - 1}: {done} calls done, {raised} refused")


if __name__ == "__main__":
    main()
