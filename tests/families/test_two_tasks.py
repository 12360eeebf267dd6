"""BERT's two families: the look-up, names of weights, search spaces of the other task."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_bert import CONFIG, HIDDEN, LAYERS, MLP
from transformers import AutoConfig

from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, family_of
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import generate_space
from lonas_edge.space.search_space import parse_search_space

BODY = family_of("bert", EMBEDDING)


@pytest.mark.parametrize(
    ("kind", "classes", "chosen"),
    [
        (None, (), CLASSIFICATION),  # the first family
        (None, ("BertModel",), EMBEDDING),
        (None, ("BertForMaskedLM",), CLASSIFICATION),
        (CLASSIFICATION, ("BertModel",), CLASSIFICATION),
        (EMBEDDING, ("BertForSequenceClassification",), EMBEDDING),
        (CAUSAL_LM, (), CLASSIFICATION),  # refused later, by name
        (CAUSAL_LM, ("BertModel",), EMBEDDING),
    ],
)
def test_the_family_of_a_model_type(kind: ModelKind | None, classes: Sequence[str], chosen: ModelKind) -> None:
    family = family_of("bert", kind, classes)
    assert family and family.kind is chosen
    assert family_of("unknown", kind, classes) is None and family_of(None, kind, classes) is None


def test_a_configuration_names_its_class() -> None:
    named = SimpleNamespace(**CONFIG, architectures=["BertModel"])
    assert Architecture.from_config(named, "bert").family is BODY
    assert BODY.class_fields("bert") == {"architectures": ["BertModel"]}
    assert family_of("llama").class_fields("llama") == {}


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_of_weights(prefix: str, tmp_path: Path) -> None:
    """Each family reads a checkpoint with and without the prefix, and leaves the head's names."""
    names = ["embeddings.word_embeddings.weight", "encoder.layer.0.output.LayerNorm.gamma"]
    save_file(
        {name: torch.ones(2) for name in [*(prefix + name for name in names), "classifier.bias"]},
        tmp_path / "model.safetensors",
    )
    current = [name.replace("gamma", "weight") for name in names]
    for family, own in ((BODY, ""), (family_of("bert"), "bert.")):
        tensors = open_tensors(tmp_path)
        tensors.rename(family)
        assert tensors.shapes.keys() == {*(own + name for name in current), "classifier.bias"}
        assert torch.equal(tensors.read(own + current[1]), torch.ones(2))


def test_spaces_of_the_other_task() -> None:
    """The same groups under this task's paths, and the same hash, which covers the paths; in both directions."""
    config = AutoConfig.for_model(**CONFIG)
    architectures = [Architecture(family, config) for family in (family_of("bert"), BODY)]
    spaces = [parse_search_space(generate_space(each, (1, 0.5), (8, 6)), "space") for each in architectures]
    modules = {f"encoder.layer.{layer}.intermediate.dense" for layer in range(LAYERS)}
    for architecture, prefix in zip(architectures, ("bert.", ""), strict=True):
        own, other = (bind(architecture, space, "space") for space in spaces)
        assert own.space.hash == other.space.hash and own.out_group == other.out_group
        assert {prefix + module for module in modules} <= other.out_group.keys()
        assert own.group_names == other.group_names and own.group_names[0] == "layers.0.attention.self.width"
        assert other.maximal == (HIDDEN,) * LAYERS + (8,) * LAYERS + (MLP,) * LAYERS
