"""Errors of libraries: recognized, shortened and escaped."""

import pytest

from lonas_edge.errors import LonasEdgeError, escaped, one_line, out_of_memory, raise_all

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(ALLOCATOR),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("Exception from src/inference/src/cpp/core.cpp:132:\nResource temporarily unavailable"),
    ],
)
def test_out_of_memory_is_recognized(error: Exception) -> None:
    assert out_of_memory(error)
    wrapped = ValueError("cannot be read")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped)


@pytest.mark.parametrize("error", [ValueError("no allocation plan"), OSError(28, "No space left"), KeyError("a")])
def test_other_errors(error: Exception) -> None:
    assert not out_of_memory(error)
    assert not out_of_memory(LonasEdgeError("the allocator's name"))


def test_control_characters_are_shown() -> None:
    assert escaped("a\x1b[31mb\x07\x9bc\r\n d\té “±”") == "a\\x1b[31mb\\x07\\x9bc\\r\n d\té “±”"
    assert one_line("a\n  b\x00\n" + "c" * 1000) == f"a b\\x00 {'c' * 492} …"


def test_a_long_problem_is_shortened() -> None:
    with pytest.raises(LonasEdgeError) as raised:
        raise_all("The file cannot be used:", [f"field = {'x' * 100_000}"])
    assert len(str(raised.value)) < 2_000
    assert str(raised.value).endswith("x …")


def test_equal_mistakes_in_many_lines_are_one() -> None:
    """With the first three lines; other problems stay as they are."""
    few = [f"line {number}: no text" for number in (2, 5)]
    many = [f"data.jsonl, line {number}: cut off" for number in range(10, 40)]
    with pytest.raises(LonasEdgeError) as raised:
        raise_all("Wrong:", ["line 1: empty", *few, *many, "a: missing"])
    merged = ["lines 2 and 5: no text", "data.jsonl, lines 10, 11, 12 and 27 more: cut off"]
    assert str(raised.value) == "\n  - ".join(["Wrong:", "line 1: empty", *merged, "a: missing"])
