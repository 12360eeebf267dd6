"""Models with a trimmed vocabulary: the logits of the whole model at the kept tokens, in every command that takes one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from tiny_bert import TinyBert
from tiny_models import TinyModels, TinySource
from tokenizers import AddedToken
from training_runs import OPTIONS, logits_of, write_data
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.network.vocabulary_record import VocabularyRecord
from lonas_edge.training.inputs import open_recovery, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

RECORD = "training.json"
QUESTION, ANSWER = "in the other", "the ion"
TEXT = f"Question: {QUESTION}\nAnswer: {ANSWER}"


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_data(tmp_path / "words.json", [{"instruction": QUESTION, "input": "", "output": ANSWER}])


@pytest.fixture
def trim(run_cli: Callable, tmp_path: Path) -> Callable[..., list[int]]:
    """Trim by the command line; return the kept ids."""
    texts = write_data(tmp_path / "texts.json", [{"text": TEXT}])

    def run(base: Path, output: Path, *options: object) -> list[int]:
        run_cli("trim", base, "--data", texts, *options, "--output", output).ok()
        return json.loads((output / "vocabulary.json").read_text())["kept"]

    return run


def loaded(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", ["llama", "llama-tied", "gemma3", "bloom-tied"])
def test_logits_are_those_of_the_kept_tokens(case: str, tiny_models: TinyModels, trim: Callable, tmp_path: Path) -> None:
    base = tiny_models.base(case)
    kept = trim(base, tmp_path / "out")
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(kept) < len(before) < 288
    ids = before(TEXT, return_tensors="pt")["input_ids"]
    new = after(TEXT, return_tensors="pt")["input_ids"]
    assert [kept[number] for number in new[0].tolist()] == ids[0].tolist()
    model = loaded(tmp_path / "out")
    assert model.config.vocab_size == len(kept)
    expected = logits_of(loaded(base), ids)[..., kept]
    assert (logits_of(model, new) - expected).abs().max() < 1e-4
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(loaded(base).config, name)
        assert getattr(model.config, name) == (None if old is None else kept.index(old))


def test_an_adapter_of_the_whole_model_fits(
    llama: TinySource, trained: Callable, trim: Callable, choose: Callable, run_cli: Callable, tmp_path: Path
) -> None:
    """A super-adapter of ours, whose record names the files of the whole base, on the trimmed one."""
    adapter = trained("llama", True)
    kept = trim(llama.base, tmp_path / "base")
    checkpoint = ("--subnet", "minimal", "--stage", "checkpoint", "--output", tmp_path / "out")
    run_cli("export", adapter, "--model", tmp_path / "base", *checkpoint).ok()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT, return_tensors="pt")["input_ids"]
    old = torch.tensor([[kept[number] for number in ids[0].tolist()]])
    expected = oracle_logits(llama.base, adapter, adapter / "nncf_config.json", choose(llama, "minimal"), old)[..., kept]
    assert (logits_of(load_checkpoint(tmp_path / "out"), ids) - expected).abs().max() < 1e-4
    assert VocabularyRecord.read(tmp_path / "out/vocabulary.json").kept == tuple(kept)


def test_a_teacher_with_the_whole_vocabulary(
    llama: TinySource, trained: Callable, trim: Callable, choose: Callable, words: Path, tmp_path: Path
) -> None:
    """It reads the same tokens; its probabilities are those of the kept ones, renormalized."""
    start = trained("llama", True)
    kept = trim(llama.base, tmp_path / "base")
    inputs = open_recovery(str(start), words, "minimal", model=str(tmp_path / "base"))
    inputs = with_teacher(inputs, str(start))
    options = TrainOptions(**{**OPTIONS, "template": "question", "batch_size": 1, "steps": 1, "lr": 1e-9})
    train(inputs, tmp_path / "out", options)
    loss = json.loads((tmp_path / "out" / RECORD).read_text())["losses"][0]["loss"]

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    new = [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    asked = len(tokenizer(TEXT.removesuffix(f" {ANSWER}"))["input_ids"])
    ids = torch.tensor([[kept[number] for number in new]])
    space = start / "nncf_config.json"
    teacher, student = (
        oracle_logits(llama.base, start, space, choose(llama, name), ids)[0, asked - 1 : -1][:, kept].log_softmax(-1)
        for name in ("maximal", "minimal")
    )
    expected = (teacher.exp() * (teacher - student)).sum(-1).mean().item()
    assert expected > 1e-3
    assert loss == pytest.approx(expected, rel=1e-3)


def test_an_adapter_is_not_trimmed(llama: TinySource, run_cli: Callable, words: Path, tmp_path: Path) -> None:
    ran = run_cli("trim", llama.adapter, "--data", words, "--output", tmp_path / "out")
    assert ran.code == 1 and f"{llama.adapter}: is an adapter. Trim its base" in " ".join(ran.err.split())
    assert not (tmp_path / "out").exists()


def test_special_tokens_of_the_generation(llama: TinySource, trim: Callable, tmp_path: Path) -> None:
    """All ids of `generation_config.json` are the new ones, also in a list."""
    base = Path(shutil.copytree(llama.base, tmp_path / "whole"))
    found = {"eos_token_id": [0, 264], "bos_token_id": 1, "top_k": 1}
    (base / "generation_config.json").write_text(json.dumps(found))
    kept = trim(base, tmp_path / "out")
    content = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert content == {"eos_token_id": [kept.index(0), kept.index(264)], "bos_token_id": kept.index(1), "top_k": 1}


def test_reserved_tokens_that_the_tokenizer_uses(llama: TinySource, trim: Callable, tmp_path: Path) -> None:
    """As padding, as a further special token, in a chat template: kept although no data have them. Others are dropped."""
    base = Path(shutil.copytree(llama.base, tmp_path / "whole"))
    tokenizer, names = AutoTokenizer.from_pretrained(base), [f"<|reserved_{index}|>" for index in range(5)]
    tokenizer.add_tokens([AddedToken(name, special=True) for name in names])
    assert [tokenizer.get_vocab()[name] for name in names] == [266, 267, 268, 269, 270]
    tokenizer.save_pretrained(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config |= {"pad_token": names[0], "extra_special_tokens": [names[1]]}
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    (base / "chat_template.jinja").write_text("{{ '" + names[2] + "' }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tools.jinja").write_text("{{ '" + names[3] + "' }}")
    kept = trim(base, tmp_path / "out")
    assert {266, 267, 268, 269} < {*kept} and 270 not in kept
    small = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert kept[small.pad_token_id] == 266
    assert small.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert [*small.chat_template] == ["default", "tools"]


def test_a_trimmed_classifier(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """WordPiece, on GLUE's data: their words stay, others become pieces; the logits are those of the whole model."""
    data = tmp_path / "SST-2/train.tsv"
    data.parent.mkdir()
    data.write_text("sentence\tlabel\nthe good film\t1\nnot good\t0\n")
    base = tiny_bert.base()
    run_cli("trim", base, "--data", data, "--output", tmp_path / "out").ok()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {"the", "good", "film", "not", "##z"} < tokenizer.get_vocab().keys()
    assert not {"bad", "same"} & tokenizer.get_vocab().keys()
    whole, small = (AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (base, tmp_path / "out"))
    before = AutoTokenizer.from_pretrained(base)("not the good film", return_tensors="pt")
    after = tokenizer("not the good film", return_tensors="pt")
    with torch.no_grad():
        assert (whole(**before).logits - small(**after).logits).abs().max() < 1e-5
    assert small.config.vocab_size == len(tokenizer) < 320
