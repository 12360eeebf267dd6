"""What `compress` refuses before any step, and what it does when a step fails."""

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_runs import QUICK, Finished, forbidden, plan_steps
from safetensors.torch import load_file
from tiny_models import TinyModels, TinySource

from lonas_edge.cli.compress import compress
from lonas_edge.commands import Command
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.optimum import run_optimum
from lonas_edge.network.source import open_source
from lonas_edge.pipeline import stages
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.plan import Request
from lonas_edge.pipeline.targets import parse_targets
from lonas_edge.pipeline.tasks import LANGUAGE_MODEL
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.plan import make_plan


def test_refused_targets(refused: Callable[..., str]) -> None:
    assert "latency is not measured here" in refused(target="latency<=1x")
    error = refused(target=["watts<=3", "tpot>=2"])
    assert "Invalid --target" in error
    for text in ("watts is not measured here", "'tpot>=2': expected"):
        assert text in error
    for text in ("tpot<=20ms", "0.7x"):
        error = refused(target=text)
        assert f"{text!r}: expected MEASURE=NUMBER (times in ms, sizes in bytes) or MEASURE=NUMBERx" in error
        assert "MEASURE is one of kl, tpot, ttft, " in error
    assert "bounds tpot and ttft; one run" in refused(target=["ttft<=0.8x", "tpot<=0.8x"])
    assert "kl<=0.005: the same bound as kl<=0.005" in refused(target=["auto", "kl<=0.005"])


def test_refused_options(refused: Callable[..., str], tmp_path: Path) -> None:
    """Lengths that fit the context of 128 tokens get as far as the next mistake."""
    assert "--weight-format fp32" in refused(weight_format="fp32")
    assert "expected keep, auto or a number" in refused(vocabulary="some")
    long = "--prompt-len 101 and 28 generated tokens: 129 tokens are beyond the model's context of 128; choose"
    assert long in refused(prompt_len=101, new_tokens=28)
    assert "the vocabulary has only" in refused(prompt_len=100, new_tokens=28, template="question", vocabulary=9999)
    assert "--vocabulary 20: below the" in refused(vocabulary=20, template="question")


def test_refused_adapters(refused: Callable[..., str], tiny_models: TinyModels, tmp_path: Path) -> None:
    """Without a base, or with parameters that the recovery cannot train: all of these are named."""
    config = json.loads((tiny_models.adapter("llama") / "adapter_config.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "gone/nowhere"}))
    assert "--model" in refused(moved)
    error = refused(tiny_models.adapter("llama", bias="lora_only", modules_to_save=["lm_head"]))
    assert "bias = 'lora_only'" in error
    assert "modules_to_save = ['lm_head']" in error


def test_the_adapter_is_not_overwritten(refused: Callable[..., str], tiny_models: TinyModels, tmp_path: Path) -> None:
    """It lies in the directory of an old output, which --overwrite would replace."""
    source, old = tiny_models.source("llama"), tmp_path / "out"
    old.mkdir()
    (old / "lonas_edge.json").write_text("{}")
    shutil.copytree(source.adapter, old / "adapter")
    message = refused(old / "adapter", model=source.base, overwrite=True)
    assert f"{old}: --overwrite would delete {old / 'adapter'}, which this run reads" in message


def test_held_out_examples_that_are_too_long(llama: TinySource, tmp_path: Path, quick: None) -> None:
    """The search takes those that fit; too few are refused before any step."""
    rows = [{"instruction": f"What is {n}?", "output": "yes " * (600 if n % 3 == 0 else 1)} for n in range(120)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    steps = plan_steps(llama.base, tmp_path, tmp_path / "data.json", target=("weights<=0.95x",), max_length=1024)
    [prompts] = re.findall(r"--num-samples (\d+)", steps["search"].command)
    assert 8 <= int(prompts) < 16
    rows = [{"instruction": f"What is {n}?", "output": "yes " * 600} for n in range(120)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(LonasEdgeError, match=r"0 of 16 held-out examples have an answer within 1,024 tokens"):
        plan_steps(llama.base, tmp_path, tmp_path / "data.json", target=("weights<=0.95x",), max_length=1024)


def test_too_little_disk(llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps together need more than is free, although each has room: refused before any step is timed."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lonas_edge.pipeline.run.time_steps", forbidden)
    options = CompressOptions(source=str(llama.base), data=data, output=tmp_path / "out", weight_format="int8_sym")
    picks = parse_targets(("weights<=0.95x",), LANGUAGE_MODEL)
    needed = Request(open_source(str(llama.base)), LANGUAGE_MODEL, options, picks, {}, "tpot", {}).disk_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=needed - 1))
    with pytest.raises(LonasEdgeError, match="not enough disk space"):
        compress(llama.base, data=data, output=tmp_path / "out", **QUICK)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2 * needed))
    with pytest.raises(AssertionError):  # accepted: steps are timed
        compress(llama.base, data=data, output=tmp_path / "out", **QUICK)


@pytest.mark.parametrize(("weight_format", "each"), [("int8_sym", 4), ("int4_sym", 6)])
def test_too_little_memory(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch, weight_format: str, each: int
) -> None:
    """One gigabyte and the weights in 16 bits of model, teacher and rounded model are the least; no step is timed before."""
    options = {**QUICK, "weight_format": weight_format}
    weights = sum(tensor.numel() for tensor in load_file(llama.base / "model.safetensors").values())
    least = 10**9 + each * weights
    monkeypatch.setattr("lonas_edge.pipeline.run.time_steps", forbidden)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=least - 1))
    with pytest.raises(LonasEdgeError, match=r"at least 1\.0 GB of memory for 0 million parameters .* 1\.0 GB are available"):
        compress(llama.base, data=data, output=tmp_path / "out", **options)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=least))
    with pytest.raises(AssertionError):  # accepted: steps are timed
        compress(llama.base, data=data, output=tmp_path / "out", **options)


@pytest.mark.parametrize("measure", ["weights", "bytes"])
def test_sizes_are_those_of_the_search(
    measure: str, finished: Finished, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest size is the same with a trained adapter as it was before the fine-tuning, and can be asked for."""
    steps, base, target = finished.folder / "out" / "steps", str(finished.source.base), f"{measure}<=0.1x"
    for source in (base, str(steps / "lora")):
        with pytest.raises(LonasEdgeError, match=rf"{measure}<=0\.1x: the smallest") as before:
            options = {"data": data, "output": tmp_path / "out", "target": target, "weight_format": "int8_sym", "prompt_len": 8}
            compress(source, model=None if source == base else base, **options)
        with pytest.raises(LonasEdgeError) as searched:
            search = {"data": data, "output": tmp_path / "search", "cost": measure, "template": "question", "num_samples": 4}
            lora = open_source(str(steps / "lora"), base, steps / "space.json")
            make_plan(lora, SearchOptions(**search, picks=(target,)))
        assert str(before.value) == str(searched.value)
    figure = float(re.search(r"0\.\d+(?=x\. Relax)", str(searched.value))[0])
    monkeypatch.setattr(stages, "open_inputs", forbidden)
    with pytest.raises(AssertionError):  # accepted: the first step starts
        compress(base, data=data, output=tmp_path / "out", **{**QUICK, "target": f"{measure}<={figure + 0.001}x"})


CLASSES = "def __getattr__(name): return type(name, (), {})"
SLEEPING = """
import os, time
from pathlib import Path

def main():
    started = Path(os.environ["STARTED"])
    started.with_suffix(".new").write_text(str(os.getpid()))
    started.with_suffix(".new").rename(started)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends children with their parent")
def test_optimum_cli_ends_with_a_killed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write on, into the path of the next run. An `optimum` of our own states its process and sleeps."""
    for module, content in {"exporters/openvino/model_configs": CLASSES, "commands/optimum_cli": SLEEPING}.items():
        path = tmp_path / "packages" / "optimum" / f"{module}.py"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    for folder in ("", "exporters", "exporters/openvino", "commands"):
        (tmp_path / "packages" / "optimum" / folder / "__init__.py").touch()
    packages = [tmp_path / "packages", Path(stages.__file__).parents[2]]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, packages)))
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    command = Command("optimum-cli export openvino", paths={"model": tmp_path / "merged", "": tmp_path / "int8"})
    run = multiprocessing.get_context("fork").Process(target=run_optimum, args=(command, ()))
    run.start()
    while not (tmp_path / "started").exists():  # pytest's own time limit ends a wait in vain
        assert run.is_alive()
        time.sleep(0.05)
    assert run.is_alive()
    run.kill()
    run.join()
    child = int((tmp_path / "started").read_text())
    with suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.05)


def test_a_target_that_only_a_destroyed_network_meets(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the recovery, with the closest network and other means; another target continues the run."""
    monkeypatch.setattr(stages, "FURTHEST", 0.0)  # only the unpruned network is as close
    options = {**QUICK, "target": "weights<=0.95x", "data": data, "output": tmp_path / "out"}
    with pytest.raises(LonasEdgeError) as caught:
        compress(llama.base, **options)
    message = str(caught.value)
    pattern = r"search: target weights<=0.95x: .* KL divergence of 0\.\d nats .* more than 0 nats .* 1.00x the "
    assert re.search(pattern, message) and "those of the step's command" not in message
    base, config = open_source(str(llama.base)), json.loads((llama.base / "config.json").read_text())
    tables = 1 if config["tie_word_embeddings"] else 2
    share = tables * config["vocab_size"] * config["hidden_size"] / base.sizes(base.unpruned).bytes["int8_sym"]
    assert f"a trimmed vocabulary, which has {share:.0%} of the bytes, or a draft." in message
    with pytest.raises(LonasEdgeError, match=r"recover weights<=0\.95x: target weights<=0\.95x: the network"):
        compress(llama.base, **options)
    assert not (tmp_path / "out.partial/steps/adapters").exists()
    assert compress(llama.base, **{**options, "target": "weights<=1x"}).networks
