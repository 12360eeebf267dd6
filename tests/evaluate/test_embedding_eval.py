"""Embedding models on STS-B and retrieval data: targets of every kind vs. the oracle, differences, resuming, refusals."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from tiny_bert import CONTEXT, TinyBert, oracle_embeddings, oracle_hidden, tokenizer
from tiny_models import TinyModels, TinySource

from lonas_edge.evaluate import targets
from lonas_edge.exporting.export import ExportOptions, export

WORDS = ("the", "good", "bad", "film", "not", "is", "same", "we", "a.")
MINIMAL, MAXIMAL = ([32] * 3 + [6] * 3 + [64] * 3, [64] * 3 + [8] * 3 + [128] * 3)
F32 = ("--property", "INFERENCE_PRECISION_HINT=f32")
PAIRS = 60


def drawn_text(draw: random.Random, longest: int = 30) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))


def write_similarity(folder: Path, longest: int = 30) -> list[tuple[str, str, float]]:
    """A made up STS-B; every tenth pair has equal texts."""
    draw = random.Random(5)
    pairs = [(drawn_text(draw, longest), drawn_text(draw, longest), draw.randint(0, 20) / 4) for _ in range(PAIRS)]
    pairs[::10] = [(first, first, 5.0) for first, _, _ in pairs[::10]]
    rows = ["index\tsentence1\tsentence2\tscore", *(f"{i}\t{a}\t{b}\t{score}" for i, (a, b, score) in enumerate(pairs))]
    (folder / "STS-B").mkdir(parents=True)
    (folder / "STS-B/dev.tsv").write_text("\n".join(rows) + "\n")
    return pairs


def embedded(
    source: TinySource, widths: list[int], texts: Sequence[str], length: int = CONTEXT, mode: str = "mean"
) -> np.ndarray:
    """Embeddings of length 1 by the oracle, each text cut after so many tokens and alone in its batch."""
    encode, rows = tokenizer(), []
    for text in texts:
        inputs = encode(text, truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=True)
        rows.append(oracle_embeddings(oracle_hidden(source, widths, inputs), inputs["attention_mask"], mode))
    return torch.cat(rows).numpy()


def cosines_of(source: TinySource, widths: list[int], pairs: Any, prompt: str = "", **options: Any) -> np.ndarray:
    first, second = (embedded(source, widths, [prompt + pair[side] for pair in pairs], **options) for side in (0, 1))
    return (first * second).sum(1)


def result(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def logged(folder: Path, name: str, task: str = "STS-B") -> list[dict[str, Any]]:
    log = folder / "samples" / name.replace(":", "_") / f"samples_{task}.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def assert_figures(target: dict[str, Any], rows: list[dict[str, Any]], expected: np.ndarray, labels: Sequence[float]) -> None:
    """Cosines vs. the oracle's, and both correlations vs. SciPy's of those."""
    (task,) = target["tasks"]
    assert np.abs(np.array([row["answer"] for row in rows]) - expected).max() < 1e-4
    assert list(task["metrics"]) == ["spearman", "pearson"] and task["skipped"] == []
    spearman, pearson = spearmanr(expected, labels).statistic, pearsonr(expected, labels).statistic
    assert task["accuracy"] == pytest.approx(100 * spearman, abs=0.05)  # cosines of 60 pairs differ by more than 1e-4
    assert task["metrics"]["spearman"]["value"] == pytest.approx(spearman, abs=5e-4)
    assert task["metrics"]["pearson"]["value"] == pytest.approx(pearson, abs=5e-4)
    assert target["average"] == task["accuracy"] and task["questions"] == len(labels)


@pytest.fixture(scope="module")
def exported(tiny_bert: TinyBert, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal sub-network as fp32 IR, cut after 24 tokens. Not to be changed."""
    source, folder = tiny_bert.embedder(tiny_bert.body("mean", True, max_length=24)), tmp_path_factory.mktemp("exported")
    opened = source.opened()
    export(opened, opened.subnetwork(MINIMAL), folder / "ir", ExportOptions(weight_format="fp32", verify=False))
    return folder / "ir"


def stock(exported: Path, folder: Path, pooling: str | None = None) -> Path:
    """The IR as `optimum-cli` leaves it, whose config.json may name another head; with a pooling of sentence-transformers."""
    ours = ("lonas_edge*", "README.md", "subnetwork.json", "modules.json", "*Pooling", "*sentence*")
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns(*ours))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    if pooling:
        (folder / "1_Pooling").mkdir()
        kinds = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
        (folder / "modules.json").write_text(json.dumps(kinds))
        (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": pooling}))
    return folder


def test_every_kind_of_target(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """An IR, sub-networks in PyTorch, a checkpoint; the default prompt and the longest text of the base."""
    settings = {"max_length": 16, "prompts": {"query": "not the film: "}, "default_prompt_name": "query"}
    source, data = tiny_bert.embedder(tiny_bert.body("mean", True, **settings)), tmp_path / "data"
    pairs = write_similarity(data)
    assert sum(len(first.split()) > 16 for first, _, _ in pairs) > 10
    for stage in ("ir", "checkpoint"):
        options = {"weight_format": "fp32"} if stage == "ir" else {}
        export(source.opened(), source.subnetwork(MINIMAL), tmp_path / stage, ExportOptions(stage=stage, **options))
    names = ["ir", f"{source.adapter.name}:maximal", f"{source.adapter.name}:minimal", "checkpoint"]
    arguments = [tmp_path / "ir", source.adapter, tmp_path / "checkpoint", *source.arguments()[1:], *F32]
    arguments += ["--subnet", "maximal,minimal", "--tasks", "stsb", "--datasets", data, "--output", tmp_path / "out"]
    report = result(run_cli("eval", *arguments, "--json"))
    assert report["protocol"] == "embed" and [target["name"] for target in report["targets"]] == names
    labels = [label for _, _, label in pairs]
    minimal, maximal = (
        cosines_of(source, widths, pairs, settings["prompts"]["query"], length=16) for widths in (MINIMAL, MAXIMAL)
    )
    for target, expected in zip(report["targets"], (minimal, maximal, minimal, minimal), strict=True):
        rows = logged(tmp_path / "out", target["name"])
        assert [(*row["texts"], row["label"]) for row in rows] == pairs
        assert_figures(target, rows, expected, labels)
        assert target["answered"] == len({text for pair in pairs for text in pair[:2]})
    assert np.abs(minimal - maximal).max() > 0.01
    report_text = (tmp_path / "out/eval.md").read_text()
    assert "embed: cosines of embeddings; STS-B: Spearman, Pearson" in report_text


def test_paired_differences(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """By SciPy on the answers: the difference, and a paired bootstrap of another seed."""
    source, data = tiny_bert.embedder(), tmp_path / "data"
    pairs = write_similarity(data)
    command = ["eval", *source.arguments(), "--subnet", "maximal,minimal", "--datasets", data, "--output", tmp_path / "out"]
    report = result(run_cli(*command, "--json"))
    labels = np.array([label for _, _, label in pairs])
    first, second = (np.array([row["answer"] for row in logged(tmp_path / "out", t["name"])]) for t in report["targets"])
    (difference,) = report["differences"]
    points = 100 * (spearmanr(second, labels).statistic - spearmanr(first, labels).statistic)
    assert difference["points"] == pytest.approx(points) and difference["scope"] == "STS-B"
    draw, spread = np.random.default_rng(9), []
    for _ in range(1000):
        rows = draw.integers(PAIRS, size=PAIRS)
        spread.append(spearmanr(second[rows], labels[rows]).statistic - spearmanr(first[rows], labels[rows]).statistic)
    assert (difference["high"] - difference["low"]) / 2 == pytest.approx(
        196 * np.std(spread), rel=0.15
    )  # 500 draws: 3 % of error each


@pytest.mark.parametrize(("mode", "stated"), [("mean", False), ("cls", True), ("lasttoken", True)])
def test_an_ir_of_another_tool(
    mode: str, stated: bool, exported: Path, tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path
) -> None:
    """Its pooling is that of sentence-transformers' files; without them the mean is assumed, with a warning."""
    pairs = write_similarity(tmp_path / "data")
    folder = stock(exported, tmp_path / "stock", mode if stated else None)
    ran = run_cli("eval", folder, "--datasets", tmp_path / "data", *F32, "--output", tmp_path / "out", "--json")
    expected = cosines_of(tiny_bert.embedder(), MINIMAL, pairs, length=24, mode=mode)
    assert_figures(result(ran)["targets"][0], logged(tmp_path / "out", "stock"), expected, [label for _, _, label in pairs])
    assert ("stock: no modules.json, so its pooling is unknown; assuming the mean" in ran.err) is not stated


def test_other_tasks_are_refused(tiny_bert: TinyBert, tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    write_similarity(tmp_path / "data")
    on = [*tiny_bert.embedder().arguments(), "--datasets", tmp_path / "data"]
    for arguments, code, message in (
        ([*on, "--tasks", "RTE,boolq"], 1, "RTE: no task of a sentence embedding model"),
        ([*on, "--protocol", "generate"], 2, "--protocol has no effect: a sentence embedding model has no prompt template"),
        (on[:-2], 1, "--datasets DIR, a directory with TASK/dev.tsv of GLUE (STS-B)"),
        ([*on[:-1], tmp_path], 1, "expected a directory with TASK/dev.tsv of GLUE (STS-B), found none"),
        ([tiny_bert.body(), tiny_bert.base(), *on[-2:]], 1, "is a sequence classifier: evaluate them separately"),
        ([tiny_bert.body(), tiny_models.base("llama"), *on[-2:]], 1, "is a causal language model: evaluate them separately"),
    ):
        ran = run_cli("eval", *arguments)
        plain = " ".join(ran.err.replace("│", " ").split())
        assert ran.code == code and " ".join(message.split()) in plain and "Traceback" not in plain, ran.err


def test_a_damaged_model_is_refused(
    tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_similarity(tmp_path)
    monkeypatch.setattr(targets, "torch_encoder", lambda *_: lambda batch: np.full((len(batch["input_ids"]), 4), np.nan))
    ran = run_cli("eval", tiny_bert.body(), "--datasets", tmp_path)
    assert ran.code == 1 and "outputs are not finite; is the model damaged?" in ran.err, ran.err
