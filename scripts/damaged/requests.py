"""Hostile request lines for inflight-serve."""
import json
import random

MEGABYTES = b"x" * 10_000_000
PARTS = [b'"', b"{", b"[", b"}", b"]", b"1e999", b"-", b"\\", b"\\u0000", b",", b":", b"null", b"true", b"\xff", b"\0",
         b"99999999999999999999", b"\xef\xbb\xbf", b"\r", b"[" * 1000]


def nested(begin, end, depth):
    """Arrays or objects inside one another."""
    return begin * depth + end * depth


def with_field(name, value):
    """A request with one more field, `value` as JSON."""
    return b'{"id":"b","prompt":"x","max_tokens":2,"%s":%s}' % (name.encode(), value)


def directed():
    """Lines by what is wrong with them."""
    for depth in (17, 60_000, 1_000_000):
        yield f"{depth} arrays as id", b'{"id":%s,"prompt":"x"}' % nested(b"[", b"]", depth)
        yield f"{depth} arrays, nothing else", nested(b"[", b"]", depth)
        yield f"{depth} arrays without an end", b"[" * depth
        yield f"{depth} objects as tokens", b'{"id":"b","tokens":%s1%s}' % (b'{"a":' * depth, b"}" * depth)
        yield f"{depth} arrays in an unknown field", with_field("zz", nested(b"[", b"]", depth))
    numbers = [b"1e999", b"-1e999", b"1e400", b"1e300", b"1e-300", b"-1", b"0", b"1.5", b"NaN", b"Infinity", b"1e9",
               b"4294967296", b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"0x10", b"01"]
    values = [b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b'"\\u001b[2J"', b'"\xff\xfe"',
              b'"\0"']
    for name in ("temperature", "max_tokens", "seed", "cancel_after"):
        for value in numbers + values:
            # Requests of 2^32 tokens are sound, but do not end.
            if name != "max_tokens" or value != b"4294967295":
                yield f"{name} {value!r}", with_field(name, value)
    for value in [b"-1", b"9223372036854775808", b"4000000000000000000", b"1e999", b'"soon"']:
        yield f"arrival {value!r}", with_field("arrival", value)
    for name in ("conversation", "continue", "fork", "end", "zz"):
        for value in values + [b'"nobody"', b"7"]:
            yield f"{name} {value!r}", with_field(name, value)
    for value in [b"[]", b"[-1]", b"[1e30]", b"[1e999]", b"[259]", b"[1.5]", b'["a"]', b"[[5]]", b"5", b"[null]",
                  b"[%s5]" % (b"5," * 999_999)]:
        yield f"tokens {value[:20]!r}", b'{"id":"b","tokens":%s,"max_tokens":1}' % value
    for value in values:
        yield f"id {value!r}", b'{"id":%s,"prompt":"x","max_tokens":1}' % value
        yield f"prompt {value!r}", b'{"id":"b","prompt":%s,"max_tokens":1}' % value
    for name in ("id", "prompt", "conversation", "continue", "temperature"):
        others = b"" if name == "id" else b'"id":"b",'
        yield f"{name} of 10 MB", b'{%s"%s":"%s"}' % (others, name.encode(), MEGABYTES)
    yield "a field of 10 MB", with_field("x" * 10_000_000, b"1")
    yield "an array of 10 MB as id", b'{"id":[%s1],"prompt":"x"}' % (b"1," * 5_000_000)
    yield "10 MB of no JSON", MEGABYTES
    for line in [
        b"[]", b"5", b"null", b'"text"', b"{}", b"{", b"}", b"\x0c", b"\xef\xbb\xbf{}", b"//", b'{"id":"b",}',
        b'{"id":"b","prompt":"x"}{"id":"c","prompt":"x"}',
        b'{"id":"b","id":"c","prompt":"x","max_tokens":1}',
        b'{"id":"first","prompt":"x","max_tokens":1}',
        b'{"id":"b","prompt":"x","max_tokens":1}\r',
        b'{"id":"b","prompt":"x","tokens":[5]}',
        b'{"id":"b","prompt":"x","fork":"b","conversation":"b"}',
    ]:
        yield f"line {line[:40]!r}", line


def mutated(rng):
    """A sound line with a few changes."""
    base = {"id": "b", "prompt": "It was a dark and", "max_tokens": 3, "temperature": 0.5, "seed": 1}
    base.update(rng.choice([{}, {"conversation": "c"}, {"fork": "c"}, {"arrival": 2}, {"cancel_after": 2}]))
    line = bytearray(json.dumps(base).encode())
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(line) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(line):
            line[at] = rng.choice([b for b in range(256) if b != 10])
        elif kind == 1:
            del line[at:at + rng.randrange(1, 20)]
        elif kind == 2:
            line[at:at] = rng.choice(PARTS)
        else:
            begin = rng.randrange(len(line) + 1)
            line[at:at] = line[begin:begin + 30]
    return bytes(line)


def hostile(count, seed):
    """All directed lines and `count` mutated ones, others for another seed."""
    yield from directed()
    rng = random.Random(seed)
    for i in range(count):
        yield f"mutation {i}", mutated(rng)
