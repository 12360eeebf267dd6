"""Figures of the report: latencies from samples of `bench`, losses from those of examples; and timed training steps."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_runs import Finished
from tiny_models import TinySource
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.bench.measure import Sample
from lonas_edge.bench.variants import Case, Timing
from lonas_edge.data.language import LanguageTask
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.network.source import open_source
from lonas_edge.pipeline import measure, training
from lonas_edge.pipeline.record import Latency
from lonas_edge.pipeline.tasks import LANGUAGE_MODEL
from lonas_edge.progress import silent
from lonas_edge.training.options import TrainOptions

FOLDERS = {name: Path(name) for name in ("baseline", "other", "ours")}


def latencies(monkeypatch: pytest.MonkeyPatch, case: Case, samples: list[Sample]) -> dict[str, dict[str, Latency]]:
    """Of samples of the variants `subnet` (ours), `baseline` and `other`."""
    variants = [SimpleNamespace(name=name) for name in ("subnet", "baseline", "other")]
    result = SimpleNamespace(interrupted=False, failures=(), samples=samples, variants=variants)
    monkeypatch.setattr(measure, "open_exported", lambda folder: folder)
    monkeypatch.setattr(measure, "bench", lambda *_given: result)
    return measure.latencies(FOLDERS, case, {"ours": 1.1}, silent)[0]


def test_ratios_are_to_the_first_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes half of the baseline's 10 ms for a token and 1.1 times the tokens; the other file takes 1.5 times as much.

    Rounds have other speeds.
    """
    case, milliseconds = Case(8, 3), {"subnet": 5, "baseline": 10, "other": 15}
    samples = [
        Sample(name, case, index, Timing(tuple(each * time * (1 + index / 10) / 1000 for each in (1, 2, 3)), 0.1), index // 2)
        for index in range(8)
        for name, time in milliseconds.items()
    ]
    times = latencies(monkeypatch, case, samples)
    assert {name: each["tpot"].ratio and each["tpot"].ratio.value for name, each in times.items()} == {
        "baseline": None, "other": pytest.approx(1.5), "ours": pytest.approx(0.55),
    }  # fmt: skip
    assert times["ours"]["tpot"].samples[0] == pytest.approx(5)
    assert times["ours"]["ttft"].median.value == pytest.approx(5 * 1.35)


def test_pairs_of_networks_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes turns with each baseline: it has a ratio to the first, and the second baseline has none."""
    case = Case(8, 0)
    parts = (("baseline", range(8), 20), ("other", range(8, 16), 30), ("subnet", range(16), 10))
    samples = [
        Sample(name, case, number, Timing((), milliseconds / 1000 * 1.01**number), 0)
        for name, rounds, milliseconds in parts
        for number in rounds
    ]
    found = [each["latency"] for each in latencies(monkeypatch, case, samples).values()]
    assert [each.ratio is None for each in found] == [True, True, False]
    assert found[2].ratio and abs(found[2].ratio.value - 0.55) < 1e-9
    assert len(found[2].samples) == 16 and found[1].median.value > 30


def test_examples_that_one_tokenizer_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second example is too long with the second vocabulary: it counts for no network."""
    scores: dict[str, Any] = {"whole": [[2, 1, 2], [4, 2, 3]], "trimmed": [[3, 1, 3], [0, 0, 0]]}  # loss, correct, learned
    monkeypatch.setattr(measure, "score", lambda folder, *_given: np.array(scores[folder.name], float))
    qualities = measure.losses({name: Path(name) for name in scores}, LanguageTask(), Path(), silent)
    loss, accuracy = (qualities[name] for name in ("loss", "accuracy"))
    assert loss["whole"].value == 1 and loss["trimmed"].value == 1.5  # per token of the whole vocabulary
    assert loss["trimmed"].difference and loss["trimmed"].difference.value == pytest.approx(0.5)
    assert (accuracy["whole"].value, accuracy["trimmed"].value) == (50, pytest.approx(100 / 3))


def test_correlations() -> None:
    """By hand, ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8."""
    assert measure.correlation(np.array([0.1, 0.2, 0.3, 0.9]), np.array([1.0, 2, 4, 3])) == pytest.approx(80)
    assert measure.correlation(np.ones(4), np.array([1.0, 2, 4, 3])) == 0


def test_the_held_out_loss_is_that_of_transformers(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the fp32 IR of the LoRA is that of PyTorch; that of its INT8 baseline is near."""
    steps = finished.folder / "out" / "steps"
    opened = open_source(str(steps / "lora"), elastic=False)
    for name, options in {"merged": ExportOptions(stage="checkpoint"), "fp32": ExportOptions(weight_format="fp32")}.items():
        export(opened, opened.select("maximal"), tmp_path / name, options)
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
    data = opened.open_data(steps / "data" / "held_out.jsonl", "question")
    assert isinstance(data, LanguageTask)
    for positions in (1024, 3):  # at once
        monkeypatch.setattr(measure, "_POSITIONS", positions)
        scores = measure.score(tmp_path / "fp32", data, tmp_path / "merged", silent).sum(axis=0)
        assert scores[2] == tokens
        assert scores[0] / tokens == pytest.approx(loss / tokens, abs=0.01)  # bf16 where the processor has it
        assert scores[1] == pytest.approx(correct, abs=1)
    assert finished.record.networks[0].quality["loss"].value == pytest.approx(loss / tokens, abs=0.1)


def test_timed_steps(llama: TinySource, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a batch is timed, so a step takes four times as long; of the recovery a whole micro-batch, here a half."""
    LanguageTask().read([(data, 1.0)]).write(tmp_path / "train.jsonl")
    seconds, clock = {"fp32": 0.5, "bf16": 2.0}, [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(training, "faster_dtype", lambda: "bf16")
    timed: list[tuple[str, int, bool, str | None]] = []

    def train(inputs: Any, _output: Path, options: Any, *, report: Callable[..., None], **_: Any) -> Any:
        timed.append((options.dtype, options.batch_size, inputs.teacher is not None, options.weight_format))
        for step in range(1, options.steps + 1):
            clock[0] += 7.0 if step == 1 else seconds[options.dtype] * (3 if inputs.teacher else 1)
            report(step, options.steps, {})
        clock[0] += 0.6  # of the 12 examples
        report(options.steps, options.steps, {"eval_loss": 1.0})
        return SimpleNamespace(tokens=10 * options.steps * options.batch_size, steps=options.steps)

    monkeypatch.setattr(training, "train", train)
    options = TrainOptions(template="question", weight_format="int4_sym")
    given = LANGUAGE_MODEL, str(llama.base), tmp_path / "train.jsonl", (32, 16), options
    made = training.time_steps(*given, None, silent)
    assert (made.precision, made.lora_step, made.recovery_step, made.tokens) == ("fp32", 2.0, 3.0, 10)
    assert (made.batch, made.micro_batch) == (32, 16)
    assert made.evaluation == pytest.approx(0.05)
    assert timed == [("fp32", 4, False, None), ("bf16", 4, False, None), ("fp32", 16, True, "int4_sym")]
    assert training.time_steps(*given, "bf16", silent).precision == "bf16"
    assert [precision for precision, *_ in timed[3:]] == ["bf16", "bf16"]
