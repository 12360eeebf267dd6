"""Damaged files: a command refuses them in one line and leaves nothing, or reads them; it never prints a traceback."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource

FILES = (
    "base/config.json",
    "base/model.safetensors",
    "base/tokenizer.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "space.json",
)


def mutate(path: Path, draw: random.Random) -> str:
    """Damage a file as disks, downloads and editors do; return what was done."""
    content = bytearray(path.read_bytes())
    how = draw.choice(
        ["truncate", "flip", "empty", "remove a field"] if path.suffix == ".json" else ["truncate", "flip", "empty"]
    )
    if how == "truncate":
        del content[draw.randrange(len(content)) :]
    elif how == "flip":
        content[draw.randrange(min(512, len(content)))] ^= 1 << draw.randrange(8)
    elif how == "empty":
        content.clear()
    else:
        fields = json.loads(content)
        del fields[draw.choice(sorted(fields))]
        content = bytearray(json.dumps(fields).encode())
    path.write_bytes(content)
    return f"{path.name}: {how}"


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(llama_copy: TinySource, run_cli: Callable, tmp_path: Path, name: str) -> None:
    path = llama_copy.base.parent / name
    original, refused = path.read_bytes(), 0
    for seed in range(8):
        done = mutate(path, random.Random(f"{name}{seed}"))
        output = tmp_path / f"out-{seed}"
        ran = run_cli("export", *llama_copy.arguments(), "--output", output, "--stage", "checkpoint", "--no-verify")
        assert ran.code in (0, 1), (done, ran)
        assert "Traceback" not in ran.err, (done, ran)
        assert output.exists() == (ran.code == 0), done
        if ran.code:
            refused += 1
            assert ran.err.startswith("error: ") and not ran.out, (done, ran)
        path.write_bytes(original)
    assert refused >= 3
