"""Two processes under torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import TinySource
from training_runs import OPTIONS, RECORD, TWELVE, difference, run, write_data

COMMAND = """
import json, os, sys
from dataclasses import replace
from lonas_edge.training import train as module
from lonas_edge.training.elastic_trainer import ElasticTrainer

killed, settings = sys.argv.pop(1) == "killed", json.loads(sys.argv.pop(1))
train, training_step = module.train, ElasticTrainer.training_step

def kill(self, *arguments, **options):  # the real command, killed in its 6th step
    if killed and self.state.global_step == 5:
        os._exit(9)
    return training_step(self, *arguments, **options)

ElasticTrainer.training_step = kill
module.train = lambda inputs, output, options, *rest: train(inputs, output, replace(options, **settings), *rest)
from lonas_edge.cli import main
main()
"""


def torchrun(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `COMMAND` in two processes."""
    script = folder / "command.py"
    script.write_text(COMMAND)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", script, *arguments]
    return subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_equal_one(llama: TinySource, tmp_path: Path) -> None:
    """Each step has the same examples on one process and on two. The two are killed and resumed."""
    data = write_data(tmp_path / "data.json", TWELVE)  # 3 steps an epoch
    settings = {**OPTIONS, "weight_decay": 0.1}
    settings["micro_batch_size"] = 1  # two micro-batches on each of two processes, four on one
    one = run(llama, data, tmp_path / "one", **settings)
    command = ["train", "--model", str(llama.base), "--nncf-config", str(llama.space), "--data", str(data)]
    command += ["--output", str(tmp_path / "two")]

    ran = torchrun(tmp_path, "killed", json.dumps(settings), *command)
    assert ran.returncode != 0
    assert not ran.stdout
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "two.partial/checkpoint-3/complete").exists()

    ran = torchrun(tmp_path, "resumed", json.dumps(settings), *command, "--resume")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("steps of 4 examples") == 1, "only the first process prints"
    two = json.loads((tmp_path / "two" / RECORD).read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["resumed_from_step"], two["resumed_from_step"]) == (None, 3)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-4
    for left, right in zip(one["losses"], two["losses"], strict=True):
        assert left == pytest.approx(right, abs=1e-4)
