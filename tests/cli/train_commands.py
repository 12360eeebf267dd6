"""`lonas-edge train` on tiny models: its command, and what its errors say."""

from pathlib import Path
from typing import Any

from tiny_models import TinySource

OPTIONS = {
    "--rank": 8,
    "--alpha": 16,
    "--steps": 8,
    "--batch-size": 4,
    "--lr": 0.01,
    "--template": "question",
    "--device": "cpu",
    "--dtype": "fp32",
}


def arguments(source: TinySource, file: Path, output: Path, *flags: str, **changes: Any) -> list[str]:
    """The command; `changes` replace options (`batch_size=6`), None leaves one out."""
    options = {"--model": source.base, "--nncf-config": source.space, "--data": file, "--output": output, **OPTIONS}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    return ["train", *given, *flags]


def has(error: str, *texts: object) -> None:
    """Every text occurs in the error."""
    for text in texts:
        assert str(text) in error, f"{text!r} is not in:\n{error}"
