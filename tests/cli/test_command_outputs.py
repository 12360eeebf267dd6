"""--overwrite in every command: inputs, the working directory and what is not lonas-edge's are kept, and it says so at once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource

DATA = Path(__file__).parent.parent / "evaluate" / "data"


@pytest.fixture
def commands(llama_copy: TinySource, tmp_path: Path) -> dict[str, list[str]]:
    """Every command that writes a directory; what it reads looks like what lonas-edge wrote, so that it might be replaced."""
    data = tmp_path / "data/data.json"
    teacher = tmp_path / "teacher"
    for folder in (llama_copy.base, llama_copy.adapter, tmp_path / "ir", data.parent, teacher):
        folder.mkdir(exist_ok=True)
        (folder / "lonas_edge.json").write_text("{}")
    data.write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}]))
    (data.parent / "space.json").write_bytes(llama_copy.space.read_bytes())
    source = [str(llama_copy.adapter), "--model", str(llama_copy.base), "--nncf-config", str(data.parent / "space.json")]
    return {
        "export": ["export", *source],
        "train": ["train", *source[1:], "--data", str(data), "--teacher", str(teacher)],
        "eval": ["eval", *source, "--datasets", str(DATA)],
        "bench": ["bench", str(tmp_path / "ir"), "--variants", "subnet"],
    }


@pytest.mark.parametrize(
    ("command", "output"),
    [
        *(("export", name) for name in ("adapter", "base", "data")),
        *(("train", name) for name in ("base", "data", "teacher")),
        *(("eval", name) for name in ("adapter", "base", "data")),
        ("bench", "ir"),
    ],
)
def test_inputs_are_kept(command: str, output: str, commands: dict[str, list[str]], run_cli: Callable, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = run_cli(*commands[command], "--output", tmp_path / output, "--overwrite")
    assert (ran.code, ran.out) == (1, "")
    assert f"{tmp_path / output}: --overwrite would delete {tmp_path / output}" in ran.err
    assert "which this run reads" in ran.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["export", "eval"])
def test_a_base_that_the_adapter_names_is_kept(
    command: str, llama_copy: TinySource, run_cli: Callable, tmp_path: Path, commands: dict
) -> None:
    (llama_copy.adapter / "lonas_edge.json").unlink(missing_ok=True)  # eval would take it for an exported directory
    path = llama_copy.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(llama_copy.base)}))
    asked = ["--nncf-config", llama_copy.space, "--output", llama_copy.base, "--overwrite"]
    ran = run_cli(command, llama_copy.adapter, *asked, *commands[command][6:])
    assert ran.code == 1
    assert f"would delete {llama_copy.base}, which this run reads" in ran.err
