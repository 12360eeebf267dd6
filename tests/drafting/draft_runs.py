"""A tiny model that answers with letters, its prompts, and quick drafts."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lonas_edge.drafting import measure, training
from lonas_edge.exporting.drafts import DraftRecord

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"


def write_prompts(path: Path, count: int) -> Path:
    """Write conversations with distinct prompts, the last of several turns."""
    rows = [[("user", f"say {number}"), ("assistant", "abc")] for number in range(count)]
    rows[-1] = [("user", "hello"), ("assistant", "yes"), *rows[-1]]
    messages = [[{"role": role, "content": content} for role, content in row] for row in rows]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    return path


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps and few timed answers, on a processor that computes in bf16 by default."""
    monkeypatch.setattr(training, "STEPS", 20)
    monkeypatch.setattr(training, "EVERY", 10)
    monkeypatch.setattr(measure, "PROPOSED", (2, 3))
    monkeypatch.setattr(measure, "default_precision", lambda: "bf16")
    monkeypatch.setattr("lonas_edge.drafting.run._TIMED", 3)


@dataclass(frozen=True)
class Made:
    """A base, its INT8 IR, data and a draft with its record. Not to be changed."""

    base: Path
    model: Path
    data: Path
    draft: Path
    record: DraftRecord
