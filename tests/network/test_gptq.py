"""GPTQ against its definition: after each column, the columns to the right take the best step for the error so far."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import TinyModels
from torch import nn

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS
from lonas_edge.network.gptq import _factor, _rounded, round_base
from lonas_edge.network.stored import LayerStorage, StoredWeights, merged, stored
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.elasticity import Widths

INT4 = FORMATS["int4_sym"]


def nearest(value: torch.Tensor, group: torch.Tensor, name: str) -> torch.Tensor:
    """Each row's value on the 4-bit grid of its row of a group, by the formula of the format."""
    if name == "int4_sym":
        index = group.abs().argmax(1, keepdim=True)
        scale = -group.gather(1, index)[:, 0] / 8
        return (value / scale).round().clamp(-8, 7) * scale.half()
    low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return ((value / scale + zero).round().clamp(0, 15) - zero) * scale.half()


def by_definition(weight: torch.Tensor, moments: torch.Tensor, group: int, name: str) -> torch.Tensor:
    """Optimal brain surgeon, one column after the other: least squares for the columns to the right of each."""
    weight, columns, grids = weight.double(), weight.shape[1], {}
    for column in range(columns):
        first = column // group * group
        if column == first:
            grids[first] = weight[:, first : first + group].clone()
        grid, now = grids[first], weight[:, column].clone()
        own = grid[:, column - first]
        extreme = (own == grid.amin(1)) | (own == grid.amax(1))  # they span the grid, so they stay
        error = now - nearest(torch.where(extreme, own, now), grid, name)
        weight[:, column] -= error
        if column + 1 < columns:
            own, right = moments[column + 1 :, column + 1 :], moments[column, column + 1 :]
            weight[:, column + 1 :] += error[:, None] * torch.linalg.solve(own, right)
    return weight


def damped(x: torch.Tensor) -> torch.Tensor:
    moments = x.double().T @ x.double()
    return moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments))


@pytest.mark.parametrize(("name", "group"), [("int4_sym", 32), ("int4_sym", 96), ("int4", 48)])
def test_a_matrix_is_rounded_as_defined(name: str, group: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(500, 96) @ torch.randn(96, 96), torch.randn(24, 96)
    how = LayerStorage(Widths.first(24, 96), FORMATS[name], group)
    ours = _rounded(weight, _factor("layer", x), how, group)
    torch.testing.assert_close(ours.double(), by_definition(weight, damped(x), group, name), atol=1e-3, rtol=1e-3)
    plain = stored(weight, how.weight_format, group)
    assert ((ours - weight) @ x.T).square().sum() < 0.7 * ((plain - weight) @ x.T).square().sum()


def test_unused_columns_and_few_tokens() -> None:
    """A channel that is always 0, and fewer tokens than columns: still on the grid, and finite."""
    torch.manual_seed(0)
    x, weight = torch.randn(10, 64), torch.randn(8, 64)
    x[:, 5] = 0
    ours = _rounded(weight, _factor("layer", x), LayerStorage(Widths.first(8, 64), INT4, 64), 64)
    assert ours.isfinite().all() and max(len(row.unique()) for row in ours) <= 16
    with pytest.raises(LonasEdgeError, match="layer: its inputs are not finite"):
        _factor("layer", torch.full((3, 4), torch.inf))


@pytest.mark.parametrize("case", ["llama", "bloom", "phi3", pytest.param("granite4-mamba", marks=pytest.mark.slow)])
def test_the_base_of_a_sub_network(case: str, tiny_models: TinyModels, choose: Callable, ids: torch.Tensor) -> None:
    """Merged weights lie on the grid; the last layer is rounded for inputs that have the errors of those before it."""
    tiny = tiny_models.source(case)
    source, widths = tiny.opened(), choose(tiny, "unequal:5")
    network, before = load_super_network(source), load_super_network(source)
    linears = [name for name in source.architecture.linears if ".layers." in name or ".h." in name]
    kept = linears[:2]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][0, -3:] = 0
    weights = StoredWeights(network, "int4_sym", None, kept)
    changed = round_base(network, widths, batch, weights)
    layers = weights.layers(widths)
    assert changed and set(changed) == {name for name, how in layers.items() if how.weight_format.bits == 4}
    for name, parameter in before.base.named_parameters():
        same = torch.equal(parameter, network.base.get_parameter(name))
        module = name.replace(".base_layer", "").removesuffix(".weight")
        assert same != (module in changed and "lora" not in name), name
    for name in changed:
        how, live, start = layers[name], network.base.get_submodule(name), before.base.get_submodule(name)
        now, then = (getattr(layer, "base_layer", layer).weight for layer in (live, start))
        weight = merged(live, how.widths)
        group = how.group or weight.shape[1]
        assert (stored(weight, how.weight_format, group) - weight).abs().max() < 2e-5
        outside = torch.ones(then.shape, dtype=torch.bool)
        rows, columns = (
            [i for first, last in part for i in range(first, last)] for part in (how.widths.rows, how.widths.columns)
        )
        outside[torch.tensor(rows)[:, None], torch.tensor(columns)] = False
        assert torch.equal(now[outside], then[outside]), "inactive parts stay"
    last = next(name for name in reversed(changed) if name.endswith(("q_proj", "qkv_proj", "query_key_value", "in_proj")))
    seen: list[torch.Tensor] = []
    live: nn.Module = network.base.get_submodule(last)
    live.register_forward_pre_hook(lambda _module, given: seen.append(given[0][batch["attention_mask"].bool()]))
    with torch.no_grad(), weights.active(widths):
        network.family.hidden(network.base, **batch)
    how, start = layers[last], before.base.get_submodule(last)
    expected = by_definition(merged(start, how.widths).detach(), damped(seen[0]), how.group or 10**6, "int4_sym")
    difference = (merged(live, how.widths) - expected).abs()
    assert (difference > 1e-3).double().mean() < 0.02, "ties of rounding aside"
