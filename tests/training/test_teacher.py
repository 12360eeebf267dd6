"""A frozen teacher: its logits, refused teachers, and a training with one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from peft import PeftModel
from tiny_models import TinyModels, TinySource, random_model, tokenizer
from training_runs import EIGHT, OPTIONS, RECORD, SPACE, Tokens, cross_entropy, divergence, logits_of, plain_base, write_data
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source
from lonas_edge.training import defaults
from lonas_edge.training.defaults import default_lr
from lonas_edge.training.inputs import open_recovery, open_teacher, with_eval_data, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train


def answers(reference: Path, base: TinySource, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a teacher."""
    opened = open_source(str(base.base))
    return logits_of(open_teacher(str(reference), opened.base, opened.architecture).load(torch.float32), ids)


def test_an_adapter_is_its_merged_model(llama: TinySource, trained: Callable, ids: torch.Tensor) -> None:
    """A plain adapter, and a super-adapter with sorted channels."""
    for folder in (llama.adapter, trained("llama", True)):
        expected = logits_of(PeftModel.from_pretrained(plain_base(llama), folder).eval(), ids)
        assert (answers(folder, llama, ids) - expected).abs().max() < 1e-4


def test_a_base_model(llama: TinySource, tiny_models: TinyModels, ids: torch.Tensor) -> None:
    """A model of another family with the same tokens."""
    other = tiny_models.base("qwen3")
    expected = logits_of(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).eval(), ids)
    assert (answers(other, llama, ids) - expected).abs().max() < 1e-4


# refused before weights are loaded


def test_other_tokens(llama: TinySource, tmp_path: Path) -> None:
    """All differences are listed."""
    opened = open_source(str(llama.base))
    model = random_model("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "large")
    by = tokenizer()
    by.add_tokens(["<mine>"])
    by.save_pretrained(tmp_path / "large")
    with pytest.raises(LonasEdgeError) as raised:
        open_teacher(str(tmp_path / "large"), opened.base, opened.architecture)
    assert f"{tmp_path / 'large'}: cannot teach {llama.base}" in str(raised.value)
    assert f"its vocabulary has 300 entries, and that of {llama.base} has 288" in str(raised.value)
    assert f"token {by.convert_tokens_to_ids('<mine>')}: '<mine>' and None" in str(raised.value)


def test_another_tokenizer_of_the_same_tokens(llama: TinySource, tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    opened = open_source(str(llama.base))
    with pytest.raises(LonasEdgeError, match=r"cannot teach[\s\S]*'The sun is the star at the center of the'…: tokenized diff"):
        open_teacher(str(tmp_path), opened.base, opened.architecture)


# training


def test_the_teacher_is_learned_at_the_tokens_of_answers(
    llama: TinySource, trained: Callable, tmp_path: Path, choose: Callable
) -> None:
    """The loss is KL(teacher ‖ sub-network), the held-out loss the cross-entropy of the references."""
    data, start = write_data(tmp_path / "data.json", EIGHT), trained("llama", True)
    inputs = with_eval_data(with_teacher(open_recovery(str(start), data, "minimal"), str(llama.adapter)), data)
    options = {**OPTIONS, "template": None, "batch_size": len(EIGHT), "steps": 1, "lr": 1e-9}
    train(inputs, tmp_path / "out", TrainOptions(**options))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["teacher"]["name"] == llama.adapter.name
    assert sorted(record["teacher"]["sha256"]) == ["adapter_config.json", "adapter_model.safetensors"]  # the base is recorded
    reference = PeftModel.from_pretrained(plain_base(llama), llama.adapter).eval()

    def student(ids: torch.Tensor) -> torch.Tensor:
        return oracle_logits(llama.base, start, start / SPACE, choose(llama, "minimal"), ids)

    def teacher(ids: torch.Tensor) -> torch.Tensor:
        return logits_of(reference, ids)

    tokens = [Tokens.of(llama, example) for example in EIGHT]
    assert record["losses"][0]["loss"] == pytest.approx(divergence(tokens, teacher, student), rel=1e-4)
    assert record["eval_data"]["losses"][0]["loss"] == pytest.approx(cross_entropy(tokens, student), rel=1e-4)


def test_a_trained_adapter_has_a_lower_learning_rate_with_a_teacher(
    llama: TinySource, trained: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, start = write_data(tmp_path / "data.json", EIGHT), trained("llama", True)
    alone = open_recovery(str(start), data, "minimal")
    new = with_teacher(open_recovery(str(llama.base), data, "minimal", nncf_config=start / SPACE), str(llama.base))
    assert [default_lr(each) for each in (alone, with_teacher(alone, str(start)), new)] == [1e-3, 3e-4, 1e-3]
    monkeypatch.setattr(defaults, "_MEDIUM", 1)
    assert default_lr(with_teacher(alone, str(start))) == 1e-4
