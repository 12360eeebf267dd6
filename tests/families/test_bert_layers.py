"""Whole layers of BERT that can be removed: networks of both tasks against the definition, sizes, spaces."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bert import CONTEXT, HIDDEN, LAYERS, MLP, RANK, VOCAB, TinyBert, expected_of, oracle_embeddings, outputs_of, pairs
from tiny_models import TinySource

from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.super_network import load_super_network
from lonas_edge.search.dimensions import measure_sensitivity

MERGED = 1e-5  # float64 outputs of order 10 from weights that are rounded to fp32 once
WIDTHS = [64, 32, 48, 8, 6, 8, 96, 64, 128]
DEPTHS = [[1, 1], [0, 1], [1, 0], [0, 0]]  # layers 2 and 0
TASKS = ["classifier", "embedder"]


def source_of(task: str, tiny_bert: TinyBert, **options: Any) -> TinySource:
    """A source with two removable layers."""
    return tiny_bert.deep(tiny_bert.source(3, **options) if task == "classifier" else tiny_bert.embedder(**options))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_as_defined(task: str, ordered: bool, tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """Activated in PyTorch and materialized, with an adapter on every layer; a removed layer comes back."""
    source = source_of(task, tiny_bert, targets=("query", "key", "value", "attention.output.dense"))
    source = source.ordered(tmp_path / "ordered") if ordered else source
    network = load_super_network(source.opened())
    whole = expected_of(task, source, [*WIDTHS, 1, 1])
    for depth in [*DEPTHS, [1, 1]]:
        widths = WIDTHS + depth
        expected = expected_of(task, source, widths)
        network.activate(widths)
        assert (outputs_of(task, network.model) - expected).abs().max() < 1e-4
        opened = load_checkpoint(materialize(source, widths), torch.float64)
        assert (outputs_of(task, opened) - expected).abs().max() < MERGED * max(1, expected.abs().max())
        assert opened.config.num_hidden_layers == len(opened.base_model.encoder.layer) == 1 + sum(depth)
        assert depth == [1, 1] or (whole - expected).abs().max() > 0.05


@pytest.mark.parametrize("task", TASKS)
def test_sizes(task: str, run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Computed by hand; ranks, heads and MLP of a removed layer are not counted."""
    source = source_of(task, tiny_bert)
    (tmp_path / "chosen.json").write_text(
        json.dumps({"widths": [64, 32, 48, 8, 6, 8, 96, 64, 128, 1, 0], "name": "without layer 0"})
    )
    ran = run_cli("inspect", *source.arguments(), "--subnet", tmp_path / "chosen.json", "--json").ok()
    content, tokens = json.loads(ran.out), 128
    head = (HIDDEN**2 + 3 * HIDDEN, HIDDEN + 3) if task == "classifier" else (0, 0)  # pooler and head: weights, biases
    tables = (VOCAB + CONTEXT + 2) * HIDDEN + 2 * HIDDEN
    whole, small = [(HIDDEN, MLP, RANK)] * LAYERS, [(32, 64, 6), (48, 128, 8)]
    for key, layers in (("unpruned", whole), ("subnetwork", small)):
        weights = [4 * HIDDEN * heads + 2 * HIDDEN * mlp for heads, mlp, _ in layers]
        adapters = [2 * rank * (HIDDEN + heads) for heads, _, rank in layers]
        vectors = [3 * heads + HIDDEN + mlp + HIDDEN + 4 * HIDDEN for heads, mlp, _ in layers]
        linear = sum(weights) + sum(adapters)
        assert content[key]["linear_weights"] == linear + head[0]
        assert content[key]["macs"] == tokens * linear + 2 * tokens**2 * sum(heads for heads, _, _ in layers) + head[0]
        assert content[key]["parameters"] == sum(weights) + sum(vectors) + sum(head) + tables
    ran = run_cli("inspect", *source.arguments(), "--subnet", "minimal")
    drawn = [line.split() for line in ran.out.splitlines() if line.strip()[:2] in ("0 ", "1 ", "2 ")]
    assert [(line[2], line[4]) for line in drawn] == [("0", "0"), ("2", "64"), ("0", "0")]


@pytest.mark.parametrize("task", TASKS)
def test_the_sensitivity_walk(task: str, tiny_bert: TinyBert) -> None:
    """Equals complete networks: of layers alone, and of everything around a network without the first layer."""
    source = source_of(task, tiny_bert)
    network = load_super_network(source.opened())
    batches = [{**pairs(), "labels": torch.arange(3)}]
    reference, searched = network.reference(batches), [0, 1, 6, 8, 9, 10]
    maximal = [values[0] for values in source.groups()]
    for center in (maximal, [*maximal[:-1], 0]):
        table = measure_sensitivity(network, batches, reference, searched, around=center)
        own = network.kl([center], batches)[0]
        for index in searched:
            alone = [[*center[:index], width, *center[index + 1 :]] for width in source.groups()[index]]
            assert table[index] == pytest.approx([kl - own for kl in network.kl(alone, batches)], abs=1e-5)
    whole, small = (expected_of(task, source, [*maximal[:-2], *depth]) for depth in ([1, 1], [0, 0]))
    if task == "classifier":
        expected = (whole.softmax(-1) * (whole.log_softmax(-1) - small.log_softmax(-1))).sum(-1).mean()
    else:
        both = [oracle_embeddings(hidden, pairs()["attention_mask"]) for hidden in (whole, small)]
        expected = (1 - (both[0] * both[1]).sum(-1)).mean()
    assert network.kl([[*maximal[:-2], 0, 0]], batches)[0] == pytest.approx(expected.item(), rel=1e-3) and expected > 1e-3


def test_a_space(run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Layers only with --depth, and not the outer ones. A space of either task fits the other, by the same group names."""
    path, sizes = tmp_path / "space.json", {}
    for base in (tiny_bert.base(headless=True), tiny_bert.body()):
        assert run_cli("space", "--model", base, "--output", path, "--overwrite").code == 0
        assert "lonas_edge" not in path.read_text()
        options = ["--depth", "layer", "--ranks", "8,6", "--ratios", "1"]
        run_cli("space", "--model", base, "--output", path, "--overwrite", *options).ok()
        section = json.loads(path.read_text())["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"]
        assert section["blocks"] == [["encoder.layer.1"]]
        for task in TASKS:
            opened = replace(source_of(task, tiny_bert), space=path).opened()
            assert opened.elasticity.group_names[-1] == "layers.1"
            network = opened.subnetwork([*opened.elasticity.maximal[:-1], 0])
            assert network.numbers == {0: 0, 2: 1}
            assert sizes.setdefault(task, opened.sizes(network)) == opened.sizes(network)
    assert "PeftModelForFeatureExtraction" in path.read_text()


def test_one_layer_stays(tiny_bert: TinyBert) -> None:
    """A space that could remove all is refused."""
    source = tiny_bert.deep(tiny_bert.source(), 1, 2, 0)
    with pytest.raises(
        LonasEdgeError, match=r"deep-[\s\S]*- every layer is removable, so the minimal network would have none; delete"
    ):
        source.opened()
