"""The split of the data into training and held-out examples."""

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import split as split_task

from lonas_edge.data.language import LanguageTask, read_examples
from lonas_edge.errors import LonasEdgeError
from lonas_edge.pipeline.probe import typical

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(data: Path, held_out: Path | None, seed: int, folder: Path) -> dict[str, int]:
    tasks = [LanguageTask().read([(path, 1.0)]) if path else None for path in (data, held_out)]
    assert tasks[0]
    return split_task(tasks[0], tasks[1], 400, seed, folder)


def instructions(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "output": str(number)} for number in range(start, start + count)]


def outputs(path: Path) -> list[str]:
    return [json.loads(line)["output"] for line in path.read_text().splitlines()]


def test_a_tenth_is_held_out(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", instructions(500))
    assert split(data, None, 1, tmp_path / "a") == {"train": 450, "held_out": 50}
    train, held_out = outputs(tmp_path / "a" / TRAIN), outputs(tmp_path / "a" / HELD_OUT)
    assert sorted(map(int, train + held_out)) == list(range(500))
    split(data, None, 1, tmp_path / "b")
    assert outputs(tmp_path / "b" / HELD_OUT) == held_out
    split(data, None, 2, tmp_path / "c")
    assert outputs(tmp_path / "c" / HELD_OUT) != held_out


@pytest.mark.parametrize(("count", "held_out"), [(32, 16), (200, 20), (5000, 400)])
def test_bounds_of_the_held_out_part(tmp_path: Path, count: int, held_out: int) -> None:
    data = write(tmp_path / "data.jsonl", instructions(count))
    assert split(data, None, 0, tmp_path / "out") == {"train": count - held_out, "held_out": held_out}


def test_repeated_examples_are_not_on_both_sides(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", instructions(100) * 3)
    assert split(data, None, 0, tmp_path / "out") == {"train": 84, "held_out": 16}
    assert not set(outputs(tmp_path / "out" / TRAIN)) & set(outputs(tmp_path / "out" / HELD_OUT))


def test_own_held_out_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", instructions(40))
    held_out = write(tmp_path / "held.jsonl", instructions(20, start=30))
    assert split(data, held_out, 0, tmp_path / "out") == {"train": 30, "held_out": 20}


def test_of_many_held_out_examples_a_part_is_drawn(tmp_path: Path) -> None:
    """400 of all, not the first ones, by the seed; the others are not trained on unless they are in the data."""
    data = write(tmp_path / "data.jsonl", instructions(40))
    held_out = write(tmp_path / "held.jsonl", instructions(1000, start=30))
    kept = []
    for seed in (0, 0, 1):
        assert split(data, held_out, seed, tmp_path / "out")["held_out"] == 400
        kept.append(outputs(tmp_path / "out" / HELD_OUT))
    assert kept[0] == kept[1] != kept[2]
    assert max(map(int, kept[0])) > 900


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Ä?", "input": "more", "output": "ü\n"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 😀"}]},
        {"text": "a\tb"},
    ],
)
def test_examples_of_all_kinds_are_unchanged(tmp_path: Path, row: dict[str, Any]) -> None:
    rows = [json.loads(json.dumps(row).replace("Hi", f"Hi {index}")) for index in range(60)]
    for index, each in enumerate(rows):
        for name in ("instruction", "text"):
            if name in each:
                each[name] += str(index)
    data = write(tmp_path / "data.jsonl", rows)
    split(data, None, 0, tmp_path / "out")
    parts = [read_examples(tmp_path / "out" / name)[1] for name in (TRAIN, HELD_OUT)]
    assert set(parts[0]) | set(parts[1]) == set(read_examples(data)[1])


@pytest.mark.parametrize("count", [1, 31])
def test_too_few_examples(tmp_path: Path, count: int) -> None:
    data = write(tmp_path / "data.jsonl", instructions(count))
    with pytest.raises(LonasEdgeError, match=f"{count} distinct examples; expected at least 32.*--eval-data"):
        split(data, None, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_data(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(LonasEdgeError, match="holds no examples"):
        split(tmp_path / "data.jsonl", None, 0, tmp_path / "out")


def test_held_out_data_that_leave_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", instructions(20))
    with pytest.raises(LonasEdgeError, match="all 20 examples are also in"):
        split(data, data, 0, tmp_path / "out")
    few = write(tmp_path / "few.jsonl", instructions(3))
    with pytest.raises(LonasEdgeError, match="3 distinct examples; expected at least 16"):
        split(data, few, 0, tmp_path / "out")


def test_typical_lines_are_nearest_to_the_median_length() -> None:
    assert typical(["a" * 2, "b" * 1000, "c" * 6, "", "d" * 7, "e" * 8], 2) == ["d" * 7, "c" * 6]  # the median is 7


def test_examples_with_other_line_separators_stay_one_line(tmp_path: Path) -> None:
    """U+2028, U+2029 and U+0085 end a line for `str.splitlines`."""
    rows = [{"instruction": f"a\u2028b\u2029c\u0085{number}", "output": "d"} for number in range(40)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    split(tmp_path / "data.json", None, 0, tmp_path / "parts")
    lines = (tmp_path / "parts" / TRAIN).read_text().splitlines()
    assert len(lines) == 24
    assert all(json.loads(line)["instruction"].startswith("a\u2028b\u2029c\u0085") for line in lines)
