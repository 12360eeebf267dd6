"""Draws the damage to a file: which groups of mutators go with it, and how often each."""

import damage_bytes
import damage_json
import damage_tensors
from damage import MUTATORS, Damaged, NotApplicableError

assert damage_bytes and damage_json and damage_tensors  # they enter their mutators in MUTATORS

_GROUPS = {  # groups of mutators by suffix, with how often each is drawn
    ".json": {"json": 6, "bytes": 2, "text": 1, "place": 2, "others": 1},
    ".jsonl": {"lines": 3, "bytes": 2, "text": 2, "place": 2},
    ".safetensors": {"safetensors": 5, "bytes": 3, "place": 2, "others": 1},
    ".tsv": {"text": 4, "bytes": 3, "place": 2},
    ".log": {"text": 3, "bytes": 3, "place": 1},
    ".jinja": {"text": 3, "bytes": 2, "place": 2},
    ".xml": {"text": 4, "bytes": 2, "place": 1, "others": 1},
    ".pt": {"pickle": 3, "bytes": 2, "place": 1},
    ".pth": {"pickle": 3, "bytes": 2, "place": 1},
    ".bin": {"pickle": 3, "bytes": 3, "place": 2, "others": 1},
}
_PLAIN = {"bytes": 3, "place": 2, "others": 1}  # openvino's .bin, and what has no suffix


def mutate(at: Damaged) -> str:
    """Damage a file; which way is drawn.

    Returns:
        The mutator's name and what it did.
    """
    opaque = at.path.suffix == ".bin" and at.path.name.startswith("openvino")
    groups = _PLAIN if opaque else _GROUPS.get(at.path.suffix, _PLAIN)
    before = at.path.read_bytes()
    while True:
        (group,) = at.rng.choices(list(groups), list(groups.values()))
        mutator = at.rng.choice(MUTATORS[group])
        try:
            told = mutator(at)
        except NotApplicableError:
            continue
        except (ValueError, UnicodeError, RuntimeError, TypeError, OverflowError, ArithmeticError, IndexError):
            at.path.write_bytes(before)  # what cannot be done to this very file, such as NaN in a tensor of booleans
            continue
        return f"{mutator.__name__}: {told}"
