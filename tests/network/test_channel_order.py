"""The order of channels: permutations in live models and files, and the importance they come from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits, order_of_space
from peft import PeftModel
from safetensors.torch import save_file
from tiny_models import LAYERS, MLP, TinyModels, TinySource, mlp_consumers, mlp_name, mlp_names, random_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.data.registry import open_data
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.channel_order import FILE, ChannelOrder, by_importance
from lonas_edge.network.super_network import load_super_network

EXACT = 1e-5  # float64 logits of order 4, weights rounded to fp32 once: 1e-6
DOWN = [f"model.layers.{index}.mlp.down_proj" for index in range(LAYERS)]


def producers_of(consumer: str) -> tuple[str, str]:
    """The layers whose output a down_proj takes."""
    return consumer.replace("down_proj", "gate_proj"), consumer.replace("down_proj", "up_proj")


def permutations(seed: int = 0, consumers: list[str] = DOWN) -> dict[str, torch.Tensor]:
    """A random permutation for each consumer."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(MLP, generator=generator) for name in consumers}


def order_of(columns: dict[str, torch.Tensor], case: str = "llama") -> ChannelOrder:
    """An order for decoder layers' MLPs."""
    names, last = mlp_names(case)
    producers = {name: tuple(name.replace(last, producer) for producer in names) for name in columns}
    fused = {
        name: (MLP, MLP) for names in producers.values() for name in names if name.endswith(("gate_up_proj", "input_linear"))
    }
    return ChannelOrder(columns, producers, fused)


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a live model."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def live(base: Path, adapter: Path | None = None, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A base model, or a PEFT model on it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    return PeftModel.from_pretrained(model, adapter).to(dtype).eval() if adapter else model


# --- a live model


def test_an_adapter_computes_the_same(any_source: TinySource, ids: torch.Tensor) -> None:
    model = live(any_source.base, any_source.adapter)
    expected, before = logits_of(model, ids), {name: p.clone() for name, p in model.named_parameters()}
    order = order_of(permutations(1, mlp_consumers(any_source.case)), any_source.case)
    order.apply_to_model(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    layers = len(mlp_names(any_source.case)[0]) + 1
    assert len(changed) >= LAYERS * 2 * layers  # a weight and a factor of each layer of an MLP
    assert all(f".{mlp_name(any_source.case)}." in name for name in changed)
    assert (logits_of(model, ids) - expected).abs().max() < EXACT
    order.inverse().apply_to_model(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# --- importance


def importance(model: nn.Module, prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """RMS of each channel times the norm of its column, by the definition; the prompts [tokens] go one at a time, unpadded."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in DOWN}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, inputs, __, name=name: seen[name].append(inputs[0][0]))
        for name in DOWN
    ]
    for prompt in prompts:
        logits_of(model, prompt[None])
    for handle in handles:
        handle.remove()
    by_layer = {}
    for name, activations in seen.items():
        weight = model.get_submodule(name).weight.detach().double()
        by_layer[name] = torch.cat(activations).double().pow(2).mean(0).sqrt() * weight.pow(2).sum(0).sqrt()
    return by_layer


def padded(prompts: list[torch.Tensor], pad: int, left: bool = False) -> dict[str, torch.Tensor]:
    """A batch."""
    length = max(map(len, prompts))
    rows, mask = torch.full((len(prompts), length), pad), torch.zeros(len(prompts), length, dtype=torch.int64)
    for index, prompt in enumerate(prompts):
        part = slice(length - len(prompt), length) if left else slice(len(prompt))
        rows[index, part], mask[index, part] = prompt, 1
    return {"input_ids": rows, "attention_mask": mask}


@pytest.mark.parametrize(("case", "left"), [("llama", False), ("qwen2-tied", True)])
def test_importance(case: str, left: bool, tiny_models: TinyModels, ids: torch.Tensor) -> None:
    model = random_model(case).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prompts = [ids[0], ids[1, :3], ids[1, 3:8], ids[0, 5:6]]
    batches = [padded(prompts[:3], 5, left), padded(prompts[3:], 5)]
    expected = {name: value.argsort(descending=True).tolist() for name, value in importance(model, prompts).items()}
    for module in model.modules():  # importance is without dropout
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.5
    order = by_importance(model.train(), tiny_models.source(case).opened().elasticity, iter(batches))
    assert model.training
    model.eval()
    assert {name: columns.tolist() for name, columns in order.columns.items()} == expected
    assert order.producers == {name: producers_of(name) for name in DOWN}
    with_padding = importance(model, [row for batch in batches for row in batch["input_ids"]])
    assert all(value.argsort(descending=True).tolist() != expected[name] for name, value in with_padding.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_activations_that_are_not_finite(llama: TinySource, ids: torch.Tensor) -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.get_submodule(DOWN[0]).weight[0, 5] = torch.nan
    with pytest.raises(LonasEdgeError, match="NaN or Inf") as raised:
        by_importance(model, llama.opened().elasticity, [padded([ids[0]], 1)])
    assert all(name in str(raised.value) for name in DOWN)  # the later ones see its result


# --- an adapter with a file; every family: test_heads, test_depth


@pytest.mark.parametrize(("options", "of_space"), [({"bias": "all"}, False), ({"lora_bias": True}, False), ({}, True)])
def test_an_adapter_with_a_channel_order(options: dict, of_space, tiny_models, tmp_path, choose, materialize, ids) -> None:
    """Materialized and activated; one layer keeps the base's order."""
    columns, source = permutations(5, [DOWN[0], DOWN[2]]), tiny_models.source("llama-biased", **options)
    source = source.with_order(tmp_path, columns) if of_space else source.copied_to(tmp_path)
    stored = tiny_models.source("llama-biased", **options)
    plain = oracle_logits(stored.base, stored.adapter, stored.space, choose(stored, "unequal:1"), ids)
    if not of_space:
        save_file(columns, source.adapter / FILE)
    network = load_super_network(source.opened())
    network.model.double()
    for name in ("maximal", "unequal:1"):
        widths = choose(source, name)
        expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
        network.activate(widths)
        assert (logits_of(network.model, ids) - expected).abs().max() < EXACT, name
        assert (logits_of(load_checkpoint(materialize(source, widths), torch.float64), ids) - expected).abs().max() < EXACT, (
            name
        )
    assert (expected - plain).abs().max() > 0.1  # the order decides what is cut


def test_the_order_of_an_adapter_comes_before_that_of_its_space(llama: TinySource, tmp_path: Path) -> None:
    source = llama.with_order(tmp_path, permutations(1))
    assert source.opened().ordered_by_space
    save_file(permutations(2), source.adapter / FILE)
    opened = source.opened()
    assert not opened.ordered_by_space
    assert torch.equal(opened.order.columns[DOWN[0]], permutations(2)[DOWN[0]])


def test_an_order_of_a_space_that_does_not_fit(llama: TinySource, tmp_path: Path) -> None:
    source = llama.with_order(tmp_path, {DOWN[0]: torch.zeros(MLP, dtype=torch.int64), "model.layers.9.down": torch.arange(4)})
    with pytest.raises(LonasEdgeError, match=r"space.json: the channel order does not fit") as raised:
        source.opened()
    assert DOWN[0] in str(raised.value) and "model.layers.9.down" in str(raised.value)


@pytest.mark.parametrize("adapted", [True, False])
def test_the_space_command_orders_a_finished_model(adapted: bool, llama: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    """By importance in the merged model, for the tokens of whole texts."""
    texts = ["the cat sat", "one plus two is three", "a"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = ("--adapter", llama.adapter, "--model", llama.base) if adapted else ("--model", llama.base)
    space = tmp_path / "made.json"
    run_cli("space", *given, "--ratios", "1,.5", "--data", tmp_path / "texts.jsonl", "--output", space).ok()

    model = live(llama.base, llama.adapter if adapted else None, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(llama.base)
    task = open_data(tmp_path / "texts.jsonl", llama.opened().architecture)
    [batch] = task.batches(tokenizer, 3, 0)
    rows = [row[mask.bool()] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert len(rows) == 3 and all(any(text in tokenizer.decode(row) for row in rows) for text in texts)
    expected = importance((model.merge_and_unload() if adapted else model), rows)
    found = order_of_space(space)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        ordered = value[found[name]]
        assert (ordered[1:] <= ordered[:-1] * 1.0001).all(), name
        assert sorted(found[name].tolist()) == list(range(MLP))


def test_few_tokens_measure_the_importance(llama: TinySource, tmp_path: Path) -> None:
    """At most 8,192 tokens, of examples from the whole file; none that fits is an error."""
    tokenizer = AutoTokenizer.from_pretrained(llama.base)
    texts = [f"{index} " + "x " * (index % 3) for index in range(200)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = open_data(tmp_path / "texts.jsonl", llama.opened().architecture)
    batches = task.typical(tokenizer, 64)
    rows = [row for batch in batches for row in batch["input_ids"]]
    assert 32 <= len(rows) <= 64
    numbers = [int(tokenizer.decode(row, skip_special_tokens=True).split()[0]) for row in rows]
    assert min(numbers) < 20 and max(numbers) > 180


def test_a_super_adapter_keeps_its_order(llama: TinySource, run_cli: Callable, tmp_path: Path) -> None:
    source = llama.copied_to(tmp_path)
    save_file(permutations(2), source.adapter / FILE)
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    given = ("--adapter", source.adapter, "--model", source.base, "--data", tmp_path / "texts.jsonl")
    ran = run_cli("space", *given, "--output", tmp_path / "made.json")
    assert ran.code == 1 and "trained elastically" in ran.err and not (tmp_path / "made.json").exists()
