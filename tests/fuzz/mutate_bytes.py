"""Mutations of any file: bytes, text encoding, file system."""

import json
import os
import random
import re
import shutil

from mutation import SECRET, NotApplicableError, Target, edits, mutates


@edits("bytes")
def flip_bits(content: bytearray, rng: random.Random) -> str:
    """One bit anywhere, or eight in the header."""
    in_header = rng.random() < 0.5
    limit = min(512, len(content)) if in_header else len(content)
    positions = [rng.randrange(limit) for _ in range(8 if in_header else 1)]
    for position in positions:
        content[position] ^= 1 << rng.randrange(8)
    return f"bits of bytes {positions} of {len(content)} flipped"


@edits("bytes")
def truncate(content: bytearray, rng: random.Random) -> str:
    size = len(content)
    del content[rng.choice([0, 1, size - 1, int(size * rng.random()), min(8, size)]) :]
    return f"{len(content)} of {size} bytes"


@edits("bytes")
def append(content: bytearray, rng: random.Random) -> str:
    """Zeros, random bytes or a copy."""
    tail = rng.choice([b"\0" * 64, rng.randbytes(rng.randint(1, 4096)), bytes(content)])
    content += tail
    return f"{len(tail)} bytes appended"


@edits("bytes")
def insert(content: bytearray, rng: random.Random) -> str:
    position, more = rng.randrange(len(content)), rng.randbytes(rng.choice([1, 4, 16, 1000]))
    content[position:position] = more
    return f"{len(more)} bytes inserted at {position}"


@edits("bytes")
def zero_a_block(content: bytearray, rng: random.Random) -> str:
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice([1, 16, 4096]))
    content[start:stop] = bytes(stop - start)
    return f"bytes {start} to {stop} zeroed"


@edits("bytes")
def garbage(content: bytearray, rng: random.Random) -> str:
    content[:] = rng.randbytes(len(content))
    return "random bytes of the same length"


@edits("text", times=2)
def another_encoding(content: bytearray, rng: random.Random) -> str:
    """A byte-order mark, or UTF-16."""
    if rng.random() < 0.5:
        content[:0] = b"\xef\xbb\xbf"
        return "a byte-order mark in front"
    content[:] = content.decode("utf-8").encode("utf-16")
    return "encoded as UTF-16"


@edits("text")
def not_utf_8(content: bytearray, rng: random.Random) -> str:
    position, more = rng.randrange(len(content)), rng.choice([b"\xff", b"\xe9", b"\xed\xa0\x80", b"\0"])
    content[position:position] = more
    return f"{more!r} inserted at {position}"


@edits("text", times=2)
def line_removed_or_repeated(content: bytearray, rng: random.Random) -> str:
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        raise NotApplicableError
    index, times = rng.randrange(len(lines)), rng.choice([0, 2])
    content[:] = b"".join([*lines[:index], *[lines[index]] * times, *lines[index + 1 :]])
    return f"line {index + 1} {times} times"


@edits("text")
def another_number(content: bytearray, rng: random.Random) -> str:
    numbers = list(re.finditer(rb"\d+", bytes(content)))
    if not numbers:
        raise NotApplicableError
    number, other = rng.choice(numbers), rng.choice(["0", "-1", "7", "9" * 20, "1.5", "x", ""])
    content[number.start() : number.end()] = other.encode()
    return f"{number.group().decode()} at {number.start()} became {other!r}"


@mutates("file system", times=3)
def missing_or_special(target: Target) -> str:
    """Nothing, a directory, a FIFO or a link to a device."""
    kind = target.rng.choice(["missing", "missing", "directory", "FIFO", "/dev/zero", "/dev/null", "/dev/full"])
    target.path.unlink()
    if kind == "directory":
        target.path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(target.path)
    elif kind != "missing":
        target.path.symlink_to(kind)
    return kind


@mutates("file system", times=2)
def link(target: Target) -> str:
    """A link to the same content outside, to a secret, or to nothing."""
    kind = target.rng.choice(["same content", "secret", "dangling"])
    if kind == "same content":
        moved = target.outside / target.path.name
        shutil.move(target.path, moved)
        target.path.symlink_to(os.path.relpath(moved, target.path.parent) if target.rng.random() < 0.5 else moved)
        return "a link to the same content outside"
    target.path.unlink()
    if kind == "dangling":
        target.path.symlink_to(target.rng.choice(["nowhere", "/nowhere/at/all", target.path.name]))
        return f"a link to {target.path.readlink()}"
    secret = target.outside / "secret"
    secret.write_text(target.rng.choice([SECRET, json.dumps({"secret": SECRET})]))
    target.path.symlink_to(secret)
    return "a link to a secret outside"


@mutates("others")
def of_another_model(target: Target) -> str:
    if not target.others:
        raise NotApplicableError
    other = target.rng.choice(target.others)
    shutil.copyfile(other, target.path)
    return f"the one of {'/'.join(other.parts[-3:])}"
