"""Training embedding models: gradients against plain torch, recoveries, quantization-aware training, losses, refusals."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_bert import LAYERS, TinyBert, oracle_embeddings, oracle_hidden, tokenizer
from tiny_models import TinySource
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, TrainingArguments

from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceTask
from lonas_edge.data.task import DataFile
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.elastic_trainer import ElasticTrainer
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


def batch() -> dict[str, torch.Tensor]:
    """Four texts of unequal lengths."""
    encoded = tokenizer()([*WORDS[:3], "the same film is the same"], padding=True, return_tensors="pt")
    return dict(encoded)


def task_of(kind: str) -> SentenceTask:
    """A task that learns records of this kind."""
    return SentenceTask(files=(DataFile(Path("data"), kind, 2),))


def embedded(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Directions of the means of a model's hidden states."""
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def loss_of(kind: str, ours: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The losses by their definitions, a mean over texts or records."""
    if kind == "text":
        return (1 - (ours * target).sum(1)).mean()
    first, second = ours[[0, 2]], ours[[1, 3]]
    if kind == "scored pair":
        return ((first * second).sum(1) - torch.tensor([0.3, -0.5])).square().mean()
    cosines = 20 * first @ second.T
    return -(cosines.diag() - cosines.exp().sum(1).log()).mean()


@pytest.mark.parametrize("kind", ["text", "pair", "scored pair"])
def test_gradients_equal_plain_torch(kind: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """In the maximal network; `test_glue_training` compares sliced ones. Lengths of embeddings do not count."""
    source = tiny_bert.embedder(tiny_bert.body("mean", normalize=False))
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def live() -> Any:
        base = AutoModel.from_pretrained(source.base, dtype=torch.float64, add_pooling_layer=False, **still)
        return PeftModel.from_pretrained(base, source.adapter, is_trainable=True, autocast_adapter_dtype=False).double()

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)
    network = SuperNetwork(live(), source.opened().elasticity, task_of(kind))
    teacher = AutoModel.from_pretrained(source.base, dtype=torch.float64).eval() if kind == "text" else None
    schedule = SimpleNamespace(subnetwork=lambda _step: tuple(MAXIMAL))
    trainer = ElasticTrainer(network, schedule, teacher=teacher, args=arguments)
    labels = torch.tensor([0.3, 0.3, -0.5, -0.5])
    actual = trainer.training_step(network.model, {**batch(), "labels": labels}, torch.tensor(4)).item()
    reference = live().train()
    with torch.no_grad():
        target = embedded(teacher, batch()) if teacher else None
    loss = loss_of(kind, embedded(reference, batch()), target)
    loss.backward()
    assert actual == pytest.approx(loss.item(), rel=1e-5) and actual > 1e-3
    gradients = {name: p.grad for name, p in network.model.named_parameters() if p.requires_grad}
    assert len(gradients) == 4 * LAYERS
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            assert (gradients[name] - parameter.grad).abs().max() < 1e-5 * max(1, parameter.grad.abs().max()), name


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
    source, data = tiny_bert.embedder(tiny_bert.body(mode)), texts(tmp_path)
    inputs = open_recovery(str(source.adapter), data, "minimal", str(source.base), source.space)
    inputs = with_eval_data(with_teacher(inputs, str(source.adapter), str(source.base)), data)
    record = train(inputs, tmp_path / "recovered", TrainOptions(**{**OPTIONS, "steps": 40, "precision": "fp32"}))
    assert record and record.eval_data and record.recovered and record.pooling == f"{mode}, normalized"
    before, after = distance(source, source.adapter, MINIMAL, mode), distance(source, tmp_path / "recovered", MINIMAL, mode)
    assert record.eval_data.losses[0].loss == pytest.approx(before, rel=1e-3)
    assert record.eval_data.losses[-1].loss == pytest.approx(after, rel=1e-3)
    assert after < 0.5 * before and record.eval_data.also_trained == 12
    card = (tmp_path / "recovered/README.md").read_text()
    assert "from those of the frozen teacher" in card and "pipeline_tag: feature-extraction" in card


def test_an_adapter_with_its_own_pooling(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """As sentence-transformers saves it: the recovered adapter keeps the pooling, also where the base has another or none."""
    data, space = texts(tmp_path), tiny_bert.space()
    for name, base in (("none", tiny_bert.base(headless=True)), ("mean", tiny_bert.body()), ("cls", tiny_bert.body("cls"))):
        adapter, output = tmp_path / f"{name}-adapter", tmp_path / name
        shutil.copytree(tiny_bert.embedder().adapter, adapter)
        (adapter / "1_Pooling").mkdir()
        (adapter / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
        modules = [{"path": path, "type": kind} for path, kind in (("", "x.Transformer"), ("1_Pooling", "x.Pooling"))]
        normalize = {"path": "2_Normalize", "type": "x.Normalize"}
        (adapter / "modules.json").write_text(json.dumps([*modules, normalize]))
        if name != "cls":
            (adapter / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
            (adapter / "config_sentence_transformers.json").write_text('{"prompts": {"query": "is "}}')
        inputs = with_teacher(open_recovery(str(adapter), data, "minimal", str(base), space), str(adapter), str(base))
        assert train(inputs, output, TrainOptions(**{**OPTIONS, "steps": 1}))
        own = {"max_length": 32, "prompts": {"query": "is "}} if name != "cls" else {}
        assert open_source(str(output)).pooling == Pooling("cls", True, stated=True, **own)
        assert (output / "modules.json").exists() == (name != "cls")  # that of the base is the same


def test_a_sub_network_of_a_base(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """`train --from` a base puts a new adapter on one of its sub-networks; `export` and further trainings take it."""
    base, data, output = tiny_bert.body(), texts(tmp_path), tmp_path / "out"
    options = ("--steps", 40, "--batch-size", 4, "--lr", 0.01, "--precision", "fp32", "--json")
    arguments = ("--nncf-config", tiny_bert.space(), "--subnet", "minimal", "--teacher", base, "--data", data)
    ran = run_cli("train", "--from", base, *arguments, "--output", output, *options)
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert record["recovered"]["subnetwork"] == "minimal" and record["recovered"]["sha256"] == {}
    assert "It recovers the minimal sub-network of the base" in (output / "README.md").read_text()
    source = TinySource("bert", base, None, tiny_bert.space())
    assert distance(source, output, MINIMAL) < 0.5 * distance(source, None, MINIMAL)
    ran = run_cli("export", output, "--output", tmp_path / "ir", "--json")
    assert ran.code == 0 and json.loads(ran.out)["subnetwork"]["name"] == "minimal", ran.err
    ran = run_cli("train", "--from", output, "--teacher", base, "--data", data, "--output", tmp_path / "more", "--steps", 2)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("kind", ["pair", "triplet", "scored pair"])
def test_a_new_adapter(kind: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """An elastic super-adapter learns labelled records without a teacher; the first loss is that of the base."""
    data = pairs(tmp_path, kind)
    inputs = with_eval_data(open_inputs(str(tiny_bert.body()), data, tiny_bert.space()), data)
    record = train(inputs, tmp_path / "out", TrainOptions(**{**OPTIONS, "steps": 40, "precision": "fp32"}))
    assert record and record.eval_data and record.data[0].kind == kind and record.search_space
    assert record.eval_data.losses[-1].loss < 0.8 * record.eval_data.losses[0].loss
    texts = [text for words in WORDS for text in (words, f"{words} the", "bad bad")[: 3 if kind == "triplet" else 2]]
    inputs = dict(tokenizer()(texts, padding=True, return_tensors="pt"))
    source = TinySource("bert", tiny_bert.body(), None, tiny_bert.space())
    records = oracle_embeddings(oracle_hidden(source, MAXIMAL, inputs), inputs["attention_mask"]).unflatten(0, (len(WORDS), -1))
    first, others = records[:, 0], records[:, 1:].transpose(0, 1).flatten(0, 1)
    cosines = first @ others.T
    if kind == "scored pair":
        expected = (cosines.diag() - 0.3).square().mean()
    else:
        expected = (torch.logsumexp(20 * cosines, 1) - 20 * cosines[range(6), range(6)]).mean()
    assert record.eval_data.losses[0].loss == pytest.approx(float(expected), rel=1e-3)
    assert "pooling: mean, normalized" in (tmp_path / "out/README.md").read_text()


def test_refused(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    data, base = texts(tmp_path), tiny_bert.body()
    wide = tmp_path / "wide"
    AutoModel.from_config(AutoConfig.from_pretrained(base, hidden_size=32)).save_pretrained(wide)
    tokenizer().save_pretrained(wide)
    new, part = ("--model", base, "--no-elastic"), ("--from", base, "--nncf-config", tiny_bert.space())
    for arguments, fault in (
        ((*new, "--data", data), "texts without labels need --teacher MODEL"),
        (
            (*new, "--data", pairs(tmp_path, "pair"), "--data", pairs(tmp_path, "triplet")),
            "pairs and triplets cannot be learned together",
        ),
        ((*new, "--data", data, "--teacher", wide), "hidden_size 32, and the training's model has 64"),
        ((*new, "--data", data, "--teacher", tiny_bert.body("cls")), "pooling cls, and the training's model has mean"),
        (
            (*new, "--data", data, "--teacher", tiny_bert.base()),
            "is a sequence classifier and cannot teach a sentence embedding",
        ),
        ((*new, "--data", data, "--teacher", base, "--max-length", 65), "has a context of 64 tokens"),
        (("--from", base, "--data", data, "--teacher", base), "is a base model. Pass --nncf-config and --subnet"),
        ((*part, "--data", data, "--teacher", base), "is a base model. Pass --nncf-config and --subnet"),
        ((*new, "--data", pairs(tmp_path, "pair"), "--micro-batch-size", 1), "expected at least 2"),
        ((*new, "--data", data, "--prompt", "alpaca"), "--prompt has no effect"),
    ):
        ran = run_cli("train", *arguments, "--output", tmp_path / "out", "--steps", 1)
        assert ran.code in (1, 2) and fault in re.sub(r"\s+", " ", ran.err), ran.err
        assert not (tmp_path / "out").exists()
