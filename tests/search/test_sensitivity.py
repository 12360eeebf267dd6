"""The sensitivity table against complete evaluations of the same networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.network.super_network import SuperNetwork, load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search.dimensions import SKIP, find_dimensions, measure_sensitivity, thin


def scored(source: TinySource, data: Path) -> tuple[SuperNetwork, list]:
    """A network, and two batches of different lengths."""
    opened = source.opened()
    tokenizer = load_tokenizer(source.base)
    batches = opened.open_data(data, "alpaca").batches(tokenizer, 6, 0)
    return load_super_network(opened), [*batches, *opened.open_data(data, "question").batches(tokenizer, 3, 1)]


@pytest.mark.parametrize(("case", "around"), [("llama", "maximal"), ("gemma3", "unequal:3"), ("bloom", "unequal:3")])
def test_equal_to_complete_evaluations(case: str, around: str, tiny_models: TinyModels, data: Path, choose: Callable) -> None:
    """In a narrower network a wider group can lower the KL."""
    source = tiny_models.source(case)
    network, batches = scored(source, data)
    groups, center = source.groups(), list(choose(source, around))
    everything = range(len(groups))  # ranks, too
    changed = None if around == "maximal" else center
    table = measure_sensitivity(network, batches, network.reference(batches), everything, around=changed)
    own = network.kl([center], batches)[0]
    for group, values in enumerate(groups):
        alone = [[*center[:group], value, *center[group + 1 :]] for value in values]
        expected = [kl - own for kl in network.kl(alone, batches)]
        assert table[group] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert table[group][values.index(center[group])] == 0
    assert (min(min(row) for row in table) < -1e-4) == (around != "maximal")
    assert not any("forward" in vars(layer) for layer in network.base.get_submodule(network.family.layers))


def test_only_the_layers_from_the_changed_one_run(llama: TinySource, data: Path) -> None:
    """Ranks are not measured."""
    network, batches = scored(llama, data)
    reference = network.reference(batches)
    ran: list[int] = []
    for index, layer in enumerate(network.base.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    searched, shares = find_dimensions(llama.opened()).searched, list[float]()
    table = measure_sensitivity(network, batches, reference, searched, shares.append)
    # two narrower widths per layer, each from there to the end, and one step through each layer but the last
    expected = {layer: len(batches) * (2 * (layer + 1) + (layer < LAYERS - 1)) for layer in range(LAYERS)}
    assert {layer: ran.count(layer) for layer in range(LAYERS)} == expected
    assert [bool(row) for row in table] == [index in searched for index in range(len(llama.groups()))]
    assert shares == [pytest.approx(3 / 6), pytest.approx(5 / 6), 1.0]


def test_a_thinned_batch_is_those_prompts_alone(llama: TinySource, data: Path, choose: Callable) -> None:
    """One prompt at a time, without padding, weighted by its tokens."""
    network, batches = scored(llama, data)
    widths, total, count = choose(llama, "minimal"), 0.0, 0
    for batch in batches:
        for row in range(0, len(batch["input_ids"]), SKIP):
            length, kept = int(batch["attention_mask"][row].sum()), batch["labels"][row] != -100
            alone = {name: batch[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
            alone |= {"logits_to_keep": batch["logits_to_keep"][kept], "labels": batch["labels"][row : row + 1, kept]}
            total += network.kl([widths], [alone])[0] * int(kept.sum())
            count += int(kept.sum())
    assert network.kl([widths], [thin(batch) for batch in batches])[0] == pytest.approx(total / count, rel=1e-4)
    assert any(len(batch["input_ids"]) > SKIP for batch in batches)
