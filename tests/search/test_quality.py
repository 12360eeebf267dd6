"""Quality of networks: held-out prompts, weight formats."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from stored_model import stored_model
from tiny_models import TinyModels, TinySource

from lonas_edge.data import task
from lonas_edge.data.encoding import IGNORED
from lonas_edge.formats import FORMATS
from lonas_edge.ir.compress import compress_matrix
from lonas_edge.ir.schemes import Scheme
from lonas_edge.network.source import Source
from lonas_edge.network.stored import StoredWeights, round_trip
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.tokenizer import load_tokenizer


def test_batches_hold_every_prompt_once(llama: TinySource, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tokenizer = llama.opened(), load_tokenizer(llama.base)
    held = source.open_data(data, "question")
    monkeypatch.setattr(task, "BATCH_TOKENS", 10_000)
    [whole] = held.batches(tokenizer, 30, 0)
    monkeypatch.setattr(task, "BATCH_TOKENS", 120)
    small = held.batches(tokenizer, 30, 0)
    assert len(small) > 5 and max(batch["input_ids"].numel() for batch in small) <= 120
    rows = sorted(tuple(row[row != 1].tolist()) for batch in small for row in batch["input_ids"])
    assert rows == sorted(tuple(row[row != 1].tolist()) for row in whole["input_ids"])
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in small) == int((whole["labels"] != IGNORED).sum())


def ir_logits(source: Source, widths: Sequence[int], weight_format: str, batch: dict) -> torch.Tensor:
    """Logits at the scored positions, of the matrices that an export stores."""
    live = stored_model(source, widths, weight_format)
    with torch.inference_mode():
        logits = live(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, batch["logits_to_keep"]][batch["labels"] != IGNORED]


COMPRESSED = [("llama", "fp16"), ("llama-tied", "int8_sym"), ("neox", "int8"), ("phi3-tied", "int4"), ("gemma3", "int4_sym")]


@pytest.mark.parametrize(("case", "name"), [*COMPRESSED, pytest.param("bloom-tied", "int8", marks=pytest.mark.slow)])
def test_a_live_network_with_stored_weights_computes_as_its_ir(
    case: str, name: str, tiny_models: TinyModels, data: Path, choose: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "BATCH_TOKENS", 10_000)  # one batch
    tiny = tiny_models.source(case)
    source = tiny.opened()
    network = load_super_network(source)
    [batch] = source.open_data(data, "alpaca").batches(load_tokenizer(tiny.base), 8, 0)
    plain, learned = network.kl([choose(tiny, "unequal:3")], [batch]), batch["labels"] != IGNORED
    inputs = {inputs: batch[inputs] for inputs in ("input_ids", "attention_mask")}
    for which in ("maximal", "unequal:3", "minimal"):
        widths = choose(tiny, which)
        network.activate(widths)
        with torch.inference_mode(), StoredWeights(network, name).active(widths):
            log_p = network.model(**inputs).logits[:, batch["logits_to_keep"]][learned].log_softmax(-1)
        log_q = ir_logits(source, widths, name, batch).log_softmax(-1)
        assert (log_q.exp() * (log_q - log_p)).sum(-1).mean() < 1e-4, which  # a tie may be rounded the other way
    assert network.kl([choose(tiny, "unequal:3")], [batch]) == plain, "the super-network is unchanged"


@pytest.mark.parametrize(
    ("name", "group"), [("int8", None), ("int8_sym", None), ("int4", 64), ("int4_sym", 32), ("int4_sym", -1)]
)
def test_the_arithmetic_is_nncf_s(name: str, group: int | None) -> None:
    matrix = torch.randn(48, 192, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.001, 3, 48)[:, None]
    matrix[3], matrix[4], matrix[5] = matrix[3].abs(), -matrix[4].abs(), 0
    scheme = Scheme(FORMATS[name], group)
    expected = compress_matrix(matrix.numpy(), scheme)
    restored, ours = expected.restore(matrix.numpy())[0], round_trip(matrix, FORMATS[name], group).numpy()
    assert (restored != ours).mean() < 1e-3, "except ties"
