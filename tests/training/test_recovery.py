"""Recovery of one sub-network of a super-adapter: against plain torch and the oracle; the rest is unchanged."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import oracle_logits, read_groups
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import LAYERS, MLP, TinyModels, TinySource
from torch import nn
from training_runs import (
    ADAPTER,
    EXAMPLES,
    OPTIONS,
    ORDER,
    RECORD,
    SPACE,
    Tokens,
    active_part,
    logits_of,
    plain_base,
    tensors_of,
    write_data,
)

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.training.inputs import open_recovery
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

FEW = {"steps": 3, "warmup_steps": 0, "lr": 0.02, "template": None}


def recover(start: Path, data: Path, output: Path, widths: list[int], **changes: Any) -> dict[str, Any]:
    """Recover a sub-network; return the written record."""
    subnet = output.with_name(f"{output.name}.subnet.json")
    subnet.write_text(json.dumps({"widths": widths}))
    options = TrainOptions(**{**OPTIONS, **FEW, **changes})
    train(open_recovery(str(start), data, str(subnet)), output, options)
    return json.loads((output / RECORD).read_text())


def plain_training(
    source: TinySource, start: Path, widths: list[int], steps: int, lr: float
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The adapter after training in plain torch and PEFT, and its active part, by names in the file.

    Inactive parts are zero, so that they add nothing and get no gradient.
    """
    ranks, outputs = read_groups(source.space, widths)
    model = PeftModel.from_pretrained(plain_base(source), start, is_trainable=True)
    parts = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = name.replace(".default.", ".")
            parts[key] = parameter, active_part(key, parameter.shape, ranks, outputs)
            parameter.data *= parts[key][1]
    with torch.no_grad():  # the channels of the base, too
        for name, module in model.named_modules():
            width = outputs.get(name.removeprefix("base_model.model."))
            if width is not None:
                module.base_layer.weight[width:] = 0
    tokens = [Tokens.of(source, example) for example in EXAMPLES[:4]]
    optimizer = torch.optim.AdamW([parameter for parameter, _ in parts.values()], weight_decay=0)
    for step in range(steps):
        optimizer.zero_grad()
        losses = [example.cross_entropy(lambda ids: model(input_ids=ids, use_cache=False).logits) for example in tokens]
        (sum(losses) / sum(example.learned for example in tokens)).backward()  # type: ignore[union-attr]
        nn.utils.clip_grad_norm_([parameter for parameter, _ in parts.values()], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr / 2 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    return {name: (parameter.detach(), active) for name, (parameter, active) in parts.items()}


def test_it_is_plain_lora_on_the_narrowed_network(
    llama: TinySource, trained: Callable, tmp_path: Path, choose: Callable
) -> None:
    """Four examples are one batch, as in the plain loop."""
    start, widths = trained("llama", False), choose(llama, "unequal:5")
    data = write_data(tmp_path / "data.json", EXAMPLES[:4])
    recover(start, data, tmp_path / "out", widths, lr=0.003)
    actual, expected = tensors_of(tmp_path / "out"), plain_training(llama, start, widths, 3, 0.003)
    before = tensors_of(start)
    assert actual.keys() == expected.keys()
    for name, (tensor, active) in expected.items():
        assert (actual[name] - tensor)[active].abs().max() < 2e-5, name  # AdamW moves each by up to 6e-3
        assert (tensor - before[name])[active].abs().max() > 1e-3, name


def test_record(llama: TinySource, trained: Callable, data: Path, tmp_path: Path, choose: Callable) -> None:
    start, widths = trained("llama", True), choose(llama, "unequal:5")
    record = recover(start, data, tmp_path / "out", widths)
    made = record["recovered"]
    assert (made["super_adapter"], made["widths"], made["subnetwork"]) == (start.name, widths, "out.subnet.json")
    assert sorted(made["sha256"]) == sorted(["adapter_config.json", ADAPTER, ORDER])
    assert record["prompt"]["name"] == "question"  # the super-adapter's
    files = ["README.md", "adapter_config.json", ADAPTER, ORDER, RECORD, SPACE]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)
    for name in (SPACE, ORDER):
        assert (tmp_path / "out" / name).read_bytes() == (start / name).read_bytes()
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (tmp_path / "out" / config["base_model_name_or_path"]).resolve() == llama.base.resolve()


# a recovered adapter as SOURCE


@pytest.fixture(scope="module")
def recovered(trained: Callable, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaMA's minimal sub-network, recovered. Read-only."""
    output = tmp_path_factory.mktemp("recovered") / "recovered"
    inputs = open_recovery(str(trained("llama", True)), data, "minimal")
    train(inputs, output, TrainOptions(**{**OPTIONS, **FEW}))
    return output


def test_it_is_selected_without_being_named(recovered: Path, llama: TinySource, tmp_path: Path) -> None:
    opened, widths = open_source(str(recovered)), [values[-1] for values in llama.groups()]
    named = tmp_path / "mine.json"
    named.write_text(json.dumps({"widths": widths}))
    for choice in (None, "minimal", str(named)):
        assert (list(opened.select(choice).widths), opened.select(choice).name) == (widths, "minimal")
    for other in ("heuristic", "maximal", "random:1"):
        with pytest.raises(LonasEdgeError, match=f"fine-tuned for its minimal sub-network.*'{other}'"):
            opened.select(other)


@pytest.mark.parametrize("weight_format", [None, "int4_sym"])
def test_a_plain_lora_adapter(
    weight_format: str | None, llama: TinySource, data: Path, tmp_path: Path, materialize: Callable, ids: torch.Tensor
) -> None:
    inputs = open_recovery(str(llama.adapter), data, None, str(llama.base))
    assert inputs.nncf_config is None
    options = TrainOptions(**{**OPTIONS, **FEW, "weight_format": weight_format})
    record = train(inputs, tmp_path / "out", options)
    assert record is not None and record.recovered is not None
    assert (record.search_space, record.recovered.super_adapter, record.recovered.widths) == (None, llama.adapter.name, ())
    opened = open_source(str(tmp_path / "out"))
    assert opened.select().name == opened.select("maximal").name == "maximal"
    assert opened.trained_as == weight_format
    before, after = (
        logits_of(PeftModel.from_pretrained(plain_base(llama), str(folder)), ids)
        for folder in (llama.adapter, tmp_path / "out")
    )
    assert (after - before).abs().max() > 1e-2, "something was learned"
    assert (logits_of(load_checkpoint(materialize(opened, [])), ids) - after).abs().max() < 1e-4
    assert record.losses[-1].loss < record.losses[0].loss
    card = (tmp_path / "out/README.md").read_text()
    assert f"started from `{llama.adapter.name}`" in card and "lonas," not in card


def test_the_channel_order_of_a_search_space(
    llama: TinySource, data: Path, tmp_path: Path, choose: Callable, materialize: Callable, ids: torch.Tensor
) -> None:
    """A plain adapter is pruned in the order of `space --data`, and the result keeps that order."""
    widths = choose(llama, "unequal:5")
    columns = {f"model.layers.{layer}.mlp.down_proj": torch.arange(MLP).flip(0).roll(layer) for layer in range(LAYERS)}
    source = llama.with_order(tmp_path, columns)
    subnet = tmp_path / "subnet.json"
    subnet.write_text(json.dumps({"widths": widths}))
    inputs = open_recovery(str(source.adapter), data, str(subnet), str(source.base), source.space)
    train(inputs, tmp_path / "out", TrainOptions(**{**OPTIONS, **FEW, "steps": 1, "lr": 1e-6}))

    kept = load_file(tmp_path / "out" / ORDER)
    assert kept.keys() == columns.keys() and all(torch.equal(kept[name], columns[name]) for name in columns)
    expected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    stored = oracle_logits(llama.base, llama.adapter, llama.space, widths, ids)
    recovered = logits_of(load_checkpoint(materialize(open_source(str(tmp_path / "out")), widths), torch.float64), ids)
    assert (recovered - expected).abs().max() < 1e-3 < 0.1 < (recovered - stored).abs().max()


# refused


def test_no_adapter(llama: TinySource, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=rf"{llama.base}: is a base model. Pass --nncf-config and --subnet"):
        open_recovery(str(llama.base), data)
    with pytest.raises(LonasEdgeError, match="no such directory"):
        open_recovery(str(tmp_path / "none"), data)
    with pytest.raises(LonasEdgeError, match=r"no search space, so there is no sub-network .* but the maximal one"):
        open_recovery(str(llama.adapter), data, "heuristic", str(llama.base))


def test_an_adapter_with_more_than_factors(tiny_models: TinyModels, data: Path) -> None:
    base, space = tiny_models.base("llama-biased"), tiny_models.space("llama-biased")
    adapter = tiny_models.adapter("llama-biased", bias="all")
    with pytest.raises(LonasEdgeError, match=r"--from trains LoRA factors and[\s\S]*bias = 'all'"):
        open_recovery(str(adapter), data, "minimal", str(base), space)
