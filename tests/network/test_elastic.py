"""Sub-networks activated in a live, unpatched PEFT model."""

from collections.abc import Callable

import pytest
import torch
from oracle import oracle_logits
from peft import PeftModel
from tiny_models import TinyModels, TinySource
from torch import nn
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.super_network import SuperNetwork


def live(source: TinySource, dtype: torch.dtype = torch.float64) -> PeftModel:
    """The super-network as a user loads it."""
    base = AutoModelForCausalLM.from_pretrained(source.base, dtype=dtype)
    return PeftModel.from_pretrained(base, source.adapter, autocast_adapter_dtype=False).to(dtype).eval()


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a live model, which may share keys and values by its cache."""
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_maximal_equals_plain_peft_exactly(any_source: TinySource, choose: Callable, ids: torch.Tensor) -> None:
    model = live(any_source, torch.float32)
    expected = logits_of(model, ids)
    network = SuperNetwork(model, any_source.opened().elasticity)
    assert torch.equal(logits_of(model, ids), expected)  # all is active at first
    network.activate(choose(any_source, "minimal"))
    assert not torch.equal(logits_of(model, ids), expected)
    network.activate(choose(any_source, "maximal"))
    assert torch.equal(logits_of(model, ids), expected)


def test_activated_equals_the_oracle(any_source: TinySource, choose: Callable, ids: torch.Tensor) -> None:
    model = live(any_source)
    network = SuperNetwork(model, any_source.opened().elasticity)
    for name in ("minimal", "unequal:0", "heuristic", "unequal:5", "maximal"):  # one after the other in the same model
        widths = choose(any_source, name)
        network.activate(widths)
        expected = oracle_logits(any_source.base, any_source.adapter, any_source.space, widths, ids)
        assert (logits_of(model, ids) - expected).abs().max() < 1e-5, name


def test_modules_parameters_and_keys_stay(llama: TinySource, choose: Callable) -> None:
    model = live(llama, torch.float32)
    keys, places = list(model.state_dict()), {name: p.data_ptr() for name, p in model.named_parameters()}
    values = {name: p.clone() for name, p in model.named_parameters()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    SuperNetwork(model, llama.opened().elasticity).activate(choose(llama, "minimal"))
    assert list(model.state_dict()) == keys
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert all(torch.equal(p, values[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"merged": True}])
def test_what_cannot_be_made_elastic_is_refused(options, tiny_models: TinyModels, llama: TinySource) -> None:
    merged = options.pop("merged", False) if options else False
    adapter = tiny_models.adapter("llama", **options)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama.base), adapter)
    if merged:
        model.merge_adapter()
    with pytest.raises(LonasEdgeError, match=r"model\.layers\.\d.*cannot be made elastic"):
        SuperNetwork(model, llama.opened().elasticity)
