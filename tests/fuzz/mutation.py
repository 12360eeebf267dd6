"""Registry of mutators: each changes one file in place and describes the change. `random.Random` makes a case repeatable."""

import functools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECRET = "the-secret-of-another-file-on-this-machine"
EXECUTED = "executed"  # a directory that a pickle creates when it is executed


class NotApplicableError(Exception):
    """The file has nothing that this mutator changes; another one is drawn."""


@dataclass(frozen=True)
class Target:
    """The file to change, a directory outside of its own, and files of the same name from other models."""

    path: Path
    outside: Path
    others: tuple[Path, ...]
    rng: random.Random


Mutator = Callable[[Target], str]
Edit = Callable[[Any, random.Random], str]
MUTATORS: dict[str, list[Mutator]] = {}


def mutates(group: str, times: int = 1) -> Callable[[Mutator], Mutator]:
    """Register a mutator for a group of files; it is drawn `times` as often as the others."""

    def register(mutator: Mutator) -> Mutator:
        MUTATORS.setdefault(group, []).extend([mutator] * times)
        return mutator

    return register


def edits(group: str, times: int = 1, decoded: bool = False) -> Callable[[Edit], Edit]:
    """Register a mutator that edits the content in place: a bytearray, or `decoded` JSON."""

    def register(edit: Edit) -> Edit:
        @mutates(group, times)
        @functools.wraps(edit)
        def mutator(target: Target) -> str:
            content = read_json(target.path) if decoded else bytearray(target.path.read_bytes())
            if not content:
                raise NotApplicableError
            message = edit(content, target.rng)
            target.path.write_bytes(json.dumps(content).encode() if decoded else content)
            return message

        return edit

    return register


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise NotApplicableError from None
