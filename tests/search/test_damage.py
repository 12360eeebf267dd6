"""The damage table against whole evaluations of the same networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.super_network import SuperNetwork, load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.network.walk import Walk
from lonas_edge.search.damage import DamageTable, evaluations, measure_damage
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.plan import SKIP
from lonas_edge.search.run import _thinned


def scored(source: TinySource, data: Path) -> tuple[SuperNetwork, list]:
    """A network, and two batches of different lengths."""
    opened = source.opened()
    tokenizer = load_tokenizer(source.base)
    batches = read_held_out(opened, data, 6, 0, "alpaca").batches(tokenizer)
    return load_super_network(opened), [*batches, *read_held_out(opened, data, 3, 1, "question").batches(tokenizer)]


@pytest.mark.parametrize("case", ["llama", "neox", "phi3", "gemma2", "gemma3", "bloom"])
def test_the_same_as_whole_evaluations(case: str, tiny_models: TinyModels, data: Path) -> None:
    source = tiny_models.source(case)
    network, batches = scored(source, data)
    groups = source.groups()
    everything = range(len(groups))  # ranks, too: the mechanism is the same
    table = measure_damage(network, batches, network.reference(batches), everything)
    maximal = [values[0] for values in groups]
    for group, values in enumerate(groups):
        alone = [[*maximal[:group], value, *maximal[group + 1 :]] for value in values]
        assert table.rows[group] == pytest.approx(network.kl(alone, batches), rel=1e-3, abs=1e-5)
        assert table.rows[group][-1] > 1e-4
    assert not any("forward" in vars(layer) for layer in network.base.get_submodule(network.family.layers))


@pytest.mark.parametrize("case", ["llama", "gemma3", "bloom"])
def test_around_another_network(case: str, tiny_models: TinyModels, data: Path, choose: Callable) -> None:
    """What each width of one group changes, all others as they are in that network; less where a group is given back."""
    source = tiny_models.source(case)
    network, batches = scored(source, data)
    groups, centre = source.groups(), choose(source, "unequal:3")
    reference = network.reference(batches)
    table = measure_damage(network, batches, reference, range(len(groups)), around=centre)
    own = network.kl([centre], batches)[0]
    for group, values in enumerate(groups):
        changed = [[*centre[:group], value, *centre[group + 1 :]] for value in values]
        expected = [kl - own for kl in network.kl(changed, batches)]
        assert table.rows[group] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert table.rows[group][values.index(centre[group])] == 0
    assert min(min(row) for row in table.rows) < -1e-4


@pytest.mark.parametrize("case", ["llama", "neox", "bloom"])
def test_layers_that_do_not_run_hand_on_what_they_are_given(case: str, tiny_models: TinyModels, data: Path) -> None:
    """What the last layer makes of the embedding, the others passed by; and the head is given it whole."""
    network, batches = scored(tiny_models.source(case), data)
    ran = Walk(network, batches)._run(0, range(LAYERS - 1, LAYERS))
    layers = network.base.get_submodule(network.family.layers)
    seen: list[torch.Tensor] = []
    handle = layers[0].register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    inputs = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        network.family.hidden(network.base, **inputs)
        handle.remove()
        first = layers[-1].register_forward_pre_hook(lambda _layer, given: (seen[0], *given[1:]))
        expected = network.family.hidden(network.base, **inputs)
        first.remove()
    assert torch.equal(ran, expected)


def test_layers_before_the_changed_one_do_not_run(llama: TinySource, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, batches = scored(llama, data)
    reference = network.reference(batches)
    ran: list[int] = []
    for index, layer in enumerate(network.base.model.layers):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    searched = find_dimensions(llama.opened(), ["int8"]).searched
    measure_damage(network, batches, reference, searched)
    # two narrower widths a layer, each from there to the end, and one step through each layer
    expected = {layer: len(batches) * (2 * (layer + 1) + 1) for layer in range(LAYERS)}
    assert {layer: ran.count(layer) for layer in range(LAYERS)} == expected


def test_groups_that_are_not_searched_do_no_damage(llama: TinySource, data: Path, choose: Callable) -> None:
    network, batches = scored(llama, data)
    space = llama.opened().space
    searched = find_dimensions(llama.opened(), ["int8"]).searched
    table = measure_damage(network, batches, network.reference(batches), searched)
    assert [bool(row) for row in table.rows] == [index in searched for index in range(len(space.groups))]
    assert evaluations(space, searched) == 2 * LAYERS
    levels = [len(group.widths) - 1 for group in space.groups]
    assert table.predicted(levels) == pytest.approx(sum(table.rows[index][-1] for index in searched))
    assert DamageTable(((), (0.0, 1.5), (0.0, 0.25, 4.0))).predicted([1, 1, 2]) == 5.5


def test_progress_ends_at_one(llama: TinySource, data: Path) -> None:
    network, batches = scored(llama, data)
    told: list[float] = []
    with torch.inference_mode():
        measure_damage(network, batches, network.reference(batches), [3, 4], told.append)
    assert told == [pytest.approx(3 / 5), 1.0]


def test_a_thinned_batch_is_those_prompts_alone(llama: TinySource, data: Path, choose: Callable) -> None:
    """Each of them without padding, weighted by its answers."""
    network, batches = scored(llama, data)
    widths, total, count = choose(llama, "minimal"), 0.0, 0
    for batch in batches:
        for row in range(0, len(batch["input_ids"]), SKIP):
            length, kept = int(batch["attention_mask"][row].sum()), batch["labels"][row] != -100
            one = {name: batch[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
            one |= {"logits_to_keep": batch["logits_to_keep"][kept], "labels": batch["labels"][row : row + 1, kept]}
            total += network.kl([widths], [one])[0] * int(kept.sum())
            count += int(kept.sum())
    assert network.kl([widths], [_thinned(batch) for batch in batches])[0] == pytest.approx(total / count, rel=1e-4)
    assert any(len(batch["input_ids"]) > SKIP for batch in batches)
