"""Held-out data: their loss, computed in plain PyTorch, too; how many were also trained on; refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import TinySource
from torch.nn import functional as F
from training_runs import EXAMPLES, OPTIONS, write_data
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.inputs import open_inputs, with_eval_data
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

TRAINED, HELD_OUT = EXAMPLES[:12], EXAMPLES[8:20]


@pytest.fixture
def run(llama: TinySource, tmp_path: Path) -> Callable[..., Any]:
    data, held_out = write_data(tmp_path / "data.json", TRAINED), write_data(tmp_path / "held_out.json", HELD_OUT)

    def train_it(output: Path, resume: bool = False, report: Callable[..., None] = lambda *_: None, **changes: Any) -> Any:
        inputs = with_eval_data(open_inputs(str(llama.base), data, llama.space), held_out)
        return train(inputs, output, TrainOptions(**{**OPTIONS, **changes}), resume, report=report)

    return train_it


def loss_of(base: Path, adapter: Path) -> float:
    """Mean cross-entropy of the answers' tokens and the end token, example by example."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    losses: list[float] = []
    for example in HELD_OUT:
        asked = tokenizer(f"Question: {example['instruction']}\nAnswer:")["input_ids"]
        ids = [
            *tokenizer(f"Question: {example['instruction']}\nAnswer: {example['output']}")["input_ids"],
            tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        losses += F.cross_entropy(logits[len(asked) - 1 : -1], torch.tensor(ids[len(asked) :]), reduction="none").tolist()
    return sum(losses) / len(losses)


def test_the_loss_of_held_out_examples(run: Callable[..., Any], llama: TinySource, tmp_path: Path) -> None:
    logged: dict[int, float] = {}
    record = run(
        tmp_path / "out", report=lambda step, _, log: logged.update({step: log["eval_loss"]} if "eval_loss" in log else {})
    )
    held_out = record.eval_data
    assert [entry.step for entry in held_out.losses] == [0, 1, 2, 3, 4, 5, 6, 7, 8] == list(logged)
    assert held_out.losses[-1].loss == pytest.approx(loss_of(llama.base, tmp_path / "out"), rel=1e-4)
    assert held_out.losses[-1].loss < held_out.losses[0].loss
    assert (held_out.name, held_out.examples, held_out.also_trained) == ("held_out.json", 12, 4)
    assert record.tokens > 8 * 4 * 10


def test_evaluating_changes_no_weight(run: Callable[..., Any], llama: TinySource, tmp_path: Path) -> None:
    run(tmp_path / "evaluated")
    inputs = open_inputs(str(llama.base), tmp_path / "data.json", llama.space)
    train(inputs, tmp_path / "plain", TrainOptions(**OPTIONS))
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("evaluated", "plain"))
    assert first == second


def test_eval_data_of_another_kind(llama: TinySource, tmp_path: Path) -> None:
    inputs = open_inputs(str(llama.base), write_data(tmp_path / "data.json"), llama.space)
    table = tmp_path / "RTE" / "dev.tsv"
    table.parent.mkdir()
    table.write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    with pytest.raises(LonasEdgeError, match=r"dev\.tsv: cannot be read:\n  - line 1: not JSON"):
        with_eval_data(inputs, table)
