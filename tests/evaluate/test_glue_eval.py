"""GLUE's development sets: metrics, errors, paired differences, targets of every kind, refusals."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import TinyBert, oracle_logits
from tiny_models import TinyModels, TinySource

from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import TASKS
from lonas_edge.data.texts import Texts
from lonas_edge.evaluate.results import metrics_of

HEADERS = {
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tsentence1\tsentence2\tscore",
    "MNLI": "index\tsentence1\tsentence2\tgold_label",
}
WORDS = ("the", "good", "bad", "film", "not", "is", "same")


def write_set(folder: Path, task: str, count: int = 40, split: str = "dev", longest: int = 5) -> list[Texts]:
    """A made up development set, and what is in it."""
    draw, lines, pairs = random.Random(task + split), [HEADERS[task]], []
    for index in range(count):
        first, second = (" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(2))
        label = draw.choice(("0", "1")) if task == "MRPC" else draw.choice(TASKS[task].classes or ("0.5", "2.25", "4.0"))
        columns = (label, "1", "2", first, second) if task == "MRPC" else (str(index), first, second, label)
        lines.append("\t".join(columns))
        number = TASKS[task].classes.index(label) if label in TASKS[task].classes else float(label)
        pairs.append(Texts((first, second), int(label) if task == "MRPC" else number))
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return pairs


def expected_logits(source: TinySource, widths: list[int], pairs: list[Texts]) -> np.ndarray:
    """The oracle's answers, a text at a time: nothing is padded."""
    from tiny_bert import tokenizer

    rows = encode_pairs([pair.texts for pair in pairs], tokenizer(), None)
    batches = [collate_pairs([{**row, "labels": 0}], 0) for row in rows]
    answers = [oracle_logits(source.base, source.adapter, source.space, widths, batch) for batch in batches]
    return torch.cat(answers).numpy()


def test_metrics() -> None:
    labels, answers = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])
    both, miss, alarm, none = 3, 1, 1, 3
    found = metrics_of(["acc", "f1", "matthews"], labels, answers)
    assert list(found) == ["acc", "f1", "matthews"]
    assert found["acc"].value == pytest.approx(0.75)
    assert found["f1"].value == pytest.approx(2 * both / (2 * both + miss + alarm))
    assert found["acc"].stderr == pytest.approx((0.75 * 0.25 / 7) ** 0.5)
    assert found["matthews"].value == pytest.approx((both * none - miss * alarm) / (4 * 4 * 4 * 4) ** 0.5)
    x, y = np.array([0.5, 2.0, 4.0, 5.0, 1.0]), np.array([1.0, 2.5, 3.0, 9.0, 0.0])
    found = metrics_of(["pearson", "spearman"], x, y)
    a, b = x - x.mean(), y - y.mean()
    assert found["pearson"].value == pytest.approx((a * b).sum() / ((a**2).sum() * (b**2).sum()) ** 0.5)
    ranks = np.array([0, 2, 3, 4, 1]), np.array([1, 2, 3, 4, 0])
    assert found["spearman"].value == pytest.approx(1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / (5 * 24))
    assert found["spearman"].stderr and found["spearman"].stderr > 0


def test_a_constant_correlates_with_nothing() -> None:
    found = metrics_of(["pearson", "spearman"], np.array([0.5, 2.0, 4.0]), np.ones(3))
    assert (found["pearson"].value, found["spearman"].value) == (0.0, 0.0)
    assert metrics_of(["matthews"], np.array([0, 1, 1, 0]), np.ones(4))["matthews"].value == 0


def test_bootstrapped_errors_are_those_of_theory() -> None:
    """Of a correlation of normal variables (Fisher): (1 - r²) / sqrt(n - 1)."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=500)
    y = 0.8 * x + 0.6 * generator.normal(size=500)
    assert metrics_of(["pearson"], x, y)["pearson"].stderr == pytest.approx((1 - 0.64) / 500**0.5, rel=0.2)


def test_every_kind_of_target(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """An IR, sub-networks in PyTorch and a checkpoint against the oracle, text by text."""
    source, data = tiny_bert.source(2), tmp_path / "data"
    pairs = {task: write_set(data, task) for task in ("RTE", "MRPC")}
    for stage, options in (("ir", ["--weight-format", "fp32"]), ("checkpoint", [])):
        ran = run_cli(
            "export", *source.arguments(), "--subnet", "minimal", "--stage", stage, *options, "--output", tmp_path / stage
        ).ok()
    arguments = ["eval", tmp_path / "ir", source.adapter, tmp_path / "checkpoint", *source.arguments()[1:]]
    arguments += [
        "--subnet",
        "maximal",
        "--tasks",
        "rte,MRPC",
        "--datasets",
        data,
        "--property",
        "INFERENCE_PRECISION_HINT=f32",
    ]
    ran = run_cli(*arguments, "--output", tmp_path / "out", "--json").ok()
    report = json.loads(ran.out)
    assert report["protocol"] == "classify"
    minimal, maximal = ([group[place] for group in source.groups()] for place in (-1, 0))
    right = {}
    for target, widths in zip(report["targets"], (minimal, maximal, minimal), strict=True):
        for task in target["tasks"]:
            labels = np.array([pair.label for pair in pairs[task["task"]]])
            logits = expected_logits(source, widths, pairs[task["task"]])
            log = tmp_path / "out/samples" / target["name"].replace(":", "_") / f"samples_{task['task']}.jsonl"
            rows = [json.loads(line) for line in log.read_text().splitlines()]
            found = np.array([row["logits"] for row in rows])
            assert np.abs(found - logits).max() < 1e-3
            assert [row["label"] for row in rows] == labels.tolist()
            right[target["name"], task["task"]] = (logits.argmax(1) == labels).astype(float)
            share = right[target["name"], task["task"]].mean()
            assert task["accuracy"] == pytest.approx(100 * share) and task["questions"] == 40
        assert target["average"] == pytest.approx(np.mean([task["accuracy"] for task in target["tasks"]]))
    names = [target["name"] for target in report["targets"]]
    difference = next(each for each in report["differences"] if each["target"] == names[1] and each["scope"] == "RTE")
    assert difference["points"] == pytest.approx(100 * (right[names[1], "RTE"] - right[names[0], "RTE"]).mean())
    same = [each for each in report["differences"] if each["target"] == names[2]]
    assert [(each["identical"], each["points"]) for each in same] == [(1.0, 0.0)] * 3
    assert "classes and scores; RTE: accuracy; MRPC: accuracy, F1" in (tmp_path / "out/eval.md").read_text()


def test_a_regression_with_texts_beyond_the_context(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    source, data = tiny_bert.source(1), tmp_path / "data"
    pairs = write_set(data, "STS-B", longest=50)
    lengths = [3 + sum(len(text.split()) for text in pair.texts) for pair in pairs]
    assert 0 < sum(length > 64 for length in lengths) < 20
    ran = run_cli("eval", *source.arguments(), "--subnet", "maximal", "--tasks", "stsb", "--datasets", data, "--json").ok()
    (task,) = json.loads(ran.out)["targets"][0]["tasks"]
    assert [sample["sample"] for sample in task["skipped"]] == [index for index, length in enumerate(lengths) if length > 64]
    assert {sample["context"] for sample in task["skipped"]} == {64}
    kept = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= 64]
    answers = expected_logits(source, [group[0] for group in source.groups()], kept)[:, 0]
    pearson = np.corrcoef(answers, [pair.label for pair in kept])[0, 1]
    assert task["metrics"]["pearson"]["value"] == pytest.approx(pearson, abs=1e-4)
    assert task["accuracy"] == pytest.approx(100 * pearson, abs=1e-2)


def test_classes_in_another_order(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """A base whose configuration names the task's classes in another order and case is read by names; MNLI has two sets."""
    source, data = tiny_bert.source(3), tmp_path / "data"
    pairs = write_set(data, "MNLI", split="dev_matched")
    write_set(data, "MNLI", split="dev_mismatched", count=10)
    ran = run_cli(
        "export", *source.arguments(), "--stage", "checkpoint", "--output", tmp_path / "one", "--subnet", "maximal"
    ).ok()
    config = json.loads((tmp_path / "one/config.json").read_text())
    names = ["CONTRADICTION", "Entailment", "neutral"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (tmp_path / "one/config.json").write_text(json.dumps(config))
    (tmp_path / "one/lonas_edge.json").unlink()  # an ordinary base
    ran = run_cli("eval", tmp_path / "one", "--tasks", "MNLI", "--datasets", data, "--output", tmp_path / "out", "--json").ok()
    matched, mismatched = json.loads(ran.out)["targets"][0]["tasks"]
    logits = expected_logits(source, [group[0] for group in source.groups()], pairs)
    answers = [TASKS["MNLI"].classes.index(names[place].lower()) for place in logits.argmax(1)]
    assert matched["accuracy"] == pytest.approx(100 * np.mean([a == p.label for a, p in zip(answers, pairs, strict=True)]))
    rows = (tmp_path / "out/samples/one/samples_MNLI.jsonl").read_text().splitlines()
    assert [json.loads(row)["answer"] for row in rows] == answers
    assert (mismatched["task"], mismatched["questions"]) == ("MNLI-mm", 10)


def test_what_is_refused(tiny_bert: TinyBert, tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    source, data = tiny_bert.source(2), tmp_path / "data"
    write_set(data, "STS-B"), write_set(data, "RTE")
    on = [*source.arguments(), "--datasets", data]
    for arguments, code, message in (
        ([*on, "--tasks", "boolq,harness:rte,RTE"], 1, "boolq: no task of a sequence classifier"),
        ([*on, "--tasks", "stsb"], 1, "its head is one of classification (2 outputs), and STS-B is a regression (1 output)"),
        ([*on, "--tasks", "mnli"], 1, "dev_matched.tsv"),
        (
            [*on, "--tasks", "RTE", "--protocol", "option-text"],
            2,
            "--protocol has no effect: a sequence classifier has no prompt template",
        ),
        ([*source.arguments(), "--tasks", "RTE"], 1, "or --datasets DIR"),
        ([tiny_bert.base(), tiny_models.base("llama"), "--datasets", data, "--tasks", "RTE"], 1, "they have no task in common"),
        ([tiny_models.base("llama"), "--datasets", data, "--tasks", "STS-B"], 1, "STS-B: no such task"),
    ):
        ran = run_cli("eval", *arguments)
        assert ran.code == code and message in " ".join(ran.err.replace("│", " ").split()), ran.err
    (data / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n")
    ran = run_cli("eval", *on)
    assert ran.code == 1 and "line 2: label 'neutral': expected entailment or not_entailment" in ran.err
