"""`lonas-edge train` through the real command line: outputs, --json, killed runs, and what follows a training."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from systems import KILL, SIGNALS
from tiny_models import TinySource
from train_commands import arguments, has

from lonas_edge.network.modeling import load_checkpoint

ADAPTER, RECORD = "adapter_model.safetensors", "training.json"

# outputs and unfinished trainings


def test_resume_with_other_settings(
    llama: TinySource, llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable, unfinished: Callable
) -> None:
    """All of them are listed: options, data, search space and base; an unfinished run is kept without --resume."""
    output = tmp_path / "out"
    unfinished(arguments(llama, data, output))
    has(refused(arguments(llama, data, output)), f"{output}.partial: an unfinished run is kept there", "--resume")
    data.write_text(data.read_text().replace("What is 7 plus 4?", "What is 4 plus 7?"))
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][3] = [128, 64]
    llama_copy.space.write_text(json.dumps(content))
    config = json.loads((llama_copy.base / "config.json").read_text())
    (llama_copy.base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    changes = {"rank": 16, "alpha": 32, "steps": 9, "seed": 1}
    changes |= {"batch_size": 8, "micro_batch_size": 2}
    free = {"lr": 0.001}
    error = refused(arguments(llama_copy, data, output, "--resume", **changes, **free))
    has(error, f"{output}.partial: cannot continue, because settings or inputs have changed")
    has(error, "base config.json: was", "data 1 data.json: was", "search_space: was", "stages: was")
    has(error, "options rank: was 8, is 16", "options alpha: was 16.0, is 32.0", "options steps: was 8, is 9")
    has(error, "options seed: was 42, is 1", "start again with --overwrite")
    assert not any(f"options {name}" in error for name in ("lr", "micro_batch_size"))


# killed runs

STALLED = """
import time
from lonas_edge.training.elastic_trainer import ElasticTrainer
training_step = ElasticTrainer.training_step

def stall(self, *arguments, **options):  # the real command, stopped in the middle
    if self.state.global_step == 5:
        print("in the middle", flush=True)
        time.sleep(600)
    return training_step(self, *arguments, **options)

ElasticTrainer.training_step = stall
from lonas_edge.cli import main
main()
"""


@SIGNALS
@pytest.mark.slow
@pytest.mark.parametrize("number", [KILL, signal.SIGINT])
def test_killed_and_resumed(
    llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable, refused: Callable, number
) -> None:
    """As if nothing had happened: the same losses, bitwise the same adapter."""
    output, changes = tmp_path / "out", {"seed": 3}
    command = arguments(llama, data, output, **changes)
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    assert (tmp_path / "out.partial/checkpoint-5/complete").exists()
    for flag in ("--resume", "--overwrite"):  # its directory is not taken away from it
        has(refused([*command, flag]), f"{output}: another process is writing it")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else -number)
    assert "Traceback" not in error
    if number == signal.SIGINT:
        has(error, "interrupted", f"kept in {output}.partial", "--resume")
    left = [] if number == signal.SIGINT else [".out.lock"]  # whoever takes it next removes it
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "data.json", "out.partial"]
    run_cli(*command, "--resume").ok()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "out"]
    assert run_cli(*arguments(llama, data, tmp_path / "whole", **changes)).code == 0
    resumed, whole = (json.loads((folder / RECORD).read_text()) for folder in (output, tmp_path / "whole"))
    assert (resumed["resumed_from_step"], whole["resumed_from_step"]) == (5, None)
    assert resumed["losses"] == whole["losses"]
    assert (output / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


# what follows


def test_a_super_adapter_needs_no_other_argument(
    llama_copy: TinySource, data: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch, choose, ids
) -> None:
    """Trained with relative paths; inspected and exported from elsewhere, also after all was moved together."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    command = arguments(llama_copy, Path(data.name), Path("made/out"), model="base", nncf_config="space.json")
    ran = run_cli(*command).ok()
    elsewhere = tmp_path / "far/away"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (tmp_path / "moved").mkdir()
    for name in ("base", "made"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    folder, base = Path("../../moved/made/out"), tmp_path / "moved/base"
    ran = run_cli("inspect", folder, "--json").ok()
    assert json.loads(ran.out)
    ran = run_cli("export", folder, "--stage", "checkpoint", "--dtype", "fp32", "--output", "exported").ok()
    widths = choose(llama_copy, "heuristic")
    assert list(json.loads(Path("exported/subnetwork.json").read_text())["widths"].values()) == widths
    with torch.no_grad():
        found = load_checkpoint("exported")(input_ids=ids, use_cache=False).logits
    expected = oracle_logits(base, tmp_path / "moved/made/out", llama_copy.space, widths, ids)
    assert (found - expected).abs().max() < 1e-4
