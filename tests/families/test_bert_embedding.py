"""BERT as an embedding model: its task, its pooling, adapters on the pooler, stored weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_bert import CONFIG, CONTEXT, HIDDEN, TinyBert, oracle_embeddings, oracle_hidden, pairs
from transformers import AutoConfig, AutoModel

from lonas_edge import load_checkpoint
from lonas_edge.data.pooling import Pooling
from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning
from lonas_edge.families import CLASSIFICATION, EMBEDDING
from lonas_edge.formats import FORMATS
from lonas_edge.network.modeling import empty_model
from lonas_edge.network.source import open_source
from lonas_edge.network.stored import StoredWeights, round_trip
from lonas_edge.network.super_network import load_super_network

MERGED = 1e-5  # float64 hidden states of order 5 from weights that are rounded to fp32 once
UNEQUAL = [64, 32, 48, 8, 6, 8, 96, 64, 128]
MAXIMAL = [64, 64, 64, 8, 8, 8, 128, 128, 128]


def embedded(model: Any, mode: str = "mean", normalize: bool = True) -> torch.Tensor:
    """Embeddings of `pairs` by a live model, pooled by the oracle."""
    with torch.inference_mode():
        return oracle_embeddings(model(**pairs()).last_hidden_state.double(), pairs()["attention_mask"], mode, normalize)


@pytest.mark.parametrize("targets", [("query", "dense"), "all-linear"])
def test_an_adapter_on_the_pooler(targets: Any, tiny_bert: TinyBert, materialize: Callable) -> None:
    """PEFT adapts it, too, and no pooling reads it."""
    source = tiny_bert.embedder(targets=targets)
    assert any("pooler" in name for name in load_file(source.adapter / "adapter_model.safetensors"))
    opened = open_source(str(source.adapter), str(source.base))
    expected = oracle_embeddings(oracle_hidden(replace(source, space=None), [], pairs()), pairs()["attention_mask"])
    assert (embedded(load_super_network(opened).model) - expected).abs().max() < 1e-4
    assert (embedded(load_checkpoint(materialize(opened, []), torch.float64)) - expected).abs().max() < MERGED
    assert not any("pooler" in name for name in opened.ranks())


CLASSIFIER, BODY = "BertForSequenceClassification", "BertModel"


@pytest.mark.parametrize(
    ("architectures", "modules", "adapter", "task", "opened"),
    [
        (None, False, None, None, CLASSIFIER),  # the first family
        ("BertModel", False, None, None, BODY),
        ("BertForMaskedLM", False, None, None, CLASSIFIER),
        ("BertForMaskedLM", True, None, None, BODY),
        (None, True, None, None, BODY),
        ("BertModel", True, None, CLASSIFICATION, CLASSIFIER),  # the data of a training
        ("BertModel", True, "SEQ_CLS", None, CLASSIFIER),  # an adapter's task is first
        ("BertForSequenceClassification", False, "FEATURE_EXTRACTION", None, BODY),
        ("BertModel", False, None, EMBEDDING, BODY),
    ],
)
def test_task_of_a_source(
    architectures: str | None, modules: bool, adapter: str | None, task: Any, opened: str, tiny_bert: TinyBert, tmp_path: Path
) -> None:
    """The adapter decides, else the data, else the files of sentence-transformers, else `architectures`."""
    base = tmp_path / "base"
    shutil.copytree(tiny_bert.body() if modules else tiny_bert.base(headless=True), base)
    (base / "config.json").write_text(json.dumps({**CONFIG, **({"architectures": [architectures]} if architectures else {})}))
    folder = {None: None, "SEQ_CLS": tiny_bert.adapter(), "FEATURE_EXTRACTION": tiny_bert.embedder().adapter}[adapter]
    source = open_source(str(folder or base), str(base) if folder else None, kind=task)
    assert type(empty_model(source.base_config())).__name__ == opened
    assert source.architecture.family.kind is (EMBEDDING if opened == BODY else CLASSIFICATION)
    assert source.base_config()["architectures"] == [opened]
    assert (source.pooling is None) is (opened == CLASSIFIER)


def test_an_adapter_without_a_task(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """A classifier's head in it makes it a classifier's; else the base decides. A head is never dropped."""
    for adapter, opened in ((tiny_bert.adapter(), CLASSIFIER), (tiny_bert.embedder().adapter, BODY)):
        folder = tmp_path / opened
        shutil.copytree(adapter, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": None}))
        source = open_source(str(folder), str(tiny_bert.body()))
        assert source.base_config()["architectures"] == [opened]
    config = json.loads((tmp_path / CLASSIFIER / "adapter_config.json").read_text())
    (tmp_path / CLASSIFIER / "adapter_config.json").write_text(json.dumps({**config, "task_type": "FEATURE_EXTRACTION"}))
    source = open_source(str(tmp_path / CLASSIFIER), str(tiny_bert.body()))
    with pytest.raises(LonasEdgeError, match=r"encoder\.layer\.0\S+lora_A\.weight: missing"):
        load_super_network(source)


def test_the_pooling_of_a_source(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The adapter's own files are read before those of the base; an assumed pooling is reported where it is used."""
    source = tiny_bert.embedder(tiny_bert.body("cls", normalize=False)).copied_to(tmp_path)
    assert source.opened().pooling == Pooling("cls", max_length=CONTEXT, stated=True)
    Pooling("lasttoken", normalize=True).write(source.adapter, HIDDEN)
    assert source.opened().pooling == Pooling("lasttoken", True, max_length=CONTEXT, stated=True)
    base = str(tiny_bert.base(headless=True))
    with pytest.warns(LonasEdgeWarning, match=r"bert-headless: no modules\.json, so its pooling is unknown; assuming the mean"):
        assert open_source(base).pooling == Pooling(max_length=CONTEXT)
    assert open_source(base, weights=False).pooling == Pooling(max_length=CONTEXT)


def test_stored_weights(tiny_bert: TinyBert) -> None:
    """Tables and layers are rounded; there is no head. Compared with a plain model of rounded matrices."""
    source = tiny_bert.embedder()
    network = load_super_network(source.opened())
    merged = load_super_network(source.opened()).model.merge_and_unload()
    plain = AutoModel.from_config(AutoConfig.for_model(**CONFIG), add_pooling_layer=False).eval()
    weights = {name.removeprefix("base_model.model."): value for name, value in merged.state_dict().items()}
    eight = FORMATS["int8_sym"]
    rounded = {name: round_trip(value, eight, None) if value.dim() == 2 else value for name, value in weights.items()}
    plain.load_state_dict({name: rounded[name] for name in plain.state_dict()}, strict=False)
    exact = embedded(network.model)
    with StoredWeights(network, "int8_sym").active(MAXIMAL):
        actual = embedded(network.model)
    assert (actual - embedded(plain)).abs().max() < 1e-5 < 1e-3 < (actual - exact).abs().max()
    assert torch.equal(embedded(network.model), exact)
