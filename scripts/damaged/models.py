"""Damaged copies of a GGUF file: fields of its header with other values, cuts, and flipped bytes."""
import random
import struct
from dataclasses import dataclass

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
U32, I32, F32, TEXT, ARRAY = 4, 5, 6, 8, 9
COUNTS = [0, 1, 2, 1 << 20, 1 << 31, 1 << 32, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1]
NUMBERS = [0, 1, 3, 513, 1 << 16, 1 << 20, (1 << 20) + 1, 0x7fffffff, 0x80000000, 0xffffffff]
REALS = [0.0, -1e-5, -1.0, float("nan"), float("inf"), float("-inf"), 1e-38, 3e38]
KEY_TYPES = [0, 4, 6, 8, 9, 12, 13, 255, 0xffffffff]
TENSOR_TYPES = [1, 2, 4, 8, 12, 15, 24, 26, 30, 36, 39, 1000, 0xffffffff]
# Their first dimension and their offset are at the same place behind the name in every tensor.
LAST_HEADER_BYTES = 200


@dataclass
class Key:
    """Where a key of the header lies."""
    name: str
    begin: int
    type_at: int
    type: int
    value_at: int


@dataclass
class Tensor:
    """Where a tensor of the header lies."""
    name: str
    begin: int
    n_dims_at: int
    dims_at: int
    type_at: int
    offset_at: int


class Header:
    """Reads the header of a sound file."""

    def __init__(self, data):
        self.data, self.at = data, 4
        assert data[:4] == b"GGUF"
        self.number("I")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        self.keys = [self.key() for _ in range(n_keys)]
        self.tensors = [self.tensor() for _ in range(n_tensors)]
        self.end = self.at

    def number(self, form):
        """The next number."""
        value, = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self):
        """The next text, of a length in front of it."""
        n = self.number("Q")
        self.at += n
        return self.data[self.at - n:self.at].decode(errors="replace")

    def skip(self, kind, n=1):
        """Skips values."""
        if kind == TEXT:
            for _ in range(n):
                self.text()
        elif kind == ARRAY:
            element, length = self.number("I"), self.number("Q")
            self.skip(element, length)
        else:
            self.at += SIZES[kind] * n

    def key(self):
        """The next key, with its value."""
        begin, name, type_at = self.at, self.text(), self.at
        kind = self.number("I")
        key = Key(name, begin, type_at, kind, self.at)
        self.skip(kind)
        return key

    def tensor(self):
        """The next tensor."""
        begin, name, n_dims_at = self.at, self.text(), self.at
        dims_at = n_dims_at + 4
        self.at = dims_at + 8 * self.number("I")
        tensor = Tensor(name, begin, n_dims_at, dims_at, self.at, self.at + 4)
        self.at += 12
        return tensor


def u32(n):
    """Four bytes."""
    return struct.pack("<I", n)


def u64(n):
    """Eight bytes."""
    return struct.pack("<Q", n)


def key_changes(key):
    """Names, types and values of a key: what is changed, where, to which bytes."""
    yield "an empty name", key.begin, u64(0)
    yield "a name of 2^62 bytes", key.begin, u64(1 << 62)
    yield "another name", key.begin + 8, b"\0\n"
    for kind in KEY_TYPES:
        yield f"type {kind}", key.type_at, u32(kind)
    if key.type in (U32, I32):
        for n in NUMBERS:
            yield f"value {n}", key.value_at, u32(n)
    elif key.type == F32:
        for x in REALS:
            yield f"value {x}", key.value_at, struct.pack("<f", x)
    elif key.type == TEXT:
        for n in (0, 1 << 20, 1 << 62):
            yield f"a text of {n} bytes", key.value_at, u64(n)
        yield "another text", key.value_at + 8, b"\x1b\xff"
    elif key.type == ARRAY:
        for kind in KEY_TYPES:
            yield f"elements of type {kind}", key.value_at, u32(kind)
        for n in COUNTS:
            yield f"{n} elements", key.value_at + 4, u64(n)
        yield "another first element", key.value_at + 12, b"\xff" * 4
    else:
        for byte in (b"\0", b"\xff"):
            yield f"bytes {byte.hex()}", key.value_at, byte * SIZES[key.type]


def tensor_changes(tensor, file_bytes):
    """The same of a tensor."""
    yield "another name", tensor.begin + 8, b"zz"
    for n in (0, 1, 3, 5, 100, 1 << 31):
        yield f"{n} dimensions", tensor.n_dims_at, u32(n)
    for n in COUNTS:
        yield f"a dimension of {n}", tensor.dims_at, u64(n)
    for kind in TENSOR_TYPES:
        yield f"type {kind}", tensor.type_at, u32(kind)
    for n in (1, 32, file_bytes, 1 << 40, 1 << 63, (1 << 64) - 32):
        yield f"offset {n}", tensor.offset_at, u64(n)


def changes(data, header):
    """All changes of single fields: what, where, to which bytes."""
    for version in (0, 1, 2, 4, 0x03000000, 0xffffffff):
        yield f"version {version}", 4, u32(version)
    for n in COUNTS + [len(header.tensors) - 1, len(header.tensors) + 1]:
        yield f"{n} tensors", 8, u64(n)
    for n in COUNTS + [len(header.keys) - 1, len(header.keys) + 1]:
        yield f"{n} keys", 16, u64(n)
    for key in header.keys:
        for what, at, value in key_changes(key):
            yield f"key {key.name}: {what}", at, value
    # The tensors of all layers are alike.
    for tensor in header.tensors[:13] + header.tensors[-3:]:
        for what, at, value in tensor_changes(tensor, len(data)):
            yield f"tensor {tensor.name}: {what}", at, value


def cuts(data, header):
    """Lengths of files that are cut short: every 512 bytes of the header, some of the tensors."""
    yield from range(0, header.end + 4096, 512)
    yield from range(header.end + 4096, len(data), max(1, (len(data) - header.end) // 100))


def flipped(data, header, rng):
    """A copy with 1 to 16 other bytes in the header."""
    copy = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        key, tensor = rng.choice(header.keys), rng.choice(header.tensors)
        at = rng.choice([rng.randrange(header.end), rng.randrange(LAST_HEADER_BYTES), key.type_at,
                         key.value_at + rng.randrange(12), tensor.dims_at + rng.randrange(16), tensor.type_at,
                         tensor.offset_at + rng.randrange(8)])
        copy[at] ^= rng.choice([1 << rng.randrange(8), 0xff, rng.randrange(1, 256)])
    return bytes(copy)


def damaged(data, count, seed):
    """`count` damaged copies and what is wrong with each, others for another seed."""
    header, rng = Header(data), random.Random(seed)
    edits = [(what, lambda at=at, value=value: data[:at] + value + data[at + len(value):])
             for what, at, value in changes(data, header)]
    edits += [(f"cut after {n} bytes", lambda n=n: data[:n]) for n in cuts(data, header)]
    rng.shuffle(edits)
    # A fifth is random at least.
    edits = edits[:count * 4 // 5]
    for what, make in edits:
        yield what, make()
    for i in range(count - len(edits)):
        yield f"flipped bytes, {i}", flipped(data, header, rng)
