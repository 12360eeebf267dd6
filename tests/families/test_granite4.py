"""Granite 4: refusals, and positions in openvino_genai's paged attention."""

from pathlib import Path
from typing import Any

import openvino_genai
import pytest
import torch
from tiny_models import CASES, TinyModels
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.openvino_lm import OpenVinoLM
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source
from lonas_edge.space.architecture import Architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_experts": 4}, "num_local_experts 4: mixtures of experts are not supported; expected 0"),
        ({"layer_types": ["attention", "mamba", "attention"]}, "layer_types mamba: only models with attention in all layers"),
    ],
)
def test_other_models_of_the_type_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        Architecture.from_config(AutoConfig.for_model(**{**CASES["granite4"], **changes}), "here")


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
    with pytest.raises(LonasEdgeError, match=r"optimum-intel mixes up the beams of this model type; pass --num-beams 1"):
        OpenVinoLM(tmp_path / "out", tokenizer, 128)._search([[5, 6]], {"num_beams": 2, "max_gen_toks": 2, "until": ()})


def _tensor(values: torch.Tensor) -> Any:
    import openvino

    return openvino.Tensor(values.numpy())
