"""Mutations of any file: bytes, text encoding, file system."""

import json
import os
import re
import shutil
from collections.abc import Callable

from mutation import SECRET, NotApplicableError, Target, mutates


def _rewrite(target: Target, change: Callable[[bytearray], str]) -> str:
    content = bytearray(target.path.read_bytes())
    if not content:
        raise NotApplicableError
    message = change(content)
    target.path.write_bytes(content)
    return message


@mutates("bytes")
def flip_bits(target: Target) -> str:
    """One bit anywhere, or eight in the header."""

    def change(content: bytearray) -> str:
        in_header = target.rng.random() < 0.5
        limit = min(512, len(content)) if in_header else len(content)
        positions = [target.rng.randrange(limit) for _ in range(8 if in_header else 1)]
        for position in positions:
            content[position] ^= 1 << target.rng.randrange(8)
        return f"bits of bytes {positions} of {len(content)} flipped"

    return _rewrite(target, change)


@mutates("bytes")
def truncate(target: Target) -> str:
    size = target.path.stat().st_size
    length = target.rng.choice([0, 1, max(size - 1, 0), int(size * target.rng.random()), min(8, size)])
    os.truncate(target.path, length)
    return f"{length} of {size} bytes"


@mutates("bytes")
def insert(target: Target) -> str:
    """Random bytes in the middle, or zeros, random bytes or a copy at the end."""

    def change(content: bytearray) -> str:
        if target.rng.random() < 0.5:
            tail = target.rng.choice([b"\0" * 64, target.rng.randbytes(target.rng.randint(1, 4096)), bytes(content)])
            content += tail
            return f"{len(tail)} bytes appended"
        position, more = target.rng.randrange(len(content)), target.rng.randbytes(target.rng.choice([1, 4, 16, 1000]))
        content[position:position] = more
        return f"{len(more)} bytes inserted at {position}"

    return _rewrite(target, change)


@mutates("bytes")
def zero_a_block(target: Target) -> str:
    def change(content: bytearray) -> str:
        start = target.rng.randrange(len(content))
        stop = min(len(content), start + target.rng.choice([1, 16, 4096]))
        content[start:stop] = bytes(stop - start)
        return f"bytes {start} to {stop} zeroed"

    return _rewrite(target, change)


@mutates("bytes")
def garbage(target: Target) -> str:
    def change(content: bytearray) -> str:
        content[:] = target.rng.randbytes(len(content))
        return "random bytes of the same length"

    return _rewrite(target, change)


@mutates("text")
def byte_order_mark(target: Target) -> str:
    return _rewrite(target, lambda content: content.__setitem__(slice(0, 0), b"\xef\xbb\xbf") or "a byte-order mark in front")


@mutates("text")
def utf_16(target: Target) -> str:
    def change(content: bytearray) -> str:
        content[:] = content.decode("utf-8").encode("utf-16")
        return "encoded as UTF-16"

    return _rewrite(target, change)


@mutates("text")
def not_utf_8(target: Target) -> str:
    def change(content: bytearray) -> str:
        position, more = target.rng.randrange(len(content)), target.rng.choice([b"\xff", b"\xe9", b"\xed\xa0\x80", b"\0"])
        content[position:position] = more
        return f"{more!r} inserted at {position}"

    return _rewrite(target, change)


@mutates("text", times=2)
def line_removed_or_repeated(target: Target) -> str:
    lines = target.path.read_bytes().splitlines(keepends=True)
    if len(lines) < 2:
        raise NotApplicableError
    index, times = target.rng.randrange(len(lines)), target.rng.choice([0, 2])
    target.path.write_bytes(b"".join([*lines[:index], *[lines[index]] * times, *lines[index + 1 :]]))
    return f"line {index + 1} {times} times"


@mutates("text")
def another_number(target: Target) -> str:
    text = target.path.read_text()
    numbers = list(re.finditer(r"\d+", text))
    if not numbers:
        raise NotApplicableError
    number, other = target.rng.choice(numbers), target.rng.choice(["0", "-1", "7", "9" * 20, "1.5", "x", ""])
    target.path.write_text(text[: number.start()] + other + text[number.end() :])
    return f"{number.group()} at {number.start()} became {other!r}"


@mutates("file system")
def missing(target: Target) -> str:
    target.path.unlink()
    return "missing"


@mutates("file system", times=2)
def special_file(target: Target) -> str:
    """A directory, a FIFO or a link to a device."""
    kind = target.rng.choice(["directory", "FIFO", "/dev/zero", "/dev/null", "/dev/full"])
    target.path.unlink()
    if kind == "directory":
        target.path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(target.path)
    else:
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
