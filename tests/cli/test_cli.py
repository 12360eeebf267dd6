"""The command line's contract: help, exit codes, --json, what an exported checkpoint directory holds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource

import lonas_edge


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lonas-edge', '--help']\n"
        "from lonas_edge.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "from importlib import import_module\n"
        "from lonas_edge.cli.commands import COMMANDS\n"
        "for name in COMMANDS: import_module(f'lonas_edge.cli.{name}')\n"
        "heavy = {'torch', 'transformers', 'peft', 'openvino', 'nncf', 'optimum', 'numpy', 'safetensors', 'huggingface_hub'}\n"
        "heavy |= {'matplotlib', 'optuna', 'lm_eval', 'scipy', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    listed = ran.stdout.partition("Start here:")[2]
    assert all(f" {command} " in listed for command in ("inspect", "space", "export", "bench", "eval", "train", "chat"))


def test_a_shipped_search_space_by_its_name(
    run_cli: Callable, llama_7b: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    base, adapter = llama_7b
    monkeypatch.chdir(tmp_path)
    ran = run_cli("inspect", adapter, "--model", base, "--nncf-config", "llama_7b", "--json").ok()
    assert len(json.loads(ran.out)["groups"]) == 96
    (tmp_path / "llama_7b").write_text("{}")  # a file of this name comes first
    assert run_cli("inspect", adapter, "--model", base, "--nncf-config", "llama_7b").code == 1


def test_version(run_cli: Callable) -> None:
    ran = run_cli("--version")
    assert (ran.code, ran.out.strip()) == (0, lonas_edge.__version__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["inspect"],
        ["export", "SOURCE", "--output", "x", "--weight-format", "int3"],
        ["export", "SOURCE", "--output", "x", "--stage", "checkpoint", "--weight-format", "int8"],
        ["export", "SOURCE", "--output", "x", "--weight-format", "int4", "--group-size", "-2"],
        ["export", "SOURCE", "--output", "x", "--weight-format", "int8", "--calibration", "data.json"],
        ["inspect", "~nobody-of-this-name/adapter"],
        ["inspect", "SOURCE", "--seq-len", "0"],
        ["space", "--model", "x"],
    ],
)
def test_wrong_usage_is_2(run_cli: Callable, arguments: list[str]) -> None:
    assert run_cli(*arguments).code == 2


def test_the_home_directory_in_every_path(
    run_cli: Callable, llama_copy: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell replaces the ~ of `--output=~/out`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "found.json").write_text(json.dumps({"widths": [values[-1] for values in llama_copy.groups()]}))
    source = ["~/adapter", "--model=~/base", "--nncf-config=~/space.json", "--subnet=~/found.json"]
    ran = run_cli("inspect", *source, "--json").ok()
    assert [group["width"] for group in json.loads(ran.out)["groups"]] == [values[-1] for values in llama_copy.groups()]
    ran = run_cli("export", *source, "--output=~/out", "--stage", "checkpoint", "--no-verify").ok()
    assert (tmp_path / "out/model.safetensors").exists()
    assert run_cli("space", "--model=~/base", "--output=~/made.json").code == 0
    assert (tmp_path / "made.json").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nothing_written_carries_an_absolute_path(run_cli: Callable, llama: TinySource, tmp_path: Path) -> None:
    ran = run_cli("export", *llama.arguments(), "--output", tmp_path / "out", "--stage", "checkpoint", "--no-verify")
    assert ran.code == 0
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for folder in (llama.base, llama.adapter, tmp_path, Path(sys.prefix)):
            assert os.fsencode(folder) not in content, path
    assert json.loads((tmp_path / "out/lonas_edge.json").read_text())["verified"] is False
    assert "Not verified" in (tmp_path / "out/README.md").read_text()
    assert "not verified" in ran.out


def test_a_misspelled_command_has_a_suggestion(run_cli: Callable) -> None:
    ran = run_cli("compres")
    assert ran.code == 2 and "No such command 'compres'. Did you mean 'compress'?" in ran.err
    assert "Did you mean" not in run_cli("xyz").err


@pytest.mark.parametrize(("old", "new"), [("--precision", "--dtype"), ("--prompt", "--template")])
def test_earlier_names_of_options(run_cli: Callable, old: str, new: str, tmp_path: Path) -> None:
    """They work, on the command line and in --config; errors have the names of today."""
    (tmp_path / "options.yaml").write_text(f"{old[2:]}: none\n")
    required = ["train", "--model", "base", "--data", "data", "--output", "out"]
    for given in ([old, "none"], [f"{old}=none"], ["--config", tmp_path / "options.yaml"]):
        ran = run_cli(*required, *given)
        assert ran.code == 2 and f"{new}" in ran.err and f"{old}'" not in ran.err, ran.err
