"""Granite 4: refusals, hybrids of attention and Mamba, and positions in openvino_genai's paged attention."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import openvino_genai
import pytest
import torch
from lm_eval.api.instance import Instance
from openvino_models import ir_logits
from oracle import oracle_logits
from tiny_models import CASES, TinyModels
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.backends import OpenVinoLM
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.depth import remove_blocks
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import removable_blocks

HYBRID = "granite4-mamba"  # Mamba, then two layers of attention


def test_mixtures_of_experts_are_refused() -> None:
    config = AutoConfig.for_model(**{**CASES["granite4"], "num_local_experts": 4})
    with pytest.raises(LonasEdgeError, match="num_local_experts 4: mixtures of experts are not supported; expected 0"):
        Architecture.from_config(config, "here")


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            ["model.layers.0.self_attn"],
            r"unknown block 'model.layers.0.self_attn': expected .* with mamba or shared_mlp or self_attn",
        ),
        (["model.layers.1.mamba"], r"unknown block 'model.layers.1.mamba'"),
        (["model.layers.1.self_attn", "model.layers.2.self_attn"], r"every layer's attention is removable"),
    ],
)
def test_blocks_that_cannot_be_removed(blocks: list[str], message: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    source = tiny_models.source(HYBRID).with_blocks(tmp_path, *blocks)
    with pytest.raises(LonasEdgeError, match=message):
        source.opened()


def test_a_space_keeps_one_attention() -> None:
    """Attention in inner layers only, as in the released hybrids: all but the last may be removed."""
    layers = ["mamba", "attention", "mamba", "attention", "mamba"]
    case = {**CASES["granite4-mamba"], "num_hidden_layers": len(layers), "layer_types": layers}
    architecture = Architecture.from_config(AutoConfig.for_model(**case), "m")
    assert removable_blocks(architecture, ("attention",), "m") == [["model.layers.1.self_attn"]]
    assert ["model.layers.2.mamba"] in removable_blocks(architecture, ("attention", "mamba"), "m")


def test_heads_of_a_hybrid(tiny_models: TinyModels, ids: torch.Tensor, materialize: Callable[..., Path]) -> None:
    """Half of them in one of the two layers that have attention; Mamba's width is refused."""
    source = tiny_models.heads_source(HYBRID)
    names = source.opened().elasticity.group_names
    widths = [
        group[-1] if name == "layers.2.self_attn.width" else group[0]
        for name, group in zip(names, source.groups(), strict=True)
    ]
    assert [name for name in names if name.endswith("self_attn.width")] == [
        "layers.1.self_attn.width",
        "layers.2.self_attn.width",
    ]
    network = load_super_network(source.opened())
    network.activate(widths)
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    for model in (network.model, load_checkpoint(materialize(source, widths))):
        with torch.inference_mode():
            torch.testing.assert_close(model(input_ids=ids).logits.double(), expected, rtol=0, atol=1e-4)
    copy = json.loads(source.space.read_text())
    assert not any("GraniteMoeHybridMambaLayer" in node and "lora_B" in node for node in json.dumps(copy).split('"'))


def test_mamba_stays_in_int8(tiny_models: TinyModels, choose: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    """In the IR, in its record and in the live network with stored weights."""
    weight_format = "int4_sym"
    source = tiny_models.source(HYBRID)
    opened, widths = source.opened(), choose(source, "unequal:1")
    manifest = export(
        opened, opened.subnetwork(widths, "unequal"), tmp_path / "out", ExportOptions(weight_format=weight_format)
    )
    nodes = ov.Core().read_model(tmp_path / "out/openvino_model.xml").get_ops()
    kinds = {n.friendly_name: n.get_element_type().get_type_name() for n in nodes if n.friendly_name.endswith("_proj.weight")}
    four = {name for name, kind in kinds.items() if kind == "i4"}
    assert {"model.layers.0.mamba.in_proj.weight", "model.layers.0.mamba.out_proj.weight"} <= kinds.keys() - four
    assert {name for name in kinds if ".self_attn." in name} == {name for name in four if ".self_attn." in name}
    assert [part.weight_format for part in manifest.compression] == ["int4_sym", "int8"]
    network = load_super_network(opened)
    network.activate(widths)
    with StoredWeights(network, weight_format).active(widths), torch.inference_mode():
        stored = network.model(input_ids=ids, use_cache=False).logits
    assert (stored - ir_logits(tmp_path / "out", ids)).abs().max() < 1e-3
    (tmp_path / "prompts.jsonl").write_text("{}")
    options = ExportOptions(weight_format=weight_format, calibration=tmp_path / "prompts.jsonl")
    with pytest.raises(LonasEdgeError, match=r"--calibration would store 2 matrices in four bits that have to stay INT8"):
        export(opened, opened.subnetwork(widths), tmp_path / "more", options)


def test_generates_without_the_last_mamba(ids: torch.Tensor) -> None:
    """With a cache as without one: whether there are earlier tokens is asked of the last layer with a state."""
    config = AutoConfig.for_model(**{**CASES[HYBRID], "layer_types": ["mamba", "attention", "mamba"]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    remove_blocks(model, Architecture.from_config(config, "here"), ["model.layers.2.mamba"])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached, plain = (model.generate(ids, use_cache=cached, **settings) for cached in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.slow
def test_an_unpruned_model_in_stock_clients(tiny_models: TinyModels, tmp_path: Path) -> None:
    """`LLMPipeline` with its default, paged attention, whose positions are its own; no beams that optimum-intel mixes up."""
    base = tiny_models.base("granite4")
    source = open_source(str(base))
    export(source, source.select(), tmp_path / "out", ExportOptions(weight_format="fp32"))
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    pipeline = openvino_genai.LLMPipeline(str(tmp_path / "out"), "CPU", **exact)
    config = openvino_genai.GenerationConfig(ignore_eos=True, max_new_tokens=16)
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = tokenizer("there is another one in the attic", return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=16, do_sample=False, eos_token_id=None, use_cache=False)
    found = pipeline.generate(openvino_genai.TokenizedInputs(*map(_tensor, (ids["input_ids"], ids["attention_mask"]))), config)
    assert list(found.tokens) == expected[:, ids["input_ids"].shape[1] :].tolist()
    with pytest.raises(
        LonasEdgeError, match=r"optimum-intel mixes up the beams of this model type; pass --protocol option-text"
    ):
        options = {"num_beams": 2, "max_gen_toks": 2, "until": []}
        request = Instance("generate_until", {}, ("there is", options), 0, ("task", 0, 1))
        OpenVinoLM(tmp_path / "out", tokenizer, 128).generate_until([request])


def _tensor(values: torch.Tensor) -> Any:
    return ov.Tensor(values.numpy())
