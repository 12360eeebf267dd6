"""Damage to any file: its bytes, its encoding, its place in the file system."""

import json
import os
import re
import shutil
from collections.abc import Callable

from damage import SECRET, Damaged, NotApplicableError, mutates

_HEADER = 512  # bytes: where a file says what it is

# any file: bytes


def _rewrite(at: Damaged, change: Callable[[bytearray], str]) -> str:
    content = bytearray(at.path.read_bytes())
    if not content:
        raise NotApplicableError
    told = change(content)
    at.path.write_bytes(content)
    return told


@mutates("bytes")
def flip_a_bit(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        place, bit = at.rng.randrange(len(content)), at.rng.randrange(8)
        content[place] ^= 1 << bit
        return f"bit {bit} of byte {place} of {len(content)} flipped"

    return _rewrite(at, change)


@mutates("bytes")
def flip_bits_of_the_header(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        places = [at.rng.randrange(min(_HEADER, len(content))) for _ in range(8)]
        for place in places:
            content[place] ^= 1 << at.rng.randrange(8)
        return f"bits of bytes {places} flipped"

    return _rewrite(at, change)


@mutates("bytes")
def cut_off(at: Damaged) -> str:
    size = at.path.stat().st_size
    left = at.rng.choice([0, 1, max(size - 1, 0), int(size * at.rng.random()), min(8, size)])
    os.truncate(at.path, left)
    return f"cut off at {left} of {size} bytes"


@mutates("bytes")
def append(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        tail = at.rng.choice([b"\0" * 64, at.rng.randbytes(at.rng.randint(1, 4096)), bytes(content)])
        content += tail
        return f"{len(tail)} bytes appended"

    return _rewrite(at, change)


@mutates("bytes")
def insert(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        place, more = at.rng.randrange(len(content)), at.rng.randbytes(at.rng.choice([1, 4, 16, 1000]))
        content[place:place] = more
        return f"{len(more)} bytes inserted at {place}"

    return _rewrite(at, change)


@mutates("bytes")
def zero_a_block(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        place = at.rng.randrange(len(content))
        stop = min(len(content), place + at.rng.choice([1, 16, 4096]))
        content[place:stop] = bytes(stop - place)
        return f"bytes {place} to {stop} zeroed"

    return _rewrite(at, change)


@mutates("bytes")
def garbage(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        content[:] = at.rng.randbytes(len(content))
        return "random bytes of the same length"

    return _rewrite(at, change)


# text files: encodings


@mutates("text")
def byte_order_mark(at: Damaged) -> str:
    return _rewrite(at, lambda content: content.__setitem__(slice(0, 0), b"\xef\xbb\xbf") or "a byte-order mark in front")


@mutates("text")
def utf_16(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        content[:] = content.decode("utf-8").encode("utf-16")
        return "encoded as UTF-16"

    return _rewrite(at, change)


@mutates("text")
def not_utf_8(at: Damaged) -> str:
    def change(content: bytearray) -> str:
        place, more = at.rng.randrange(len(content)), at.rng.choice([b"\xff", b"\xe9", b"\xed\xa0\x80", b"\0"])
        content[place:place] = more
        return f"{more!r} inserted at {place}"

    return _rewrite(at, change)


@mutates("text")
def a_line_less(at: Damaged) -> str:
    lines = at.path.read_bytes().splitlines(keepends=True)
    if len(lines) < 2:
        raise NotApplicableError
    place = at.rng.randrange(len(lines))
    at.path.write_bytes(b"".join(lines[:place] + lines[place + 1 :]))
    return f"line {place + 1} left out"


@mutates("text")
def a_line_twice(at: Damaged) -> str:
    lines = at.path.read_bytes().splitlines(keepends=True)
    place = at.rng.randrange(len(lines))
    at.path.write_bytes(b"".join([*lines[: place + 1], *lines[place:]]))
    return f"line {place + 1} twice"


@mutates("text")
def another_number(at: Damaged) -> str:
    text = at.path.read_text()
    found = list(re.finditer(r"\d+", text))
    if not found:
        raise NotApplicableError
    number = at.rng.choice(found)
    other = at.rng.choice(["0", "-1", "7", "9" * 20, "1.5", "x", ""])
    at.path.write_text(text[: number.start()] + other + text[number.end() :])
    return f"{number.group()} at {number.start()} became {other!r}"


# the place in the file system


@mutates("place")
def missing(at: Damaged) -> str:
    at.path.unlink()
    return "missing"


@mutates("place")
def a_directory(at: Damaged) -> str:
    at.path.unlink()
    at.path.mkdir()
    return "a directory"


@mutates("place")
def a_fifo(at: Damaged) -> str:
    at.path.unlink()
    os.mkfifo(at.path)
    return "a FIFO"


@mutates("place")
def a_device(at: Damaged) -> str:
    device = at.rng.choice(["/dev/zero", "/dev/null", "/dev/full"])
    at.path.unlink()
    at.path.symlink_to(device)
    return f"a link to {device}"


@mutates("place")
def a_link_outside(at: Damaged) -> str:
    """To the same content, in a directory that is not the file's own."""
    moved = at.outside / at.path.name
    shutil.move(at.path, moved)
    at.path.symlink_to(os.path.relpath(moved, at.path.parent) if at.rng.random() < 0.5 else moved)
    return "a link to the same content outside"


@mutates("place")
def a_link_to_a_secret(at: Damaged) -> str:
    secret = at.outside / "secret"
    secret.write_text(at.rng.choice([SECRET, json.dumps({"secret": SECRET})]))
    at.path.unlink()
    at.path.symlink_to(secret)
    return "a link to a secret outside"


@mutates("place")
def a_dangling_link(at: Damaged) -> str:
    at.path.unlink()
    at.path.symlink_to(at.rng.choice(["nowhere", "/nowhere/at/all", at.path.name]))
    return f"a link to {at.path.readlink()}"


@mutates("others")
def of_another_model(at: Damaged) -> str:
    if not at.others:
        raise NotApplicableError
    other = at.rng.choice(at.others)
    shutil.copyfile(other, at.path)
    return f"that of {'/'.join(other.parts[-3:])}"
