"""What a mutator is: it changes one file in place and says what it did.

Everything is drawn from the `random.Random` that it is given, so that a case is the same again from its seed.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SECRET = "the-secret-of-another-file-on-this-machine"
EXECUTED = "executed"  # the directory that a pickle makes in the working directory when it is executed


class NotApplicableError(Exception):
    """The file does not have what would be changed; another mutator is drawn."""


@dataclass(frozen=True)
class Damaged:
    """Where a mutator works: the file, a directory outside of its own, and files of the same name of other models."""

    path: Path
    outside: Path
    others: tuple[Path, ...]
    rng: random.Random


Mutator = Callable[[Damaged], str]
MUTATORS: dict[str, list[Mutator]] = {}


def mutates(group: str) -> Callable[[Mutator], Mutator]:
    """Enter a mutator for a group of files."""

    def enter(mutator: Mutator) -> Mutator:
        MUTATORS.setdefault(group, []).append(mutator)
        return mutator

    return enter
