"""Training embedding models: losses by the definitions, recoveries, new adapters, refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bert import CONTEXT, LAYERS, TinyBert, oracle_embeddings, oracle_hidden, tokenizer
from tiny_models import TinySource
from training_runs import Watched, without_dropout

from lonas_edge.data.pooling import Pooling
from lonas_edge.network.source import open_source
from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

OPTIONS = {"rank": 8, "alpha": 16, "steps": 6, "save_steps": 3, "log_steps": 1, "batch_size": 4, "lr": 0.01, "device": "cpu"}
WORDS = ("the good film", "the bad film", "not good", "is good", "not bad", "is the same")
MAXIMAL, MINIMAL = ([width for width in widths for _ in range(LAYERS)] for widths in ((64, 8, 128), (32, 6, 64)))


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder / name


def texts(folder: Path) -> Path:
    return write(folder, "texts.jsonl", [{"text": " ".join((WORDS[n % 6], WORDS[n // 2 % 6]))} for n in range(12)])


def pairs(folder: Path, kind: str) -> Path:
    extra = {"pair": {}, "triplet": {"negative": "bad bad"}, "scored pair": {"score": 0.3}}[kind]
    records = [{"anchor": words, "positive": f"{words} the", **extra} for words in WORDS]
    return write(folder, f"{kind}.jsonl", records)


def learned() -> dict[str, torch.Tensor]:
    """The tokens of `texts`."""
    return dict(tokenizer()([f"{WORDS[n % 6]} {WORDS[n // 2 % 6]}" for n in range(12)], padding=True, return_tensors="pt"))


def distance(source: TinySource, adapter: Path | None, widths: list[int], mode: str = "mean") -> float:
    """The oracle's mean of 1 - cosine from the source's whole network, on the training texts."""
    inputs, both = learned(), []
    for folder, chosen in ((source.adapter, MAXIMAL), (adapter, widths)):
        hidden = oracle_hidden(TinySource("bert", source.base, folder, source.space), chosen, inputs)
        both.append(oracle_embeddings(hidden, inputs["attention_mask"], mode))
    return float((1 - (both[0] * both[1]).sum(1)).mean())


@pytest.mark.parametrize("mode", ["mean", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("cls", "lasttoken"))])
def test_a_recovery(mode: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The pruned network comes closer to its teacher, and its held-out loss is the oracle's distance."""
    source, data = tiny_bert.embedder(without_dropout(tiny_bert.body(mode), tmp_path / "base")), texts(tmp_path)
    inputs = open_recovery(str(source.adapter), data, "minimal", str(source.base), source.space)
    inputs = with_eval_data(with_teacher(inputs, str(source.adapter), str(source.base)), data)
    record = train(inputs, tmp_path / "recovered", TrainOptions(**{**OPTIONS, "batch_size": 12, "steps": 40, "dtype": "fp32"}))
    assert record and record.eval_data and record.recovered and record.pooling == f"{mode}, normalized"
    before, after = distance(source, source.adapter, MINIMAL, mode), distance(source, tmp_path / "recovered", MINIMAL, mode)
    assert record.losses[0].loss == pytest.approx(before, rel=1e-3)
    assert record.eval_data.losses[0].loss == pytest.approx(before, rel=1e-3)
    assert record.eval_data.losses[-1].loss == pytest.approx(after, rel=1e-3)
    assert after < 0.5 * before and record.eval_data.also_trained == 12
    card = (tmp_path / "recovered/README.md").read_text()
    assert "from those of the frozen teacher" in card and "pipeline_tag: feature-extraction" in card


def test_an_adapter_with_its_own_pooling(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """As sentence-transformers saves it: the recovered adapter keeps the pooling, also where the base has another or none."""
    data, space = texts(tmp_path), tiny_bert.space()
    for name, base in (("none", tiny_bert.base(headless=True)), ("mean", tiny_bert.body())):
        adapter, output = tmp_path / f"{name}-adapter", tmp_path / name
        shutil.copytree(tiny_bert.embedder().adapter, adapter)
        (adapter / "1_Pooling").mkdir()
        (adapter / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
        modules = [("", "x.Transformer"), ("1_Pooling", "x.Pooling"), ("2_Normalize", "x.Normalize")]
        (adapter / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in modules]))
        inputs = with_teacher(open_recovery(str(adapter), data, "minimal", str(base), space), str(adapter), str(base))
        assert train(inputs, output, TrainOptions(**{**OPTIONS, "steps": 1}))
        assert open_source(str(output)).pooling == Pooling("cls", True, max_length=CONTEXT, stated=True)


def test_a_sub_network_of_a_base(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """`train --from` a base puts a new adapter on one of its sub-networks; `export` takes it."""
    base, data, output = tiny_bert.body(), texts(tmp_path), tmp_path / "out"
    options = ("--steps", 40, "--batch-size", 4, "--lr", 0.01, "--dtype", "fp32")
    arguments = ("--nncf-config", tiny_bert.space(), "--subnet", "minimal", "--teacher", base, "--data", data)
    run_cli("train", "--from", base, *arguments, "--output", output, *options).ok()
    record = json.loads((output / "training.json").read_text())
    assert record["recovered"]["subnetwork"] == "minimal" and record["recovered"]["sha256"] == {}
    assert "adapter of one sub-network (minimal)" in (output / "README.md").read_text()
    source = TinySource("bert", base, None, tiny_bert.space())
    assert distance(source, output, MINIMAL) < 0.5 * distance(source, None, MINIMAL)
    run_cli("export", output, "--output", tmp_path / "ir").ok()
    assert json.loads((tmp_path / "ir/lonas_edge.json").read_text())["subnetwork"]["name"] == "minimal"


@pytest.mark.parametrize("kind", ["pair", "triplet", "scored pair"])
def test_a_new_adapter(kind: str, tiny_bert: TinyBert, tmp_path: Path, watched: Watched) -> None:
    """Labelled records are learned without a teacher; the first losses are those of the base and of its first sub-network."""
    data, base = pairs(tmp_path, kind), without_dropout(tiny_bert.body(), tmp_path / "base")
    inputs = with_eval_data(open_inputs(str(base), data, tiny_bert.space()), data)
    options = TrainOptions(**{**OPTIONS, "batch_size": 6, "steps": 40, "dtype": "fp32", "reorder": False})
    record = train(inputs, tmp_path / "out", options)
    assert record and record.eval_data and record.data[0].kind == kind and record.search_space
    assert record.eval_data.losses[-1].loss < 0.8 * record.eval_data.losses[0].loss
    texts = [text for words in WORDS for text in (words, f"{words} the", "bad bad")[: 3 if kind == "triplet" else 2]]
    tokens, source = (
        dict(tokenizer()(texts, padding=True, return_tensors="pt")),
        TinySource("bert", base, None, tiny_bert.space()),
    )

    def loss(widths: list[int]) -> float:
        embeddings = oracle_embeddings(oracle_hidden(source, widths, tokens), tokens["attention_mask"])
        records = embeddings.unflatten(0, (len(WORDS), -1))
        cosines = records[:, 0] @ records[:, 1:].transpose(0, 1).flatten(0, 1).T
        if kind == "scored pair":
            return (cosines.diag() - 0.3).square().mean().item()
        return (torch.logsumexp(20 * cosines, 1) - 20 * cosines[range(6), range(6)]).mean().item()

    assert record.eval_data.losses[0].loss == pytest.approx(loss(MAXIMAL), rel=1e-3)
    assert record.losses[0].loss == pytest.approx(loss(list(watched.passes[0][1])), rel=1e-3)


def test_refused(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    data, base = texts(tmp_path), tiny_bert.body()
    new = ("--model", base, "--no-elastic")
    for arguments, fault in (
        ((*new, "--data", data), "texts without labels need --teacher MODEL"),
        ((*new, "--data", data, "--teacher", tiny_bert.body("cls")), "pooling cls, and the training's model has mean"),
        ((*new, "--data", data, "--teacher", tiny_bert.base()), "is a sequence classifier and cannot teach a sentence"),
        ((*new, "--data", data, "--teacher", base, "--max-length", 65), "has a context of 64 tokens"),
        ((*new, "--data", pairs(tmp_path, "pair"), "--micro-batch-size", 1), "expected at least 2"),
        ((*new, "--data", data, "--template", "alpaca"), "--template has no effect"),
    ):
        ran = run_cli("train", *arguments, "--output", tmp_path / "out", "--steps", 1)
        assert ran.code in (1, 2) and fault in re.sub(r"\s+", " ", ran.err), ran.err
        assert not (tmp_path / "out").exists()
