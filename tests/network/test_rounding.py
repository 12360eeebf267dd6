"""Costs of rounding: against the KL divergence of networks in which one matrix is rounded, computed in plain torch."""

import pytest
import torch
from tiny_models import TinyModels
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from lonas_edge.network.rounding import most_sensitive, rounding_costs
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """INT8 by rows, symmetric: the element farthest from zero is -128 scales."""
    extreme = weight.gather(1, weight.abs().argmax(1, keepdim=True))
    scale = extreme / -128
    return (weight / scale).round().clamp(-128, 127) * scale


def test_they_are_the_divergences(tiny_models: TinyModels) -> None:
    tiny = tiny_models.source("llama")
    source = open_source(str(tiny.base))
    network, model = load_super_network(source), AutoModelForCausalLM.from_pretrained(tiny.base)
    torch.manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (600, 6))
    lengths = torch.randint(3, 7, (600, 1))
    mask = (torch.arange(6) < lengths).long()
    labels = torch.where(mask.bool(), ids, -100)[:, 1:]
    batches = [
        {
            "input_ids": ids[i : i + 50],
            "attention_mask": mask[i : i + 50],
            "labels": labels[i : i + 50],
            "logits_to_keep": torch.arange(5),
        }
        for i in range(0, 600, 50)
    ]
    costs = rounding_costs(network, list(source.select("maximal").widths), batches, "int8_sym")

    def log_p() -> torch.Tensor:
        with torch.inference_mode():
            return F.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1].double(), -1)[labels != -100]

    before, weights = (
        log_p(),
        {name: module for name, module in model.named_modules() if ".layers." in name and isinstance(module, torch.nn.Linear)},
    )
    assert costs.keys() == weights.keys()
    for name, module in weights.items():
        kept = module.weight.data
        module.weight.data = rounded(kept)
        exact = (before.exp() * (before - log_p())).sum(-1).mean().item()
        module.weight.data = kept
        assert costs[name] == pytest.approx(exact, rel=0.4), name  # 600 draws: a standard error of 6 %, and the second order
    assert not any(module._forward_hooks for module in network.model.modules()), "the network is as before"
    assert all(parameter.grad is None for parameter in network.model.parameters())


def test_the_largest_cost_per_weight_is_chosen() -> None:
    costs, sizes = {"a": 6.0, "b": 5.0, "c": 1.0, "d": 0.1}, {"a": 60, "b": 10, "c": 10, "d": 20}
    assert most_sensitive(costs, sizes, 0.1) == ("b",)
    assert most_sensitive(costs, sizes, 0.3) == ("b", "c")  # a does not fit
    assert most_sensitive(costs, sizes, 0.5) == ("b", "c", "d")
    assert most_sensitive(costs, sizes, 0.7) == ("a", "b")
    assert most_sensitive(costs, sizes, 1) == ("a", "b", "c", "d")
    assert most_sensitive(costs, sizes, 0) == ()
    assert most_sensitive(costs, sizes, 0.3, [("b", "d", "absent")]) == ("b", "d")  # (5 + 0.1) / 30
    assert most_sensitive(costs, sizes, 0.2, [("b", "d")]) == ("c",)
