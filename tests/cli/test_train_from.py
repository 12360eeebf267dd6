"""`lonas-edge train --from`: one sub-network of a super-adapter, through the real command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource
from train_commands import arguments, has

OF_THE_SUPER_ADAPTER = dict.fromkeys(("model", "nncf_config", "rank", "alpha", "template"))


def from_(source: TinySource, start: Path, data: Path, output: Path, *flags: str, **changes: object) -> list[str]:
    """The command."""
    return arguments(source, data, output, "--from", str(start), *flags, **{**OF_THE_SUPER_ADAPTER, "steps": 2, **changes})


@pytest.fixture
def start(llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable) -> Path:
    """A super-adapter."""
    assert run_cli(*arguments(llama, data, tmp_path / "super", steps=1)).code == 0
    return tmp_path / "super"


def test_trained_and_exported(llama: TinySource, start: Path, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    ran = run_cli(*from_(llama, start, data, tmp_path / "out", "--subnet", "minimal")).ok()
    has(ran.out, f"{tmp_path / 'out'}: minimal sub-network, rank 8, 2 steps of 4 examples on cpu (fp32)")
    has(ran.out, f"next: lonas-edge export {tmp_path / 'out'} --output DIR")
    ran = run_cli("export", tmp_path / "out", "--stage", "checkpoint", "--output", tmp_path / "exported").ok()
    manifest = json.loads((tmp_path / "exported/lonas_edge.json").read_text())
    assert (manifest["subnetwork"]["name"], manifest["prompt"]) == ("minimal", "question")


def test_what_is_refused(llama: TinySource, start: Path, data: Path, tmp_path: Path, refused: Callable) -> None:
    """Before the model is loaded."""
    output, other = tmp_path / "out", tmp_path / "other.json"
    other.write_text(json.dumps({"widths": [8] * 9, "search_space": "0" * 64}))
    error = refused(from_(llama, start, data, output, "--subnet", str(other)))
    has(error, f"{other}: not a sub-network of this search space", "for search space 000000000000", "layers.0.mlp.width: 8 is")
    has(refused(from_(llama, llama.base, data, output)), f"{llama.base}: is a base model. Pass --nncf-config and --subnet")
    has(refused(from_(llama, start, data, start)), f"{start}: already exists")
    has(refused(from_(llama, start, data, start, "--overwrite")), str(start))  # not even by wish


def test_wrong_usage(llama: TinySource, start: Path, data: Path, tmp_path: Path, refused: Callable) -> None:
    output = tmp_path / "out"
    for flags, changes in ((["--rank", "4"], {}), (["--no-elastic"], {})):
        error = " ".join(refused(from_(llama, start, data, output, *flags, **changes), 2).split())
        has(error, "cannot be combined with --from")
    has(refused(arguments(llama, data, output, "--subnet", "minimal"), 2), "--subnet needs --from")
    has(refused(arguments(llama, data, output, model=None), 2), "pass --model MODEL, or --from SOURCE")
