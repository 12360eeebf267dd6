"""A walk over the layers: from each one on, the head's input is that of the whole network."""

import pytest
import torch
from tiny_models import CASES, LAYERS, VOCAB, TinyModels, families

from lonas_edge.network.super_network import load_super_network
from lonas_edge.network.walk import Walk


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
    assert not any("_passing_by" in str(vars(layer).get("forward")) for layer in layers)
