"""IRs of networks without some heads and blocks: logits vs. the oracle, stock clients, sizes of caches."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import openvino_genai
import pytest
import torch
from openvino_models import ir_logits
from optimum.intel import OVModelForCausalLM
from oracle import oracle_logits
from tiny_models import (
    CASES,
    HEADS,
    HIDDEN,
    LAYERS,
    TinyModels,
    TinySource,
    block_path,
    families,
    has_beams,
    has_heads,
    unused_layers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.configuration import parse_config
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.architecture import Architecture

Choose = Callable[[TinySource, str], list[int]]
Cut = Callable[[str, str], tuple[TinySource, list[int], Path]]
DEPTHS = {
    "llama": [0, 0, 0],
    "gemma2": [0, 1, 0],
    "gemma3": [1, 0, 0],
    "neox": [0, 0, 1],
    "phi3": [0, 1, 1],
    "bloom": [0, 1, 0],
    "smollm3": [0, 1, 0],
    "granite": [0, 1, 0],
    "olmo2": [0, 1, 0],
    "granite4": [0, 1, 0],
    "granite4-mamba": [0, 1, 0],
    "gemma3n": [0, 0, 0],
}
FREEDOMS = ("widths and depth", "widths, depth and heads")  # or one of "depth" and "heads" alone
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
NEW = 16
PROMPTS = ["the inner ones", "a", "there is another one in the attic", "on and on"]


def exported(source: TinySource, widths: list[int], output: Path, **options: object) -> Path:
    export(source.opened(), source.subnetwork(widths, "chosen"), output, ExportOptions(**options))  # type: ignore[arg-type]
    return output


def cache_elements(folder: Path) -> int:
    """Count the elements that a token adds to the IR's states, and compare those of config.json with them."""
    sinks = ov.Core().read_model(folder / "openvino_model.xml").get_sinks()
    shapes = [sink.get_input_partial_shape(0) for sink in sinks]  # [prompts, heads, tokens, channels], keys and values
    growing = [shape for shape in shapes if len(shape) == 4 and shape[2].is_dynamic]  # not the states of Mamba
    elements = sum(shape[1].get_length() * shape[3].get_length() for shape in growing)
    config = json.loads((folder / "config.json").read_text())
    assert Architecture.from_config(parse_config(config, "config.json"), "config.json").kv_elements() == elements
    return elements


@pytest.mark.parametrize("ordered", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", families(*(name for name in CASES if not name.endswith("-tied"))))
def test_logits_of_removed_blocks(
    case: str, ordered: bool, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, tmp_path: Path
) -> None:
    """With another order of heads and channels, blocks and widths are random."""
    source = tiny_models.deep_source(case)
    source = source.ordered(tmp_path / "ordered") if ordered else source
    depth = DEPTHS.get(case, [0, 0, 1])
    widths = choose(source, "unequal:1")[:-3] + depth
    if ordered:
        widths = list(source.opened().select("random:4").widths)
        depth = widths[-3:]
        assert 0 in depth[:2]
    folder = exported(source, widths, tmp_path / "out", weight_format="fp32")
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (ir_logits(folder, ids) - expected).abs().max() < 1e-3
    model = ov.Core().read_model(folder / "openvino_model.xml")
    shares = bool(unused_layers(case))  # the third layer has no cache of its own
    removed = {0: depth[0] == 0, 2 if shares else 1: depth[1] == 0}  # the third group is an MLP
    cached = [layer for layer in range(LAYERS - shares) if not removed.get(layer)]
    assert len(model.get_sinks()) == 2 * len(cached)
    cache_elements(folder)
    names = [op.get_friendly_name() for op in model.get_ops()]
    left = [layer for layer in range(LAYERS) if any(block_path(case, layer, "attention") in name for name in names)]
    assert len(left) == LAYERS - sum(removed.values())  # layers without any block disappear, and later ones are renumbered


@pytest.mark.parametrize("case", families(*(name for name in CASES if not name.endswith("-tied") and has_heads(name))))
def test_logits_of_removed_heads(case: str, tiny_models: TinyModels, ids: torch.Tensor, tmp_path: Path) -> None:
    """Half of the heads in the second and third layer; in some families without the third MLP."""
    source = tiny_models.heads_source(case).ordered(tmp_path / "ordered")
    groups = source.groups()
    widths = [group[index % len(group)] for index, group in enumerate(groups[:9])] + [
        groups[9][0],
        groups[10][-1],
        groups[11][-1],
    ]
    widths += [1, 1, case not in DEPTHS]
    folder = exported(source, widths, tmp_path / "out", weight_format="fp32")
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (ir_logits(folder, ids) - expected).abs().max() < 1e-3
    heads, channels = CASES[case].get("num_key_value_heads", HEADS), CASES[case].get("head_dim", HIDDEN // HEADS)
    assert cache_elements(folder) == 2 * channels * (heads + 2 * max(1, heads // 2))  # keys and values of three layers


@pytest.fixture(scope="module")
def cut(tiny_models: TinyModels, choose: Choose, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """A source, widths and the fp32 IR of them, made once: `cut(case, freedom)`, the freedoms those of `FREEDOMS`."""

    @functools.cache
    def make(case: str, freedom: str) -> tuple[TinySource, list[int], Path]:
        heads, alone = freedom.endswith("heads"), freedom in ("depth", "heads")
        source = tiny_models.heads_source(case) if heads else tiny_models.deep_source(case)
        groups = source.groups()
        widths = choose(tiny_models.deep_source(case), "maximal" if alone else "unequal:1")[:-3]
        widths += [groups[9][-1], groups[10][0], groups[11][-1]] if heads else []
        widths += [1, 1, 1] if freedom == "heads" else DEPTHS[case]
        return source, widths, exported(source, widths, tmp_path_factory.mktemp(case) / "out", weight_format="fp32")

    return make


_SLOW = (
    "gemma2",
    "smollm3",
    "granite",
    "granite4",
    "olmo2",
    "gemma3n",
    "neox",
    "phi3",
)  # here; the structures are compared with the oracle above
FREE = [pytest.param(case, FREEDOMS[has_heads(case)], marks=pytest.mark.slow if case in _SLOW else ()) for case in DEPTHS]


@pytest.mark.parametrize(("case", "freedom"), FREE)
def test_stock_clients_generate_the_same_tokens(case: str, freedom: str, cut: Cut) -> None:
    """Tokens of openvino_genai (greedy) and optimum-intel (greedy, beams), for single prompts and a batch, vs. PyTorch.

    Beams of openvino_genai differ from those of transformers for unpruned networks, too.
    """
    source, widths, folder = cut(case, freedom)
    network = load_super_network(source.opened())
    network.activate(widths)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    stock = OVModelForCausalLM.from_pretrained(folder, ov_config=EXACT)
    batch, generated = tokenizer(PROMPTS, return_tensors="pt", padding=True), {}
    for beams in (4, 1) if has_beams(case) else (1,):
        settings = {"max_new_tokens": NEW, "num_beams": beams, "do_sample": False, "eos_token_id": None}
        generated[beams] = []
        for prompt in PROMPTS:
            tokens = tokenizer(prompt, return_tensors="pt")
            expected = network.base.generate(**tokens, **settings)
            assert torch.equal(stock.generate(**tokens, **settings), expected)
            generated[beams].append(expected[0, -NEW:].tolist())
        assert stock.generate(**batch, **settings)[:, -NEW:].tolist() == generated[beams]
    for backend in ("SDPA", "PA"):
        pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND=backend, **EXACT)
        check_tokens(pipeline, tokenizer, generated[1])


def check_tokens(pipeline: openvino_genai.LLMPipeline, tokenizer: PreTrainedTokenizerBase, generated: list[list[int]]) -> None:
    """Compare greedy tokens of each prompt alone and of all together."""
    config = openvino_genai.GenerationConfig(ignore_eos=True, max_new_tokens=NEW)
    for prompts, expected in (
        *(([prompt], [tokens]) for prompt, tokens in zip(PROMPTS, generated, strict=True)),
        (PROMPTS, generated),
    ):
        batch = {
            name: ov.Tensor(tensor.numpy()) for name, tensor in tokenizer(prompts, return_tensors="pt", padding=True).items()
        }
        inputs = openvino_genai.TokenizedInputs(batch["input_ids"], batch["attention_mask"])
        assert list(pipeline.generate(inputs, config).tokens) == expected
