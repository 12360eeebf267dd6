"""Second moments of what layers are given, against the definition computed prompt by prompt."""

import pytest
import torch
from tiny_models import mlp_consumers, random_model

from lonas_edge.network.calibration import second_moments


def inputs_of(model: torch.nn.Module, name: str, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Every input of a layer, [tokens, in], one unpadded prompt at a time."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][0]))
    with torch.no_grad():
        for prompt in prompts:
            model(input_ids=prompt[None], use_cache=False)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("case", ["llama", "bloom"])
def test_moments(case: str, ids: torch.Tensor) -> None:
    model = random_model(case).double()
    for module in model.modules():  # moments are without dropout
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.5
    model.train()
    prompts = [ids[0], ids[1, :5], ids[1, 2:9]]
    first = torch.full((2, 12), 3)
    first[0], first[1, :5] = ids[0], ids[1, :5]
    batches = [
        {"input_ids": first, "attention_mask": torch.tensor([[1] * 12, [1] * 5 + [0] * 7])},
        {"input_ids": ids[1:, 2:9], "attention_mask": torch.ones(1, 7, dtype=torch.int64)},
    ]
    names = mlp_consumers(case)[:2]
    squares = second_moments(model, names, iter(batches))
    assert model.training
    model.eval()
    for name in names:
        x = inputs_of(model, name, prompts)
        assert squares[name].tokens == 24
        torch.testing.assert_close(squares[name].squares, x.square().sum(0))
    assert set(squares) == set(names)


def test_hooks_are_removed_after_an_error() -> None:
    model = random_model("llama").train()
    name = mlp_consumers("llama")[0]
    with pytest.raises(KeyError):
        second_moments(model, [name], [{}])
    assert not model.get_submodule(name)._forward_pre_hooks
    assert second_moments(model, [name], []) == {}
    assert model.training
