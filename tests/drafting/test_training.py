"""The training of a draft: its loss, its agreement, what it learns, and that a kill loses nothing."""

import random
from pathlib import Path

import pytest
import torch
from tiny_models import tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lonas_edge.drafting import training
from lonas_edge.drafting.answers import Answered
from lonas_edge.drafting.training import Best, agreement, sampled_loss, train_draft
from lonas_edge.progress import Progress, silent

VOCABULARY = 288
END = 1


def network(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def answered(texts: list[tuple[str, str]]) -> list[Answered]:
    tokenize = tokenizer()
    pairs = [(tokenize(prompt)["input_ids"], tokenize(answer)["input_ids"]) for prompt, answer in texts]
    return [Answered(tuple(prompt), (*answer, END), False) for prompt, answer in pairs]


def repeated(count: int) -> list[Answered]:
    """Prompts of a random word, and answers that are always the same."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(count)]
    return answered([(f"word {word}:", "it is a fixed answer") for word in words])


def test_the_sampled_loss_is_that_of_the_vocabulary() -> None:
    """Where all other tokens have the same logit, any of them stands for all exactly."""
    hidden, table = torch.randn(5, 8), torch.randn(10_000, 8)
    known, targets = torch.tensor([3, 7, 9_000, 42]), torch.tensor([7, 3, 5, 9_000, 7])
    others = torch.ones(10_000, dtype=torch.bool)
    others[[3, 5, 7, 42, 9_000]] = False
    table[others] = torch.randn(8)
    expected = F.cross_entropy(hidden @ table.T, targets)
    actual = sampled_loss(hidden, targets, table, known, torch.Generator().manual_seed(1))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_agreement_counts_the_tokens_of_answers() -> None:
    draft, held_out = network().eval(), repeated(11)
    right = total = 0
    for each in held_out:
        ids = each.prompt + each.answer
        likely = draft(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        for index in range(len(each.prompt), len(ids)):
            right += likely[index - 1] == ids[index]
            total += 1
    assert agreement(draft, held_out) == pytest.approx(right / total)


def train(draft: LlamaForCausalLM, checkpoint: Path, progress: Progress = silent) -> Best:
    examples = repeated(48)
    return train_draft(draft, examples[8:], examples[:8], tokenizer(), 3, checkpoint, progress)


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS", 150)
    monkeypatch.setattr(training, "EVERY", 50)
    draft = network()
    before = agreement(draft, repeated(8))
    best = train(draft, tmp_path / "training.pt")
    assert before < 0.2 < 0.9 < best.agreement
    assert agreement(draft, repeated(48)[:8]) == best.agreement  # the network has the weights of the best


@pytest.mark.parametrize(
    ("agreements", "steps"),
    [([0.1, 0.3, 0.5, 0.4, 0.5, 0.2], 20), ([0.1, 0.994, 0.996], 20)],
    ids=["it no longer rises", "nearly all tokens agree"],
)
def test_the_agreement_ends_it(agreements: list[float], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EVERY", 10)
    monkeypatch.setattr(training, "_PATIENCE", 30)
    values = iter(agreements)
    monkeypatch.setattr(training, "agreement", lambda *_: next(values))
    best = train(network(), tmp_path / "training.pt")
    assert (best.steps, best.agreement) == (steps, max(agreements))
    assert next(values, None) is None
