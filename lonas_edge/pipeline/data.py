"""Split the data into training and held-out examples."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from lonas_edge.data.task import Task

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"


def split(data: Task, eval_data: Task | None, most: int, seed: int, folder: Path) -> dict[str, int]:
    """Write the training and the held-out examples, see `Task.split`, as JSON Lines; return their numbers by part."""
    train, held_out = data.split(most, seed, eval_data)
    folder.mkdir(parents=True, exist_ok=True)
    train.write(folder / TRAIN)
    held_out.write(folder / HELD_OUT)
    return {"train": len(train.examples), "held_out": len(held_out.examples)}


def typical(lines: Iterable[str], count: int) -> list[str]:
    """The lines of a JSON Lines file nearest to the median length, for timed training steps."""
    known = [line for line in lines if line.strip()]
    middle = statistics.median(map(len, known))
    return sorted(known, key=lambda line: abs(len(line) - middle))[:count]
