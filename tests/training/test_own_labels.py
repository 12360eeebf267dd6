"""Labels of the user's own data: a new head on a decoder or an encoder, `eval --data`, pairs on a decoder, refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from scipy.stats import spearmanr
from tiny_bert import TinyBert
from tiny_models import TinyModels
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge.data.classes import own_classes
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from lonas_edge.network.source import open_source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.training.inputs import open_inputs

RUN = ("--steps", 40, "--batch-size", 8, "--rank", 8, "--lr", 0.01, "--dtype", "fp32", "--no-elastic")
WORDS = {"Praise": "good film", "blame": "bad film", "nothing": "the same"}


def write(path: Path, count: int = 24, number: bool = False, **more: Any) -> Path:
    """Texts whose first words decide their label, a name or the index of it; `more` are fields of each record."""
    rows = []
    for index in range(count):
        position = index % 3
        label, words = sorted(WORDS.items())[position]
        rows.append({"text": f"{words} {'not ' * (index % 5)}is", "label": position if number else label, **more})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_classes_are_learned(
    model: str, tiny_models: TinyModels, tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path
) -> None:
    """In alphabetical order. Stock transformers and `eval --data` agree on the answers of the trained classifier."""
    data = write(tmp_path / "data.jsonl")
    base = tiny_models.base("llama") if model == "llama" else tiny_bert.base(headless=True)
    ran = run_cli("train", "--model", base, "--data", data, "--eval-data", data, *RUN, "--output", tmp_path / "lora").ok()
    record = TrainingRecord.read(tmp_path / "lora/training.json")
    assert (record.task, record.classes, record.data[0].kind) == (None, ("Praise", "blame", "nothing"), "labels")
    losses = record.eval_data.losses if record.eval_data else ()
    assert losses[-1].loss < 0.5 * losses[0].loss and losses[0].loss < 3
    opened = open_source(str(tmp_path / "lora"), str(base))
    assert opened.architecture.family.kind is CLASSIFICATION

    names = dict(enumerate(record.classes))
    stock = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, tmp_path / "lora").eval()
    rows, tokenizer = list(map(json.loads, data.read_text().splitlines())), AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        answers = [names[int(stock(**tokenizer(row["text"], return_tensors="pt")).logits.argmax())] for row in rows]
    right = [answer == row["label"] for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) > 2 * len(rows) / 3
    exported = ("--model", base, "--weight-format", "fp32", "--output", tmp_path / "ir")
    ran = run_cli("export", tmp_path / "lora", *exported).ok()
    assert list(json.loads((tmp_path / "ir/config.json").read_text())["id2label"].values()) == list(names.values())
    ran = run_cli("eval", tmp_path / "ir", "--data", data, "--json").ok()
    [task] = json.loads(ran.out)["targets"][0]["tasks"]
    assert (task["questions"], task["metric"]) == (24, "acc")
    assert task["accuracy"] == pytest.approx(100 * sum(right) / 24)


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        ([{"text": "a", "label": "Yes"}, {"text": "b", "label": "yes"}, {"text": "c", "label": "no"}], ("Yes", "no")),
        ([{"text": "a", "label": "10"}, {"text": "b", "label": "2"}, {"text": "c", "label": 1.0}], tuple(map(str, range(11)))),
        (
            [{"sentence1": "a", "sentence2": "b", "label": "same"}, {"query": "a", "passage": "c", "label": "other"}],
            ("other", "same"),
        ),
        ([{"sentence1": "a", "sentence2": "b", "label": "0.5"}], None),  # a score, as CSV has it
        ([{"instruction": "a", "output": "b", "text": "c", "label": "math"}], None),  # of a language model
        ([{"messages": [], "text": "c", "label": "math"}], None),
        ([{"text": "a"}, {"text": "b", "label": "x"}], None),
        ([{"text": "a", "label": ""}], None),
    ],
)
def test_classes_of_data(rows: list[dict[str, Any]], classes: tuple[str, ...] | None, tmp_path: Path) -> None:
    found = own_classes([lines(tmp_path / "data.jsonl", *rows)])
    assert (found and found.classes) == classes


def test_classes_of_several_files(tmp_path: Path) -> None:
    """One order for all of them; a record without a class is reported, not read as a text."""
    first = lines(tmp_path / "first.jsonl", {"text": "a", "label": "z"}, {"text": "a", "label": None})
    second = tmp_path / "second.csv"
    second.write_text("text,label\nb,m\n")
    found = own_classes([first, second])
    assert found and found.classes == ("m", "z") and [each.label for each in found.read(second)] == [0]
    with pytest.raises(LonasEdgeError, match="line 2: label None: expected a class: m, z"):
        found.read(first)
    with pytest.raises(LonasEdgeError, match="2 labels up to 20240101; expected numbers of classes from 0 on"):
        own_classes([lines(tmp_path / "ids.jsonl", {"text": "a", "label": 20240101}, {"text": "b", "label": 7})])


@pytest.mark.parametrize("label", [True, -1, ["a"]])
def test_labels_that_are_no_classes(label: Any, tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", {"text": "a", "label": label}, {"text": "b", "label": "x"})
    with pytest.raises(LonasEdgeError, match=re.escape(f"{data}: line 1: the label {label!r} is no class")):
        own_classes([data])


def test_families_without_classifiers_learn_the_texts(tiny_models: TinyModels, tmp_path: Path) -> None:
    inputs = open_inputs(str(tiny_models.base("phi3")), write(tmp_path / "data.jsonl"))
    assert inputs.data.kind is CAUSAL_LM


def test_a_teacher_replaces_labels(tiny_models: TinyModels, tmp_path: Path) -> None:
    inputs = open_inputs(str(tiny_models.base("llama")), write(tmp_path / "data.jsonl"), labels=False)
    assert inputs.data.kind is CAUSAL_LM


def test_questions_with_answers_make_no_embedding_model(tiny_models: TinyModels, tmp_path: Path) -> None:
    """They are refused, as any records that a language model cannot learn."""
    data = lines(tmp_path / "data.jsonl", {"question": "1 + 1", "answer": "2"})
    with pytest.raises(LonasEdgeError, match=r"data\.jsonl"):
        open_inputs(str(tiny_models.base("llama")), data)


def test_numbers_are_classes(tiny_models: TinyModels, tmp_path: Path) -> None:
    """Also those that do not occur, up to the largest."""
    data = write(tmp_path / "data.jsonl", number=True)
    data.write_text(data.read_text().replace('"label": 1}', '"label": 4}'))
    inputs = open_inputs(str(tiny_models.base("llama")), data)
    assert inputs.data.options.glue and inputs.data.options.glue.classes == ("0", "1", "2", "3", "4")
    assert {example.label for example in inputs.data.examples} == {0, 4, 2}


def test_a_head_of_its_own_ignores_labels(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """As before, a finished classifier learns from a teacher."""
    inputs = open_inputs(str(tiny_bert.base()), write(tmp_path / "data.jsonl"))
    assert inputs.data.options.glue is None and {example.label for example in inputs.data.examples} == {None}


def test_pairs_make_an_embedding_model(tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    """Of a decoder; `eval --data` computes Spearman's correlation of the cosines with the scores."""
    base, data = tiny_models.base("llama"), tmp_path / "data.jsonl"
    texts = [
        f"{word} {'not ' * (index % 3)}film" for index, word in enumerate(("good", "bad", "same", "the", "is", "film") * 3)
    ]
    rows = [{"sentence1": text, "sentence2": texts[-index], "score": index / 18} for index, text in enumerate(texts)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = run_cli("train", "--model", base, "--data", data, *RUN, "--output", tmp_path / "lora")
    assert ran.code == 0 and "pooling is unknown" in ran.err, ran.err
    assert open_source(str(tmp_path / "lora"), str(base)).architecture.family.kind is EMBEDDING
    exported = ("--model", base, "--weight-format", "fp32", "--output", tmp_path / "ir")
    ran = run_cli("export", tmp_path / "lora", *exported).ok()
    ran = run_cli("eval", tmp_path / "ir", "--data", data, "--json", "--output", tmp_path / "eval").ok()
    [task] = json.loads(ran.out)["targets"][0]["tasks"]
    [log] = (tmp_path / "eval/samples").rglob("samples_data.jsonl")
    logged = [json.loads(line)["answer"] for line in log.read_text().splitlines()]
    stock = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=torch.float32), tmp_path / "lora").eval()
    tokenizer = AutoTokenizer.from_pretrained(base)

    def embedding(text: str) -> torch.Tensor:  # the mean of all tokens
        with torch.inference_mode():
            return stock(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    pairs = [(embedding(row["sentence1"]), embedding(row["sentence2"])) for row in rows]
    cosines = [torch.nn.functional.cosine_similarity(*pair, dim=0).item() for pair in pairs]
    assert logged == pytest.approx(cosines, abs=1e-3)
    assert task["accuracy"] == pytest.approx(100 * spearmanr(logged, [row["score"] for row in rows]).statistic, abs=1e-6)


def test_refused(tiny_models: TinyModels, run_cli: Callable, tmp_path: Path) -> None:
    """One class; a class that the training data lack; no pad token, or two. The tokenizer's is taken."""
    base, data = tiny_models.base("llama"), write(tmp_path / "data.jsonl")

    def message(*options: Any, model: Path = base) -> str:
        ran = run_cli("train", "--model", model, *options, *RUN, "--output", tmp_path / "out")
        assert ran.code == 1 and not (tmp_path / "out").exists()
        return " ".join(ran.err.split())

    single = tmp_path / "single.jsonl"
    single.write_text('{"text": "good", "label": "a"}\n' * 4)
    assert "all examples have the label 'a'; expected at least two classes" in message("--data", single)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "good", "label": "blame"}\n{"text": "good", "label": "hope"}\n')
    expected = f"{other}: not sentences: - line 2: label hope: expected a class: Praise, blame, nothing, or 0 to 2"
    assert expected in message("--data", data, "--eval-data", other)

    changed = tmp_path / "base"
    changed.mkdir()
    for path in base.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    assert "pads with token 1, but pad_token_id in config.json is 7" in message("--data", data, model=changed)
    (changed / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    assert open_inputs(str(changed), data).source.architecture.config.pad_token_id == 1  # the tokenizer's
    settings = json.loads((changed / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (changed / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "pad_token_id: missing, also in the tokenizer" in message("--data", data, model=changed)


def test_data_of_eval(tiny_models: TinyModels, run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Without labels, and with options that mean nothing."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good"}\n')
    base = tiny_bert.base()
    ran = run_cli("eval", base, "--data", data)
    assert ran.code == 1 and f"{data}: no labels; expected a class" in " ".join(ran.err.split()), ran.err
    ran = run_cli("eval", base, "--data", data, "--metric", "json")
    assert ran.code == 2 and "--data has its own" in " ".join(ran.err.split()), ran.err
