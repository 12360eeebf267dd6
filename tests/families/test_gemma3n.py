"""Gemma 3n: keys and values that layers share, sparse MLPs of unequal widths, and the text part of a multimodal model."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openvino as ov
import pytest
import tiny_models as tiny
import torch
from openvino_models import ir_logits
from optimum.intel import OVModelForCausalLM
from oracle import oracle_logits
from tiny_models import CASES, VOCAB, TinyModels, TinySource, random_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Gemma3nConfig, Gemma3nForConditionalGeneration
from transformers.models.gemma3n import modeling_gemma3n

from lonas_edge import load_checkpoint
from lonas_edge.commands import Command
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.job import compared_inputs
from lonas_edge.exporting.optimum import gptq_options, optimum_options, run_optimum
from lonas_edge.families import tokens_of
from lonas_edge.network.modeling import repair
from lonas_edge.network.rounding import rounding_costs
from lonas_edge.network.source import open_source
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import load_super_network
from lonas_edge.search.latency_table import find_kinds, uniform_networks
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import removable_blocks
from lonas_edge.vocabulary.model_vocabulary import ModelVocabulary

SLIDING, FULL = "sliding_attention", "full_attention"
DEEP = {  # layers 4 and 5 read keys and values of layers 3 and 1
    **CASES["gemma3n"],
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL],
    "activation_sparsity_pattern": [0.9, 0.0, 0.8, 0.0, 0.5, 0.0],
    "intermediate_size": [128, 256, 128, 256, 128, 128],
}
READ = "later layers read its keys and values"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


@pytest.fixture(scope="module")
def deep(tiny_models: TinyModels) -> Iterator[TinySource]:
    """A model of six layers, an adapter and a space."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny.CASES, "gemma3n-deep", DEEP)
        yield tiny_models.source("gemma3n-deep")


def attention(*layers: int) -> list[str]:
    return [f"model.layers.{layer}.self_attn" for layer in layers]


def test_attention_that_is_read_stays(deep: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    """In a space, and in generated spaces."""
    with pytest.raises(LonasEdgeError) as raised:
        deep.with_blocks(tmp_path / "space", *attention(0, 1, 3)).opened()
    assert [line for line in str(raised.value).splitlines() if READ in line] == [
        f"  - group {18 + index}: {path} cannot be removed: {READ}" for index, path in ((1, *attention(1)), (2, *attention(3)))
    ]
    architecture = deep.opened().architecture
    assert removable_blocks(architecture, ("attention",), "m") == [[path] for path in attention(2, 4)]
    written = tmp_path / "space.json"
    ran = run_cli("space", "--model", deep.base, "--depth", "attention", "--ranks", "8,6", "--output", written).ok()
    ran = run_cli("inspect", deep.adapter, "--model", deep.base, "--nncf-config", written, "--subnet", "minimal").ok()
    heads = {words[0]: words[2] for words in map(str.split, ran.out.splitlines()) if len(words) == 5 and words[0].isdecimal()}
    assert heads == {"0": "4", "1": "4", "2": "0", "3": "4", "4": "0", "5": "4"}


def test_keys_and_values_are_shared_without_a_cache(deep: TinySource, ids: torch.Tensor) -> None:
    """transformers 5.5 does so with one only. Gradients are the same, with recomputed activations, too."""
    stock = AutoModelForCausalLM.from_pretrained(deep.base, dtype=torch.float64).eval()
    expected = stock(input_ids=ids).logits
    assert (stock(input_ids=ids, use_cache=False).logits - expected).abs().max() > 0.1
    assert (load_checkpoint(deep.base)(input_ids=ids, use_cache=False).logits - expected).abs().max() < 1e-4
    model = copy.deepcopy(stock).train()
    repair(model, deep.opened().architecture.family)
    expected.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in stock.named_parameters()}
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        first, _ = (model(input_ids=tokens, use_cache=False).logits for tokens in (ids, ids.flip(1)))  # of their own
        assert (first - expected).abs().max() < 1e-9
        first.square().mean().backward()
        for name, parameter in model.named_parameters():
            if any(f"{path}.{leaf}" in name for path in attention(4, 5) for leaf in ("k_", "v_")):
                assert parameter.grad is None and gradients[name] is None, name
            else:
                assert (parameter.grad - gradients[name]).abs().max() < 1e-12 < gradients[name].abs().max(), name


@pytest.mark.parametrize("removed", [[0, 4], *(pytest.param(each, marks=pytest.mark.slow) for each in ([2], [0, 5]))], ids=str)
def test_removed_attention(removed: list[int], deep: TinySource, ids: torch.Tensor, tmp_path: Path) -> None:
    """Caches of the IR are renumbered, also for the layers that read those of others."""
    source = deep.with_blocks(tmp_path / "source", *attention(*removed))
    opened = source.opened()
    widths = [*opened.select("random:5").widths[: -len(removed)], *[0] * len(removed)]
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    export(opened, source.subnetwork(widths), tmp_path / "ir", ExportOptions(weight_format="fp32"))
    assert (ir_logits(tmp_path / "ir", ids) - expected).abs().max() < 1e-3
    sinks = ov.Core().read_model(tmp_path / "ir/openvino_model.xml").get_sinks()
    assert len(sinks) == 2 * len({0, 1, 2, 3} - {*removed})
    network = load_super_network(opened)
    network.activate(widths)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    uncached, cached = (network.base.generate(ids, use_cache=cached, **settings) for cached in (False, True))
    assert torch.equal(uncached, cached)
    assert torch.equal(OVModelForCausalLM.from_pretrained(tmp_path / "ir", ov_config=EXACT).generate(ids, **settings), cached)


def test_widths_of_all_layers_stay_a_list(deep: TinySource, ids: torch.Tensor, materialize: Callable) -> None:
    """transformers opens such a checkpoint, and so does the next command."""
    opened = deep.opened()
    layers = [opened.architecture.of_layer(path).intermediate_size for path in attention(*range(6))]
    assert layers == DEEP["intermediate_size"] and not opened.architecture.unequal
    widths = list(opened.select("minimal").widths)
    folder = materialize(deep, widths)
    content = json.loads((folder / "config.json").read_text())
    assert content["intermediate_size"] == [width // 2 for width in DEEP["intermediate_size"]]
    assert "per_layer_config" not in content
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    expected = oracle_logits(deep.base, deep.adapter, deep.space, widths, ids)
    with torch.inference_mode():
        assert (model(input_ids=ids).logits - expected).abs().max() < 1e-4
    assert open_source(str(folder)).architecture.linears["model.layers.3.mlp.up_proj"].out_features == 128


def test_latencies_of_unequal_layers(deep: TinySource) -> None:
    """Each shape of MLP has a curve of its own: a network cannot have the wider one's width in all layers."""
    source = deep.opened()
    kinds = {kind.name: kind for kind in find_kinds(source)}
    first = source.elasticity.group_names.index("layers.0.mlp.width")
    wide = [first + layer for layer, width in enumerate(DEEP["intermediate_size"]) if width == 256]
    assert {name: kind.widths for name, kind in kinds.items()} == {
        "mlp.gate_proj, mlp.up_proj of 128": (128, 96, 64),
        "mlp.gate_proj, mlp.up_proj of 256": (256, 192, 128),
    }
    assert list(kinds["mlp.gate_proj, mlp.up_proj of 256"].layers) == wide
    networks = uniform_networks(source, tuple(kinds.values())).values()
    assert all(width in group.widths for network in networks for width, group in zip(network, source.space.groups, strict=True))


@pytest.mark.slow
def test_weights_of_an_ir(deep: TinySource, choose: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    """AltUp's and LAuReL's matrices stay in INT8; keys and values of layers that share have no weights."""
    opened, widths = deep.opened(), list(deep.opened().select("random:2").widths)
    export(opened, deep.subnetwork(widths), tmp_path / "out", ExportOptions(weight_format="int4"))
    nodes = ov.Core().read_model(tmp_path / "out/openvino_model.xml").get_ops()
    kinds = {n.friendly_name: n.get_element_type().get_type_name() for n in nodes if n.friendly_name.endswith(".weight")}
    inner = {name: kind for name, kind in kinds.items() if ".layers." in name and "norm" not in name}
    assert {name for name, kind in inner.items() if kind == "u8"} == {
        f"model.layers.{layer}.{name}.weight"
        for layer in range(6)
        for name in (
            *("altup.correction_coefs", "altup.prediction_coefs", "altup.modality_router"),
            *("laurel.linear_left", "laurel.linear_right"),
        )
    }
    assert {kind for name, kind in inner.items() if not {"altup", "laurel"} & {*name.split(".")}} == {"u4"}
    assert not [name for name in inner if re.search(r"[45]\.self_attn\.[kv]_proj", name)]
    assert kinds["model.embed_tokens_per_layer.weight"] == "u8"
    network = load_super_network(opened)
    network.activate(widths)
    with StoredWeights(network, "int4").active(widths), torch.inference_mode():
        stored = network.model(input_ids=ids, use_cache=False).logits
    assert (stored - ir_logits(tmp_path / "out", ids)).abs().max() < 1e-3
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 1:]}
    batch["logits_to_keep"] = torch.arange(ids.shape[1] - 1)
    costs = rounding_costs(network, widths, [batch], "int4")
    assert all(cost > 0 for cost in costs.values()) and "model.layers.3.self_attn.k_proj" in costs
    assert not {f"{path}.{name}_proj" for path in attention(4, 5) for name in "kv"} & costs.keys()


def test_a_second_vocabulary(tiny_models: TinyModels, tmp_path: Path) -> None:
    """It limits the tokens of prompts, and the vocabulary cannot be trimmed."""
    content = {**CASES["gemma3n"], "vocab_size_per_layer_input": 40}
    assert (tokens_of(content), tokens_of(CASES["gemma3n"]), tokens_of(CASES["llama"])) == (40, VOCAB, VOCAB)
    architecture = Architecture.from_config(AutoConfig.for_model(**content), "m")
    assert compared_inputs(architecture.family.kind, None, architecture.config)["input_ids"].max() < 40
    message = "the vocabulary of gemma3n_text cannot be trimmed: each token has a row in the embeddings of every layer, too"
    with pytest.raises(LonasEdgeError, match=message):
        ModelVocabulary(open_source(str(tiny_models.base("gemma3n"))), tmp_path / "data.json")


def test_the_text_part_is_a_model(ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved as the guide says. Vision needs timm, so another module stands for it."""
    stock, text = AutoModel.from_config, random_model("gemma3n-tied")

    def from_config(config: Any) -> nn.Module:
        return nn.Linear(2, 2) if config.model_type == "gemma3n_vision" else stock(config)

    monkeypatch.setattr(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=from_config))
    audio = {"hidden_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "sscp_conv_channel_size": [2, 2]}
    config = Gemma3nConfig(text_config=text.config.to_dict(), audio_config=audio, vision_config={"hidden_size": 16})
    whole = Gemma3nForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.save_pretrained(tmp_path / "WHOLE")
    with pytest.raises(LonasEdgeError, match="model_type 'gemma3n' is not supported"):
        open_source(str(tmp_path / "WHOLE"))
    guide = (Path(__file__).parents[2] / "docs/reference/families.md").read_text()
    (lines,) = re.findall(r"```python\n(from transformers import AutoConfig, Gemma3nForCausalLM.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(lines)
    with torch.inference_mode():
        found, expected = (model(input_ids=ids).logits for model in (load_checkpoint(tmp_path / "TEXT"), text))
    torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ignores"), [("gemma3", False), ("gemma3n", True)])
def test_baselines_of_compress(case: str, ignores: bool, ids: torch.Tensor, tiny_models: TinyModels, tmp_path: Path) -> None:
    """optimum-cli 2.2 refuses Gemma with transformers 5.5, and INT4 where a group size does not divide AltUp's matrices."""
    base = tiny_models.base(case)
    source = open_source(str(base))
    options = {name: optimum_options(source.architecture, name) for name in ("int8", "int4")}
    options["int4"] |= gptq_options(source.architecture)
    assert (options["int4"]["group-size-fallback"] == "ignore") == ignores and options["int4"]["group-size"] in (32, 64)
    for name in ("int8", "int4") if ignores else ("int8",):
        command = Command("optimum-cli export openvino", None, {"model": base, "": tmp_path / name}, options[name])
        run_optimum(command, source.architecture.family.raised_guards)
    network = load_super_network(source)
    with StoredWeights(network, "int8").active(()), torch.inference_mode():
        stored = network.model(input_ids=ids, use_cache=False).logits
    assert (stored - ir_logits(tmp_path / "int8", ids)).abs().max() < 1e-3
