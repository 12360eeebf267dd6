"""`compress` on a tiny model: its output, what a second run repeats, and what it refuses."""

import inspect
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino_genai
import pytest
import torch
import yaml
from pipeline_runs import PROBE, QUICK, Finished, write_data
from safetensors.torch import load_file, save_file
from tiny_models import TinyModels, TinySource
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.bench import machine
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.statistics import Interval
from lonas_edge.bench.variants import Case, Timing
from lonas_edge.data.encoding import Prompting
from lonas_edge.data.language import LanguageTask, read_examples
from lonas_edge.data.pooling import Pooling, read_pooling
from lonas_edge.data.templates import TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.network.channel_order import ChannelOrder
from lonas_edge.network.source import open_source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.pipeline import estimate, measure, stages
from lonas_edge.pipeline.api import compress
from lonas_edge.pipeline.data import split
from lonas_edge.pipeline.estimate import disk_bytes
from lonas_edge.pipeline.measure import (
    Scores,
    for_equal_texts,
    loss_difference,
    on_common_examples,
    score,
)
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.record import CompressRecord, Latency
from lonas_edge.pipeline.run import Reference, compress_model
from lonas_edge.pipeline.tasks import LANGUAGE_MODEL
from lonas_edge.progress import silent
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import parse_picks
from lonas_edge.search.plan import make_plan
from lonas_edge.training.elastic_trainer import ElasticTrainer
from lonas_edge.training.options import TrainOptions


def test_the_output_runs_and_is_smaller(finished: Finished) -> None:
    out, record = finished.folder / "out", finished.record
    assert CompressRecord.read(out / "compress.json") == record
    baseline, _, ours = record.networks
    assert ours.folder == "model"
    assert ours.parameters < baseline.parameters
    assert any(part.kept == 0 for layer in ours.removed for part in layer)
    assert open_exported(out / "model").own_manifest.weight_format == "int8_sym"
    text = openvino_genai.LLMPipeline(out / "model", "CPU").generate("What", max_new_tokens=3)
    assert isinstance(str(text), str)
    names = {path.name for path in out.iterdir()}
    assert names == {"model", "steps", "compress.json", "recipe.yaml", "report.md", "report.html", "report.png"}
    assert not (out / "steps" / "baselines").exists()
    assert [step.name for step in record.steps] == [
        "fine-tune", "space", "search", "recover weights<=0.95x", "export weights<=0.95x", "baselines", "measure",
    ]  # fmt: skip
    assert all(step.seconds > 0 and step.estimated_seconds is not None for step in record.steps)


def test_the_model_card_has_the_table(finished: Finished, tmp_path: Path) -> None:
    model = finished.copied(tmp_path / "copy") / "model"
    card = (model / "README.md").read_text()
    table = [line for line in (model.parent / "report.md").read_text().splitlines() if line.startswith("| ")][:4]
    assert len(table) == 4
    assert all(line in card for line in table)
    assert card.count(table[-1]) == 1


def test_the_function_has_the_options_of_the_command() -> None:
    """By name and default; --dry-run makes nothing that could be returned."""
    parameters = dict(inspect.signature(compress).parameters)
    expected = {field.name: field.default for field in fields(CompressOptions) if field.name != "dry_run"}
    for name in ("source", "model", "nncf_config", "progress"):
        del parameters[name]
    assert parameters.keys() == expected.keys()
    given = {name: parameter.default for name, parameter in parameters.items()}
    assert given.pop("target") == expected.pop("target")[0]
    for name in ("data", "output"):
        assert given.pop(name) is inspect.Parameter.empty
        del expected[name]
    assert given == expected


def test_another_processor(finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies of another machine are measured again, and it says so; trainings stay."""
    out, lines = finished.copied(tmp_path / "copy"), list[str]()
    here = machine.describe("CPU")
    monkeypatch.setattr(machine, "describe", lambda _device: {**here, "processor": "Another"})
    monkeypatch.setattr(stages, "train", forbidden)
    compress(
        finished.source.base,
        data=out.parent / "data.json",
        output=out,
        **QUICK,
        progress=lambda line, _done: lines.append(line),
    )
    assert any(line.startswith("measure: repeated; its latencies are those of another machine") for line in lines)
    assert json.loads((out / "compress.json").read_text())["machine"]["processor"] == "Another"


def test_the_printed_baselines_are_those_of_the_run(finished: Finished) -> None:
    """The task and, for INT4, the group size; the printed directories are those of the output."""
    [step] = [step for step in finished.record.steps if step.name == "baselines"]
    out, lines = finished.folder / "out", step.command.splitlines()
    for line, name in zip(lines[1:], ("int8", "int4"), strict=True):
        words = shlex.split(line)
        assert words[:3] == ["optimum-cli", "export", "openvino"]
        assert words[-1] == str(out / "steps" / "baselines" / name)
        assert words[words.index("--task") + 1] == "text-generation-with-past"
    assert "--group-size 64" in lines[2]  # of widths 64 and 128
    [measured] = [step for step in finished.record.steps if step.name == "measure"]
    assert shlex.split(measured.command)[2] == str(out / "model")


def test_the_commands_of_the_record_give_the_same_network(
    finished: Finished, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Trainings, search and export, by the printed commands with other outputs: the same widths, the same bits."""
    names = ("fine-tune", "search", "recover", "export")
    steps = [step for step in finished.record.steps if step.name.split()[0] in names]
    assert len(steps) == 4
    for step in steps:
        made, output = again(step.command, run_cli, tmp_path / step.name.split()[0])
        if step.name == "search":
            expected, actual = (folder / "subnetworks" / "weights-0.95x.json" for folder in (made, output))
            assert json.loads(actual.read_text())["widths"] == json.loads(expected.read_text())["widths"]
            first, second = (json.loads((folder / "search.json").read_text())["evaluations"] for folder in (made, output))
            assert [entry["widths"] for entry in first] == [entry["widths"] for entry in second]
        else:
            name = "openvino_model.bin" if step.name.startswith("export") else "adapter_model.safetensors"
            assert (made / name).read_bytes() == (output / name).read_bytes()


def again(command: str, run_cli: Callable[..., Any], output: Path) -> tuple[Path, Path]:
    """Run a printed command with another output; return its output and this one."""
    words = shlex.split(command)[1:]
    place = words.index("--output") + 1
    made, words[place] = Path(words[place]), str(output)
    ran = run_cli(*words)
    assert ran.code == 0, ran.err
    return made, output


def test_the_held_out_loss_is_that_of_transformers(finished: Finished, tmp_path: Path) -> None:
    """The loss of the fp32 IR of the LoRA is that of PyTorch; that of its INT8 baseline is near."""
    steps = finished.folder / "out" / "steps"
    opened = open_source(str(steps / "lora"), elastic=False)
    for name, options in {"merged": ExportOptions(stage="checkpoint"), "fp32": ExportOptions(weight_format="fp32")}.items():
        stages.export(opened, opened.select("maximal"), tmp_path / name, options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    loss = tokens = correct = 0.0
    for line in (steps / "data" / "held_out.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Question: {row['instruction']}\nAnswer:")["input_ids"]
        answer = [*tokenizer(f" {row['output']}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        loss -= float(logits[range(len(answer)), answer].sum())
        correct += int((logits.argmax(-1) == torch.tensor(answer)).sum())
        tokens += len(answer)
    examples = read_examples(steps / "data" / "held_out.jsonl")[1]
    scores = score(tmp_path / "fp32", examples, Prompting(TEMPLATES["question"]), lambda _what, _done: None)
    assert scores.tokens.sum() == tokens
    assert scores.loss.sum() / tokens == pytest.approx(loss / tokens, abs=0.01)  # bf16 where the processor has it
    assert scores.correct.sum() == pytest.approx(correct, abs=1)
    assert finished.record.networks[0].quality["loss"].value == pytest.approx(loss / tokens, abs=0.1)


def test_examples_that_one_tokenizer_cannot_take() -> None:
    """The second example is too long with the second vocabulary: it counts for no network."""
    whole = Scores(np.array([2.0, 4.0]), np.array([1, 2]), np.array([2, 3]))
    trimmed = Scores(np.array([3.0, 0.0]), np.array([1, 0]), np.array([2, 0]))
    first, second = on_common_examples({"whole": whole, "trimmed": trimmed}).values()
    assert (first.loss.tolist(), first.correct.tolist(), first.tokens.tolist()) == ([2, 0], [1, 0], [2, 0])
    assert loss_difference(first, second).value == pytest.approx(0.5)  # (3 - 2) over two tokens


def test_ratios_are_to_the_first_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes half of the baseline's 10 ms for a token, and the other file 1.5 times as much, in rounds of other speeds."""
    folders = {name: tmp_path / name for name in ("baseline", "other", "ours")}
    milliseconds = {"subnet": 5, str(folders["baseline"]): 10, str(folders["other"]): 15}
    samples = [
        SimpleNamespace(
            variant=name,
            round=index,
            start=index // 2,
            timing=Timing(tuple(each * time * (1 + index / 10) / 1000 for each in (1, 2, 3)), 0.1),
        )
        for index in range(8)
        for name, time in milliseconds.items()
    ]
    variants = [SimpleNamespace(name=name) for name in milliseconds]
    result = SimpleNamespace(interrupted=False, failures=(), samples=samples, variants=variants)
    monkeypatch.setattr(measure, "open_exported", lambda folder: folder)
    monkeypatch.setattr(measure, "bench", lambda *_given: result)
    times, _ = measure.latencies(folders, Case(8, 3), LANGUAGE_MODEL.latencies, lambda *_given: None)
    assert {name: each["tpot"].ratio and each["tpot"].ratio.value for name, each in times.items()} == {
        "baseline": None, "other": pytest.approx(1.5), "ours": pytest.approx(0.5),
    }  # fmt: skip
    assert times["ours"]["tpot"].samples[0] == pytest.approx(5)
    assert times["ours"]["ttft"].median.value == pytest.approx(5 * 1.35)


def test_ratios_for_equal_texts() -> None:
    one = Interval(1.0, 1.0, 1.0)
    times = for_equal_texts(Latency(one, Interval(0.5, 0.4, 0.6), (1.0,)), 1.1)
    assert times.ratio == Interval(pytest.approx(0.55), pytest.approx(0.44), pytest.approx(0.66))
    assert for_equal_texts(Latency(one, None, (1.0,)), 1.1) == Latency(one, None, (1.0,))


def test_the_same_command_again_changes_nothing(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished.copied(tmp_path / "copy")
    monkeypatch.setattr(stages, "train", forbidden)
    for target in ("weights<=0.95x", "weights<=0.950x"):
        options = {**QUICK, "target": target}
        record = compress(finished.source.base, data=out.parent / "data.json", output=out, **options)
        assert record == CompressRecord.read(out / "compress.json")
        assert record.networks == finished.record.networks
        assert [step.name for step in record.steps] == [step.name for step in finished.record.steps]
    assert not out.with_name("out.partial").exists()


def test_another_target_uses_the_finished_steps(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a target in another spelling. Files that others put into the output stay."""
    out = finished.copied(tmp_path / "copy")
    (out / "bench").mkdir()
    (out / "bench" / "bench.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr(stages, "fine_tune", forbidden)
    targets = ["weights <= 0.950X", "kl<=100"]
    record = compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "target": targets})
    assert [network.target for network in record.networks] == [None, None, "weights<=0.95x", "kl<=100"]
    assert record.options["target"] == ["weights<=0.95x", "kl<=100"]
    assert [step.name for step in record.steps][3:7] == [
        "recover weights<=0.95x", "export weights<=0.95x", "recover kl<=100", "export kl<=100",
    ]  # fmt: skip
    assert [network.folder for network in record.networks] == [None, None, "weights-0.95x", "kl-100"]
    assert not (out / "model").exists()
    for folder in ("weights-0.95x", "kl-100"):
        open_exported(out / folder)
    before, after = (folder / "steps" / "recovered" / "weights-0.95x" for folder in (finished.folder / "out", out))
    for name in ("adapter_model.safetensors", "training.json"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert (out / "bench" / "bench.json").read_text() == "{}"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_target_keeps_its_first_spelling(tmp_path: Path) -> None:
    """Of the earlier run with the same output; `auto` is kl<=0.15. Other targets, and those of other tasks, change nothing."""

    def named(*targets: str, earlier: Sequence[str] = ()) -> dict[str, str]:
        options = CompressOptions(data=tmp_path / "data", output=tmp_path / "out", target=targets)
        return {target: pick.expression for target, pick in stages.picks_of(options, LANGUAGE_MODEL, earlier).items()}

    assert named("kl<=0.15", "kl<=100", earlier=["auto"]) == {"auto": "kl<=0.15", "kl<=100": "kl<=100"}
    assert named("auto", earlier=["kl <= .15", "auto"]) == {"kl <= .15": "kl <= .15"}
    assert named("tpot<=0.70x", earlier=["latency<=1x", "tpot<=0.7"]) == {"tpot<=0.70x": "tpot<=0.70x"}


def test_lengths_repeat_the_measurement_only(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the search measures no latency: a bound on `weights` does not."""
    out = finished.copied(tmp_path / "copy")
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "prompt_len": 9, "new_tokens": 5}
    with pytest.raises(LonasEdgeError) as caught:
        compress(finished.source.base, **options)
    changed = str(caught.value).splitlines()[1:-1]
    assert [line.strip(" -") for line in changed] == [
        "prompt-len: was 8, is 9 (measure)", "new-tokens: was 4, is 5 (measure)",
    ]  # fmt: skip
    for name in ("search", "train"):
        monkeypatch.setattr(stages, name, forbidden)
    record = compress(finished.source.base, **options, overwrite=True)
    assert (record.prompt_len, record.new_tokens) == (9, 5)


@pytest.mark.parametrize(("target", "timed"), [("tpot<=0.7x", True), ("kl<=0.2", True), ("macs<=0.9x", False)])
def test_lengths_of_a_timed_search(
    target: str, timed: bool, llama: TinySource, tmp_path: Path, data: Path, quick: None
) -> None:
    """The search depends on them where it minimizes a latency: the bounded one, or TPOT without a bound on a cost."""
    shown: dict[str, Any] = {}
    options = CompressOptions(data=data, output=tmp_path / "out", dry_run=True, target=(target,), prompt_len=8, new_tokens=4)
    compress_model(
        Reference(str(llama.base)), options, announce=lambda steps, _: shown.update({each.name: each for each in steps})
    )
    lengths = {"--prompt-len": 8, "--new-tokens": 4}
    assert {name: value for name, value in shown["search"].settings.items() if name in lengths} == (lengths if timed else {})
    assert shown["measure"].settings == lengths


def test_the_precision_of_an_earlier_run_stays(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` chose fp32; other steps are timed for INT4, and would now choose bf16. The fine-tuning is not repeated."""
    out, ran = finished.copied(tmp_path / "copy"), list[str]()
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "weight_format": "int4_sym"}
    timed = lambda *given: replace(PROBE, precision="bf16" if given[5] == "auto" else given[5])  # noqa: E731
    monkeypatch.setattr("lonas_edge.pipeline.run.probe", timed)
    with pytest.raises(LonasEdgeError, match="--weight-format: was int8_sym, is int4_sym") as caught:
        compress(finished.source.base, **options)
    assert "--precision" not in str(caught.value)

    def stop(*_given: object) -> None:
        raise LonasEdgeError("stopped")

    monkeypatch.setattr(stages, "fine_tune", lambda *_given: ran.append("fine-tune"))
    monkeypatch.setattr(stages, "find_networks", stop)
    with pytest.raises(LonasEdgeError, match="search: stopped"):
        compress(finished.source.base, **options, overwrite=True)
    assert not ran
    probed = json.loads((out.with_name("out.partial") / "steps" / "probe.json").read_text())
    assert (probed["precision"], probed["requested"]) == ("fp32", "auto")


def test_a_changed_option_needs_overwrite(finished: Finished, tmp_path: Path, quick: None) -> None:
    out = finished.copied(tmp_path / "copy")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "recovery_steps": 5}
    with pytest.raises(LonasEdgeError, match=r"--recovery-steps: was 4, is 5 \(recover weights<=0.95x\)(.|\n)*--overwrite"):
        compress(finished.source.base, **options)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not out.with_name("out.partial").exists()
    record = compress(finished.source.base, **options, overwrite=True)
    assert record.curves[1].held_out[-1][0] == 5
    assert record.curves[0] == finished.record.curves[0]


def test_changed_options_are_named_once(finished: Finished, tmp_path: Path, quick: None) -> None:
    """By the name of the option, with all steps that it affects."""
    out = finished.copied(tmp_path / "copy")
    write_data(tmp_path / "other.json", 90)
    options = {"data": tmp_path / "other.json", "output": out, **QUICK, "epochs": 2, "seed": 7, "precision": "bf16"}
    with pytest.raises(LonasEdgeError) as caught:
        compress(finished.source.base, **options)
    lines = str(caught.value).splitlines()
    recover = "recover weights<=0.95x"
    [data] = [line for line in lines if "--data: was " in line]
    assert data.endswith("(fine-tune, space, search, baselines)")
    assert any("--epochs (steps): was 5, is 10 (fine-tune)" in line for line in lines)
    assert any(f"--seed: was 42, is 7 (fine-tune, search, {recover})" in line for line in lines)
    assert sum("--seed" in line for line in lines) == 1
    with pytest.raises(LonasEdgeError) as caught:
        compress(finished.source.base, data=out.parent / "data.json", output=out, **QUICK, seed=7)
    assert "--data" not in str(caught.value)
    with pytest.raises(LonasEdgeError) as caught:
        compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "weight_format": "int4_sym"})
    assert sum("--weight-format" in line for line in str(caught.value).splitlines()) == 1


def test_a_precision_that_was_refused(finished: Finished, tmp_path: Path, quick: None) -> None:
    """It leaves no trace: the original command goes on."""
    out = finished.copied(tmp_path / "copy")
    options = {"data": out.parent / "data.json", "output": out, **QUICK}
    with pytest.raises(LonasEdgeError, match="--precision: was fp32, is bf16"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lonas_edge.pipeline.run.probe", lambda *_given: replace(PROBE, precision="bf16"))
        compress(finished.source.base, **options, precision="bf16")
    assert compress(finished.source.base, **options).networks == finished.record.networks


def test_timed_steps(llama: TinySource, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a batch is timed, so a step takes four times as long; the faster precision is taken."""
    split(LanguageTask().read([(data, 1.0)]), None, 400, 0, tmp_path / "data")
    seconds, clock = {"fp32": 0.5, "bf16": 2.0}, [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(estimate, "faster_dtype", lambda: "bf16")
    timed: list[tuple[str, int, bool, str | None]] = []

    def train(inputs: Any, _output: Path, options: Any, *, report: Callable[..., None], **_: Any) -> Any:
        timed.append((options.precision, options.batch_size, inputs.teacher is not None, options.weight_format))
        for step in range(1, options.steps + 1):
            clock[0] += 7.0 if step == 1 else seconds[options.precision] * (3 if inputs.teacher else 1)
            report(step, options.steps, {})
        return SimpleNamespace(tokens=10 * options.steps * options.batch_size, steps=options.steps)

    monkeypatch.setattr(estimate, "train", train)
    given = LANGUAGE_MODEL, str(llama.base), tmp_path / "data" / "train.jsonl", "question", "int4_sym"
    made = estimate.probe(*given, "auto", silent)
    assert (made.precision, made.lora_step, made.recovery_step, made.tokens) == ("fp32", 2.0, 6.0, 10)
    assert timed == [("fp32", 4, False, None), ("bf16", 4, False, None), ("fp32", 4, True, "int4_sym")]
    assert estimate.probe(*given, "bf16", silent).precision == "bf16"
    assert [precision for precision, *_ in timed[3:]] == ["bf16", "bf16"]


def test_the_recovery_has_a_number_of_tokens(llama: TinySource, tmp_path: Path, quick: None) -> None:
    """100,000 of 12 per example, also where an epoch has more: 9,600 examples are 600 steps."""
    data, shown = write_data(tmp_path / "data.json", 10_000), list[str]()
    options = CompressOptions(
        data=data, output=tmp_path / "out", dry_run=True, prompt="question", target=("weights<=0.95x",), prompt_len=8
    )
    compress_model(Reference(str(llama.base)), options, announce=lambda steps, _: shown.extend(step.command for step in steps))
    [command] = [command for command in shown if "--teacher" in command]
    assert "--steps 521 " in command


def test_overwrite_repeats_the_search(finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another weight format and seed: the fine-tuning is named for the seed only; no result of the old search is in the way."""
    out = finished.copied(tmp_path / "copy")
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "weight_format": "int4_sym"}
    with pytest.raises(LonasEdgeError, match=r"--weight-format: was int8_sym, is int4_sym \(search, export weights<=0.95x\)"):
        compress(finished.source.base, **options)
    record = compress(finished.source.base, **options, overwrite=True)
    assert record.networks[-1].weight_format == "int4_sym"
    assert record.curves[0] == finished.record.curves[0]
    monkeypatch.setattr(stages, "find_networks", forbidden)
    with pytest.raises(AssertionError):
        compress(finished.source.base, **options, seed=7, overwrite=True)
    made, before = (
        load_file(folder / "steps" / "lora" / "adapter_model.safetensors") for folder in (out.with_name("out.partial"), out)
    )
    assert any(not torch.equal(tensor, made[name]) for name, tensor in before.items())


def test_steps_that_were_deleted(finished: Finished, tmp_path: Path, quick: None) -> None:
    """All steps run again; nothing is restored."""
    out = finished.copied(tmp_path / "copy")
    shutil.rmtree(out / "steps")
    record = compress(finished.source.base, data=out.parent / "data.json", output=out, **QUICK)
    assert record.curves == finished.record.curves


def test_weights_that_were_replaced(finished: Finished, tiny_models: TinyModels, tmp_path: Path, quick: None) -> None:
    """Another model with the same configuration is not the source of the finished run."""
    out = finished.copied(tmp_path / "copy")
    other = tmp_path / "other"
    shutil.copytree(finished.source.base, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(LonasEdgeError, match=r"compressed; the files of this SOURCE are others(.|\n)*Choose another --output"):
        compress(other, data=out.parent / "data.json", output=out, **QUICK)


def test_held_out_examples_that_are_too_long(llama: TinySource, tmp_path: Path, quick: None) -> None:
    """The search takes those that fit; too few are refused before any step."""
    rows = [{"instruction": f"What is {n}?", "output": "yes " * (600 if n % 3 == 0 else 1)} for n in range(120)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    shown: list[list[str]] = []
    reference, options = Reference(str(llama.base)), CompressOptions(
        data=tmp_path / "data.json", output=tmp_path / "out", dry_run=True, target=("weights<=0.95x",), prompt_len=8
    )  # fmt: skip
    compress_model(reference, options, announce=lambda steps, _: shown.append([step.command for step in steps]))
    [prompts] = [re.findall(r"--num-prompts (\d+)", command) for command in shown[0] if " search " in command]
    assert 8 <= int(prompts[0]) < 16
    rows = [{"instruction": f"What is {n}?", "output": "yes " * 600} for n in range(120)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    with pytest.raises(LonasEdgeError, match=r"0 of 16 held-out examples have an answer within 1024 tokens"):
        compress_model(reference, options)


def test_held_out_conversations_without_a_chat_template(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any step, with the name of the user's file."""
    monkeypatch.setattr("lonas_edge.pipeline.run.probe", forbidden)
    held_out = tmp_path / "held_out.jsonl"
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}] for n in range(20)]
    held_out.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    with pytest.raises(LonasEdgeError, match=r"held_out\.jsonl: --eval-data holds conversations, which need --prompt chat"):
        compress(llama.adapter, model=llama.base, data=data, eval_data=held_out, output=tmp_path / "out", **QUICK)


def test_texts_of_several_pieces(llama: TinySource, tmp_path: Path, quick: None) -> None:
    """16 held-out texts, each longer than a prompt may be: 16 prompts, not one for each piece."""
    rows = [{"text": f"Sentence number {n}. " * 150} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = CompressOptions(
        data=tmp_path / "data.jsonl", output=tmp_path / "out", dry_run=True, target=("weights<=0.95x",), prompt_len=8
    )
    shown: list[str] = []
    compress_model(Reference(str(llama.base)), options, announce=lambda steps, _: shown.extend(step.command for step in steps))
    [command] = [command for command in shown if " search " in command]
    assert "--num-prompts 16 " in command


def test_continues_after_an_interruption(
    finished: Finished, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the recovery: the error says how to continue, and the result is that of the run without interruption."""
    options = {"data": data, "output": tmp_path / "out", **QUICK}
    step = ElasticTrainer.training_step

    def interrupted(self: ElasticTrainer, *given: Any, **others: Any) -> Any:
        if self.teacher is not None and self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *given, **others)

    with monkeypatch.context() as patch:
        patch.setattr(ElasticTrainer, "training_step", interrupted)
        with pytest.raises(LonasEdgeError, match=r"interrupted(.|\n)*The same command") as caught:
            compress(finished.source.base, **options)
    assert "--resume" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stages, "fine_tune", forbidden)
    record = compress(finished.source.base, **options)
    assert record.curves == finished.record.curves
    made, expected = (
        folder / "steps" / "recovered" / "weights-0.95x" for folder in (tmp_path / "out", finished.folder / "out")
    )
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (made, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_an_adapter_of_plain_peft_in_int4(tiny_models: TinyModels, tmp_path: Path, data: Path, quick: None) -> None:
    """`q_proj` and `v_proj` alone, without a record of ours: the fine-tuning is skipped, the base is named by --model."""
    source = tiny_models.source("llama")
    adapter = tiny_models.adapter("llama", target_modules=["q_proj", "v_proj"], rank_pattern={}, r=4)
    options = {**QUICK, "weight_format": "int4_sym"}
    record = compress(adapter, model=source.base, data=data, output=tmp_path / "out", **options)
    assert [step.name.split()[0] for step in record.steps] == ["space", "search", "recover", "export", "baselines", "measure"]
    assert record.networks[-1].weight_format == "int4_sym"
    trained = json.loads((tmp_path / "out" / "steps" / "recovered" / "weights-0.95x" / "training.json").read_text())
    assert trained["options"]["weight_format"] == "int4_sym"
    assert trained["teacher"]


def test_a_smaller_vocabulary(finished: Finished, tmp_path: Path, data: Path, quick: None) -> None:
    """Search and recovery work on the trimmed base; the baselines keep all tokens.

    Without --vocabulary, the steps that used the trimmed base are named and repeated; the fine-tuning stays.
    """
    out = tmp_path / "out"
    options = {"data": data, "output": out, **QUICK}
    record = compress(finished.source.base, **options, vocabulary=262)
    assert [step.name.split()[0] for step in record.steps][:3] == ["fine-tune", "trim", "space"]
    vocabulary = json.loads((out / "steps" / "base" / "vocabulary.json").read_text())
    assert len(vocabulary["kept"]) == 262
    assert json.loads((out / "model" / "config.json").read_text())["vocab_size"] == 262
    losses = [made.networks[0].quality["loss"].value for made in (record, finished.record)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert record.networks[2].quality["loss"].difference is not None
    with pytest.raises(LonasEdgeError, match=r"uses fine-tune, space; it used fine-tune, trim, space \(search\)"):
        compress(finished.source.base, **options)
    record = compress(finished.source.base, **options, overwrite=True)
    assert json.loads((out / "model" / "config.json").read_text())["vocab_size"] > 262
    assert record.networks[-1].parameters == finished.record.networks[-1].parameters
    assert record.tokens_per_text == 1


def test_an_automatic_vocabulary(
    finished: Finished, tmp_path: Path, data: Path, quick: None, run_cli: Callable[..., Any]
) -> None:
    """The printed command names the size that was chosen, and writes the same tokens."""
    out = tmp_path / "out"
    record = compress(finished.source.base, data=data, output=out, **QUICK, vocabulary="auto")
    [command] = [step.command for step in record.steps if step.name == "trim"]
    made, output = again(command, run_cli, tmp_path / "base")
    assert (output / "vocabulary.json").read_bytes() == (made / "vocabulary.json").read_bytes()
    assert load_file(output / "model.safetensors").keys() == load_file(made / "model.safetensors").keys()


def test_the_search_space_is_not_overwritten(refused: Callable[..., str], tiny_models: TinyModels, tmp_path: Path) -> None:
    """It lies in the directory of an old output, which --overwrite would replace."""
    source, old = tiny_models.source("llama"), tmp_path / "out"
    shutil.copytree(source.adapter, old)
    shutil.copy(source.space, old / "space.json")
    message = refused(source.adapter, model=source.base, nncf_config=old / "space.json", overwrite=True)
    assert f"{old}: --overwrite would delete {old / 'space.json'}, which this run reads" in message


def test_a_super_adapter_keeps_its_search_space(tiny_models: TinyModels, tmp_path: Path, data: Path, quick: None) -> None:
    """With another --nncf-config it is searched again."""
    source = tiny_models.source("llama")
    options = {**QUICK, "target": "weights<=0.8x", "data": data, "output": tmp_path / "out", "model": source.base}
    record = compress(source.adapter, nncf_config=source.space, **options)
    assert [step.name.split()[0] for step in record.steps] == ["search", "recover", "export", "baselines", "measure"]
    assert record.networks[-1].parameters < record.networks[0].parameters
    content = json.loads(source.space.read_text())
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    groups[-1] = groups[-1][:1]
    (tmp_path / "space.json").write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match=r"--nncf-config: was .* \(search\)"):
        compress(source.adapter, nncf_config=tmp_path / "space.json", **options)


def test_the_unpruned_network_of_a_super_adapter(
    tiny_models: TinyModels,
    tmp_path: Path,
    data: Path,
    quick: None,
    run_cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In INT8 it is neither trained nor cut, although the adapter has its search space in its directory.

    The output lies in that directory, and nothing but the adapter is copied from there.
    """
    source, adapter = tiny_models.source("llama"), tmp_path / "adapter"
    shutil.copytree(source.adapter, adapter)
    shutil.copy(source.space, adapter / "nncf_config.json")
    for name in (".git", "checkpoint-2"):
        (adapter / name).mkdir()
        (adapter / name / "adapter_model.safetensors").write_bytes(b"old")
    monkeypatch.setattr(stages, "train", forbidden)
    options = {**QUICK, "target": "weights<=1x", "data": data, "output": adapter / "out", "model": source.base}
    record = compress(adapter, **options)
    whole = AutoModelForCausalLM.from_pretrained(source.base).num_parameters()
    assert [network.parameters for network in record.networks] == [whole] * 3
    assert record.curves == ()
    recovered = adapter / "out" / "steps" / "recovered" / "weights-1x"
    assert {path.name for path in recovered.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    [command] = [step.command for step in record.steps if step.name.startswith("export")]
    made, output = again(command, run_cli, tmp_path / "again")
    assert (made / "openvino_model.bin").read_bytes() == (output / "openvino_model.bin").read_bytes()


def test_the_largest_network_of_a_narrow_space_is_recovered(
    llama: TinySource, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its MLPs has 96 channels at most, and that of the adapter 128: it is pruned."""
    content = json.loads(llama.space.read_text())
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    assert groups.count([128, 96, 64]) == 3
    groups[groups.index([128, 96, 64])] = [96, 64]
    (tmp_path / "space.json").write_text(json.dumps(content))
    split(LanguageTask().read([(data, 1.0)]), None, 400, 0, tmp_path / "data")
    [pick] = parse_picks(["weights<=1x"], ["weights"])
    places = stages.Places(tmp_path, str(llama.base), str(llama.adapter), tmp_path / "space.json", has_space=True)
    places.subnetwork(pick).parent.mkdir(parents=True)
    places.subnetwork(pick).write_text(json.dumps({"widths": places.open_start().select("maximal").by_group}))
    trained: list[Path] = []
    monkeypatch.setattr(stages, "train", lambda _inputs, output, *_given: trained.append(output))
    stages.recover(places, pick, TrainOptions(steps=1, prompt="question"), silent)
    assert trained == [tmp_path / "recovered" / "weights-1x"]


def test_a_plain_copy_of_a_super_adapter(finished: Finished, tmp_path: Path) -> None:
    """Channel order, record of the training and pooling stay; its only network is the unpruned one."""
    adapter, copied = tmp_path / "super", tmp_path / "copied"
    shutil.copytree(finished.folder / "out" / "steps" / "recovered" / "weights-0.95x", adapter)
    replace(TrainingRecord.read(adapter / "training.json"), recovered=None).write(adapter / "training.json")
    base = str(finished.source.base)
    architecture = open_source(base).architecture
    ChannelOrder.of(architecture, {"model.layers.1.mlp.down_proj": torch.arange(127, -1, -1)}).save(adapter)
    source = open_source(str(adapter), base)
    assert source.select().name == "heuristic"
    copied.mkdir()
    stages.copy_plain(replace(source, pooling=Pooling("cls", stated=True)), copied)
    pooling = read_pooling(copied)
    assert pooling
    assert pooling.mode == "cls"
    (copied / "modules.json").unlink()
    opened = open_source(str(copied), base)
    assert not opened.space.groups
    assert opened.sizes(opened.select()) == opened.sizes(opened.unpruned)
    assert opened.order.columns["model.layers.1.mlp.down_proj"].tolist() == list(range(127, -1, -1))
    assert opened.training == replace(source.training, search_space=None)


def test_the_recipe_repeats_the_run(
    finished: Finished, tmp_path: Path, quick: None, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, although the timed steps would now choose another precision; changed inputs are named."""
    timed = lambda *given: replace(PROBE, precision="bf16" if given[5] == "auto" else given[5])  # noqa: E731
    monkeypatch.setattr("lonas_edge.pipeline.run.probe", timed)
    recipe = yaml.safe_load((finished.folder / "out" / "recipe.yaml").read_text())
    assert (recipe["recovery-steps"], recipe["precision"]) == (4, "fp32")
    assert set(recipe["lonas-edge"]["sha256"]) == {"base", "data"}
    ran = run_cli("compress", "--config", finished.folder / "out" / "recipe.yaml", "--output", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    for name in ("lora", "recovered/weights-0.95x"):
        made, expected = (
            load_file(out / "steps" / name / "adapter_model.safetensors") for out in (tmp_path / "out", finished.folder / "out")
        )
        assert all(torch.equal(made[key], tensor) for key, tensor in expected.items())
    assert "not the one that the recipe was written for" not in ran.err
    recipe["lonas-edge"]["sha256"]["data"] = "0" * 64
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ran = run_cli("compress", "--config", tmp_path / "recipe.yaml", "--output", tmp_path / "other", "--dry-run")
    assert "data: not the one that the recipe was written for (SHA-256)" in ran.err
    assert "base: not" not in ran.err


def test_an_unknown_key_of_a_recipe(finished: Finished, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    text = (finished.folder / "out" / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("weight-format:", "wieght-format:"))
    ran = run_cli("compress", "--config", tmp_path / "recipe.yaml")
    assert ran.code == 2
    assert "did you mean 'weight-format'" in ran.err


def test_the_search_ends_with_the_greedy_removal(finished: Finished) -> None:
    search = json.loads((finished.folder / "out" / "steps" / "search" / "search.json").read_text())
    assert {each["origin"].partition(":")[0] for each in search["evaluations"]} <= {"warm-start", "greedy"}


def test_a_dry_run_writes_nothing(
    llama: TinySource, tmp_path: Path, data: Path, run_cli: Callable[..., Any], quick: None
) -> None:
    ran = run_cli(
        "compress", llama.base, "--data", data, "--output", tmp_path / "out", "--prompt-len", 8, "--dry-run", "--json"
    )
    assert ran.code == 0, ran.err
    shown = json.loads(ran.out)
    assert list(shown["seconds"]) == ["fine-tune", "space", "search", "recover auto", "export auto", "baselines", "measure"]
    # 80 training examples in batches of 16 at 0.1 s per step; 100,000 tokens of 12 per example are 521 steps of 0.2 s
    assert shown["seconds"]["fine-tune"] > 5 * 0.1
    assert 521 * 0.2 < shown["seconds"]["recover auto"] < 521 * 0.2 + 60
    assert "--steps 521" in shown["commands"]["recover auto"][0]
    assert shown["memory_bytes"] == 10**9
    assert shown["disk_bytes"] > 0
    assert sorted(tmp_path.iterdir()) == [data]
    ran = run_cli("compress", llama.base, "--data", data, "--output", tmp_path / "out", "--prompt-len", 8, "--dry-run")
    assert "recover auto" in ran.err
    assert sorted(tmp_path.iterdir()) == [data]


def test_too_little_disk(llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps together need more than is free, although each has room: refused before any step is timed."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lonas_edge.pipeline.run.probe", forbidden)
    source = open_source(str(llama.base))
    kinds = ("fine-tune", "search", "recover", "export", "baselines")
    each = [disk_bytes(LANGUAGE_MODEL, source, "int8_sym", kind) for kind in kinds]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=sum(each) - 1))
    with pytest.raises(LonasEdgeError, match="not enough disk space"):
        compress(llama.base, data=data, output=tmp_path / "out", **QUICK)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2 * sum(each)))
    with pytest.raises(AssertionError):  # accepted: steps are timed
        compress(llama.base, data=data, output=tmp_path / "out", **QUICK)
    shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    assert sorted(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("adapter", [False, True])
def test_an_unreachable_size(
    adapter: bool, llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the first step, of a model and of an adapter with a search space."""
    monkeypatch.setattr(stages, "fine_tune", forbidden)
    monkeypatch.setattr(stages, "find_networks", forbidden)
    source = {"source": llama.adapter, "model": llama.base, "nncf_config": llama.space} if adapter else {"source": llama.base}
    with pytest.raises(LonasEdgeError, match=r"weights<=0\.1x: the smallest network has weights 0"):
        compress(**source, data=data, output=tmp_path / "out", **{**QUICK, "target": "weights<=0.1x"})
    assert sorted(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("measure", ["weights", "macs", "bytes"])
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
            options = SearchOptions(
                data=data,
                output=tmp_path / "search",
                cost=measure,
                picks=(target,),
                prompt="question",
                num_prompts=4,
                measure=False,
            )
            make_plan(open_source(str(steps / "lora"), base, steps / "space.json"), options)
        assert str(before.value) == str(searched.value)
    figure = float(re.search(r"0\.\d+(?=x\. Relax)", str(searched.value))[0])
    monkeypatch.setattr(stages, "fine_tune", forbidden)
    with pytest.raises(AssertionError):  # accepted: the first step starts
        compress(base, data=data, output=tmp_path / "out", **{**QUICK, "target": f"{measure}<={figure + 0.001}x"})


def test_an_unreachable_target(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latencies are measured, in two rounds."""
    monkeypatch.setattr("lonas_edge.search.timed.Schedule", lambda *_: Schedule(2, 1, 1))
    with pytest.raises(LonasEdgeError, match=r"tpot<=0\.01x: the smallest network has tpot "):
        compress(llama.base, data=data, output=tmp_path / "out", **{**QUICK, "target": "tpot<=0.01x"})
    assert not (tmp_path / "out").exists()


def test_two_targets_that_choose_the_same_network(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained once, and exported for both."""
    outputs: list[str] = []
    train = stages.train
    monkeypatch.setattr(
        stages, "train", lambda inputs, output, *rest: (outputs.append(output.name), train(inputs, output, *rest))
    )
    targets = ["weights<=0.95x", "weights<=0.951x"]
    record = compress(llama.base, data=data, output=tmp_path / "out", **{**QUICK, "target": targets})
    assert outputs == ["lora", "weights-0.95x"]
    folders = [network.folder for network in record.networks if network.folder]
    assert folders == ["weights-0.95x", "weights-0.951x"]
    logits = [load_file(tmp_path / f"out/steps/recovered/{name}/adapter_model.safetensors") for name in folders]
    assert all(torch.equal(tensor, logits[1][name]) for name, tensor in logits[0].items())


def test_refused_targets(refused: Callable[..., str]) -> None:
    error = refused(target=["watts<=3", "tpot>=2", "latency<=1x"])
    assert "Invalid --target" in error
    for text in ("watts is not measured here", "tpot takes <=", "latency is not measured here"):
        assert text in error
    for text in ("tpot<=20ms", "size<=50MB", "tpot<=70%", "0.7x", "tpot=0.7x"):
        error = refused(target=text)
        assert f"{text!r}: expected MEASURE<=NUMBER (times in ms, sizes in bytes) or MEASURE<=NUMBERx" in error
        assert "MEASURE is one of kl, tpot, ttft, " in error
    assert "bounds tpot and ttft; one run" in refused(target=["ttft<=0.8x", "tpot<=0.8x"])


def test_targets_that_are_the_same_bound(refused: Callable[..., str]) -> None:
    error = refused(target=["auto", "kl<=0.15", "tpot<=0.7x", "tpot<=0.70x", "kl<=0.1"])
    assert "auto and kl<=0.15 are the same bound" in error
    assert "tpot<=0.7x and tpot<=0.70x are the same bound" in error
    assert "kl<=0.1 " not in error


def test_refused_options(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "--weight-format fp32" in refused(weight_format="fp32")
    assert "expected keep, auto or a number" in refused(vocabulary="some")
    assert "1 distinct examples" in refused(data=_one(tmp_path))


def test_lengths_beyond_the_context(refused: Callable[..., str]) -> None:
    """Of 128 tokens: prompt and answer together. Those that fit get as far as the next mistake."""
    long = "--prompt-len 101, --new-tokens 28: 129 tokens are beyond the model's context of 128; choose"
    assert long in refused(prompt_len=101, new_tokens=28)
    assert "the vocabulary has only" in refused(prompt_len=100, new_tokens=28, prompt="question", vocabulary=9999)


def _one(folder: Path) -> Path:
    path = folder / "one.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    return path


def test_impossible_vocabularies(refused: Callable[..., str]) -> None:
    assert "--vocabulary 20: below the" in refused(vocabulary=20, prompt="question")
    assert "--vocabulary 9999: the vocabulary has only" in refused(vocabulary=9999, prompt="question")


def test_a_missing_base(refused: Callable[..., str], tiny_models: TinyModels, tmp_path: Path) -> None:
    adapter = tiny_models.adapter("llama")
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "gone/nowhere"}))
    assert "--model" in refused(moved)


def test_an_adapter_with_other_parameters(refused: Callable[..., str], tiny_models: TinyModels) -> None:
    """The recovery cannot train it: refused before any step, with all of its other parameters."""
    error = refused(tiny_models.adapter("llama", bias="lora_only", modules_to_save=["lm_head"]))
    assert "bias = 'lora_only'" in error
    assert "modules_to_save = ['lm_head']" in error


def test_an_output_of_another_source(finished: Finished, tiny_models: TinyModels, tmp_path: Path, quick: None) -> None:
    out = finished.copied(tmp_path / "copy")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tiny_models.source("qwen2").base
    with pytest.raises(LonasEdgeError, match=r"holds base-llama, compressed; the files of this SOURCE(.|\n)*--overwrite"):
        compress(other, data=out.parent / "data.json", output=out, **QUICK)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends children with their parent")
def test_optimum_cli_ends_with_a_killed_run(llama: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    given = tmp_path / "merged", tmp_path / "int8", "int8", LANGUAGE_MODEL, open_source(str(llama.base)).architecture
    run = multiprocessing.get_context("fork").Process(target=stages._optimum, args=given)
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


def forbidden(*_given: object, **_options: object) -> None:
    raise AssertionError("a finished step was repeated")
