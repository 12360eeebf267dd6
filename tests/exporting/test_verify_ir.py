"""Tolerance for an IR: fixed, and larger only if fp32 arithmetic alone changes the logits as much."""

from pathlib import Path

import pytest
import torch
from tiny_models import TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.parity import Parity
from lonas_edge.network.materialize import MaterializedModel

ADAPTER = Path("models/adapter")
REFERENCE = torch.full((1, 1, 4), 10.0)


def parity(difference: float) -> Parity:
    return Parity(difference, 0.0, 1.0, 1)


def test_noise_is_not_computed_within_the_tolerance() -> None:
    verify.check_ir(ADAPTER, parity(9e-4), REFERENCE, lambda: pytest.fail("not needed"))


NAN = float("nan")


@pytest.mark.parametrize(("difference", "noise", "right"), [(2e-3, 5e-4, True), (2e-3, 1e-4, False), (NAN, 1.0, False)])
def test_a_sensitive_network_may_differ_by_arithmetic_noise(difference: float, noise: float, right: bool) -> None:
    if right:
        verify.check_ir(ADAPTER, parity(difference), REFERENCE, lambda: noise)
        return
    with pytest.raises(LonasEdgeError, match=r"^models/adapter: verification failed: the logits of the IR differ"):
        verify.check_ir(ADAPTER, parity(difference), REFERENCE, lambda: noise)


def test_the_noise_of_a_network(llama: TinySource, ids: torch.Tensor) -> None:
    source = llama.opened()
    model = MaterializedModel(source, source.select("minimal"))
    noise = verify.arithmetic_noise(model, {"input_ids": ids}, verify.materialized_logits(model, {"input_ids": ids}))
    assert 1e-8 < noise < 1e-4  # logits of order 1 in fp32, whose unit in the last place is 1.2e-7
