"""A walk over the layers: from each one on, the head's input is that of the whole network."""

import re

import pytest
import torch
from tiny_models import CASES, LAYERS, VOCAB, TinyModels, families

from lonas_edge.network import walk as walking
from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.walk import Prefixes, Walk


@pytest.mark.parametrize("case", families(*(name for name in CASES if not name.endswith("-tied"))))
def test_from_every_layer_on(case: str, tiny_models: TinyModels) -> None:
    network = load_super_network(tiny_models.source(case).opened())
    draw = torch.Generator().manual_seed(2)
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in (torch.randint(2, VOCAB, shape, generator=draw) for shape in ((2, 7), (1, 5)))
    ]
    batches[0]["attention_mask"][0, 5:] = 0
    with torch.no_grad():
        expected = [network.base.base_model(**batch, use_cache=False).last_hidden_state for batch in batches]
    walk = Walk(network, batches)
    assert len(walk) == LAYERS
    for layer in range(LAYERS):
        assert walk.current == layer
        for index, hidden in enumerate(expected):
            mask = batches[index]["attention_mask"].bool()
            torch.testing.assert_close(walk.hidden(index)[mask], hidden[mask], rtol=0, atol=1e-5)
        walk.step()
    layers = network.base.get_submodule(network.family.layers)
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("case", families("llama", "gemma3n", "bloom", "granite4", "olmo2"))
def test_prefixes_of_earlier_networks(case: str, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network's hidden states are its own, and layers before the first difference do not run again."""
    source = tiny_models.deep_source(case).opened()
    network = load_super_network(source)
    draw = torch.Generator().manual_seed(3)
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in (torch.randint(2, VOCAB, shape, generator=draw) for shape in ((2, 7), (1, 5)))
    ]
    maximal, groups = source.elasticity.maximal, source.space.groups
    blocks = [index for index, group in enumerate(groups) if group.kind == "block"]
    networks = [maximal, *(tuple(0 if i in (a, b) else w for i, w in enumerate(maximal)) for a in blocks for b in blocks)]
    prefixes, ran = Prefixes(network, batches), []
    run_only = walking._run_only
    monkeypatch.setattr(walking, "_run_only", lambda *given: (ran.append(given[1].start), run_only(*given))[1])
    assert Prefixes.fit(network, batches)
    for widths in networks:
        found = list(prefixes.hidden(widths))
        network.activate(widths)
        for batch, hidden in zip(batches, found, strict=True):
            with torch.no_grad():
                expected = network.family.hidden(network.base, **batch)
            torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    # two batches of the maximal network, of one without a block, and of one without another block, too
    number = re.compile(r"\.(\d+)\.")
    layers = [int(number.search(f"{groups[index].modules[0]}.").group(1)) for index in blocks[:2]]  # type: ignore[union-attr]
    last = network.family.last_start(network.base.config)
    assert ran[:6] == [0, 0, *[min(layers[0], last)] * 2, *[min(layers[1], last)] * 2]
