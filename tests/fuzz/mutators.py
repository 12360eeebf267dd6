"""Draws the mutation of a file: the groups of mutators that fit it, and how often each is drawn."""

import mutate_bytes
import mutate_json
import mutate_tensors
from mutation import MUTATORS, NotApplicableError, Target

assert mutate_bytes and mutate_json and mutate_tensors  # they register their mutators

_GROUPS = {  # by suffix
    ".json": {"json": 6, "bytes": 2, "text": 1, "file system": 2, "others": 1},
    ".jsonl": {"lines": 3, "bytes": 2, "text": 2, "file system": 2},
    ".safetensors": {"safetensors": 5, "bytes": 3, "file system": 2, "others": 1},
    ".tsv": {"text": 4, "bytes": 3, "file system": 2},
    ".log": {"text": 3, "bytes": 3, "file system": 1},
    ".jinja": {"text": 3, "bytes": 2, "file system": 2},
    ".xml": {"text": 4, "bytes": 2, "file system": 1, "others": 1},
    ".pt": {"pickle": 3, "bytes": 2, "file system": 1},
    ".pth": {"pickle": 3, "bytes": 2, "file system": 1},
    ".bin": {"pickle": 3, "bytes": 3, "file system": 2, "others": 1},
}
_OPAQUE = {"bytes": 3, "file system": 2, "others": 1}  # OpenVINO's .bin, and files without a suffix
_IMPOSSIBLE = (ValueError, RuntimeError, TypeError, OverflowError, ArithmeticError, IndexError)  # NaN in a boolean tensor


def mutate(target: Target) -> str:
    """Mutate a file in a random way; return the mutator's name and a description."""
    opaque = target.path.suffix == ".bin" and target.path.name.startswith("openvino")
    groups = _OPAQUE if opaque else _GROUPS.get(target.path.suffix, _OPAQUE)
    before = target.path.read_bytes()
    while True:
        (group,) = target.rng.choices(list(groups), list(groups.values()))
        mutator = target.rng.choice(MUTATORS[group])
        try:
            return f"{mutator.__name__}: {mutator(target)}"
        except NotApplicableError:
            continue
        except _IMPOSSIBLE:
            target.path.write_bytes(before)
