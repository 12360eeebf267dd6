"""Reconstruction against least squares in plain torch; corrected networks against the oracle on a changed base."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import merge, oracle_logits, read_groups
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB, TinyModels, TinySource, families, has_heads, mlp_consumers
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.network import reconstruction
from lonas_edge.network.correction import Correction
from lonas_edge.network.materialize import MaterializedModel, write_weights
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.reconstruction import cut_consumers, reconstruct

SHRINKAGE = 0.05


@pytest.fixture(scope="module")
def batches() -> list[dict[str, torch.Tensor]]:
    """Two batches [prompts, tokens], the second one padded on the right."""
    draw = torch.Generator().manual_seed(5)
    made = []
    for rows, length in ((6, 12), (4, 9)):
        ids = torch.randint(2, VOCAB, (rows, length), generator=draw)
        mask = torch.ones_like(ids)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids, "logits_to_keep": torch.arange(length)})
    made[1]["attention_mask"][:2, 6:] = 0
    return made


def plain(source: TinySource, ranks: dict[str, int]) -> Any:
    """The base with the merged adapter, at its first ranks; float64, channels in the base's order."""
    model = AutoModelForCausalLM.from_pretrained(source.base, dtype=torch.float64).eval()
    with torch.no_grad():
        merge(dict(model.named_parameters()), source.adapter, ranks)
    return model


def inputs_of(model: Any, layer: str, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The inputs of a layer, [tokens, in]."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    handle.remove()
    return torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(seen, batches, strict=True)])


def least_squares(whole: Any, cut: Any, layer: str, kept: torch.Tensor, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The change of a weight by the definition: rows of data, and below them those of the regularization."""
    x = inputs_of(whole, layer, batches)
    wanted, own = (model.get_submodule(layer).weight.detach() for model in (whole, cut))
    pull = (SHRINKAGE * x.square().sum(0).mean()).sqrt()
    left = torch.cat([x[:, kept], pull * torch.eye(len(kept), dtype=x.dtype)])
    right = torch.cat([x @ wanted.T, pull * own[:, kept].T])
    return torch.linalg.lstsq(left, right).solution.T - own[:, kept]


@pytest.mark.parametrize("case", families())
def test_the_change_is_that_of_least_squares(case: str, tiny_models: TinyModels, batches: Any, tmp_path: Path) -> None:
    """MLPs, heads and ranks narrowed, blocks removed."""
    with_heads = has_heads(case)
    source = tiny_models.heads_source(case) if with_heads else tiny_models.deep_source(case)
    groups = source.groups()
    widths = [group[index % len(group)] for index, group in enumerate(groups[:-3])]
    widths = [*([*widths[:9], groups[9][-1], groups[10][-1], groups[11][0]] if with_heads else widths), 1, 0, 1]
    model = MaterializedModel(source.opened(), source.subnetwork(widths, "test"))
    solution = reconstruct(model, batches, batches, tmp_path, SHRINKAGE)
    ranks, _ = read_groups(source.space, widths)
    whole, cut = plain(source, {}), plain(source, ranks)
    assert solution.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert list(solution.correction.deltas) == list(cut_consumers(model.subnetwork))
    size = sum(delta.nbytes for delta in solution.correction.deltas.values())
    assert reconstruction.correction_bytes(model.subnetwork) == size
    assert any("mlp" in name for name in solution.correction.deltas)
    assert any("att" in name for name in solution.correction.deltas) == with_heads
    for name, delta in solution.correction.deltas.items():
        expected = least_squares(whole, cut, name, torch.arange(delta.shape[1]), batches)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(delta.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_ranks_that_the_consumer_lacks(llama: TinySource, batches: Any, tmp_path: Path) -> None:
    """Where a space narrows the adapter of `down_proj` itself, the effect of its last ranks is reconstructed, too."""
    space = json.loads(llama.space.read_text())
    groups = space["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    of_mlp = [group for group in groups if "gate_proj" in group[0] and "lora_A" in group[0]]
    assert len(of_mlp) == 3
    for group in of_mlp:
        group.append(group[0].replace("gate_proj", "down_proj"))
    (tmp_path / "space.json").write_text(json.dumps(space))
    source = replace(llama, space=tmp_path / "space.json")
    widths = [8, 8, 8, 96, 96, 96, 6, 6, 6]
    model = MaterializedModel(source.opened(), source.subnetwork(widths, "test"))
    solution = reconstruct(model, batches, batches, tmp_path, SHRINKAGE)
    ranks, _ = read_groups(source.space, widths)
    assert {ranks[name] for name in mlp_consumers("llama")} == {6}
    whole, cut = plain(source, {}), plain(source, ranks)
    for name, delta in solution.correction.deltas.items():
        expected = least_squares(whole, cut, name, torch.arange(96), batches)
        torch.testing.assert_close(delta.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def ordered(source: TinySource, folder: Path) -> TinySource:
    """The same, with the channels of its MLPs in a random order; files keep the base's."""
    copy = source.copied_to(folder)
    draw = torch.Generator().manual_seed(8)
    weights = dict(plain(source, {}).named_parameters())
    order = {name: torch.randperm(weights[f"{name}.weight"].shape[1], generator=draw) for name in mlp_consumers(source.case)}
    save_file(order, copy.adapter / "channel_order.safetensors")
    return copy


def changed_base(source: TinySource, correction: Correction, folder: Path) -> Path:
    """The base with the changes added to it; a column of a change is a channel in the super-network's order."""
    shutil.copytree(source.base, folder)
    tensors, file = load_file(folder / "model.safetensors"), source.adapter / "channel_order.safetensors"
    order = load_file(file) if file.exists() else {}
    for name, delta in correction.deltas.items():
        weight = tensors[f"{name}.weight"]
        weight[:, order.get(name, torch.arange(weight.shape[1]))[: delta.shape[1]]] += delta
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("case", "reorder"), [("llama", True), ("phi3", False)])
def test_a_corrected_network_equals_the_changed_base(
    case: str, reorder: bool, tiny_models: TinyModels, choose: Callable, batches: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    source = ordered(tiny_models.source(case), tmp_path) if reorder else tiny_models.source(case)
    widths = choose(source, "unequal:2")
    plainly = MaterializedModel(source.opened(), source.subnetwork(widths, "test"))
    solution = reconstruct(plainly, batches, batches, tmp_path, SHRINKAGE)
    model = MaterializedModel(plainly.source, plainly.subnetwork, solution.correction)
    (tmp_path / "out").mkdir()
    write_weights(model, tmp_path / "out", torch.float32)
    (tmp_path / "out/config.json").write_text(json.dumps(model.config()))

    changed = changed_base(source, solution.correction, tmp_path / "changed")
    expected = oracle_logits(changed, source.adapter, source.space, widths, ids)
    uncorrected = oracle_logits(source.base, source.adapter, source.space, widths, ids)
    assert (expected - uncorrected).abs().max() > 1e-2
    with torch.no_grad():
        answers = load_checkpoint(tmp_path / "out", torch.float64)(input_ids=ids).logits
    assert (answers - expected).abs().max() < 1e-4
    activated = verify.super_network_logits(model, {"input_ids": ids})
    assert (activated - expected).abs().max() < 1e-4
    assert (activated - verify.materialized_logits(model, {"input_ids": ids})).abs().max() < 1e-8


def test_the_kl_before_and_after(tiny_models: TinyModels, choose: Callable, batches: Any, tmp_path: Path) -> None:
    """By the definition, from networks of plain torch; on its own data the reconstruction lowers it."""
    source = tiny_models.source("llama")
    widths, scratch = choose(source, "heuristic"), tmp_path / "scratch"
    scratch.mkdir()
    model = MaterializedModel(source.opened(), source.subnetwork(widths, "test"))
    solution = reconstruct(model, batches[:1], batches[:1], scratch, 1e-3)
    assert solution.after < solution.before
    ids = batches[0]["input_ids"]
    with torch.no_grad():
        whole = plain(source, {})(input_ids=ids).logits.log_softmax(-1)
    for base, kl in (
        (source.base, solution.before),
        (changed_base(source, solution.correction, tmp_path / "changed"), solution.after),
    ):
        cut = oracle_logits(base, source.adapter, source.space, widths, ids).log_softmax(-1)
        assert kl == pytest.approx((whole.exp() * (whole - cut)).sum(-1).mean().item(), rel=1e-2)


def test_inputs_that_are_not_finite(llama_copy: TinySource, choose: Callable, batches: Any, tmp_path: Path) -> None:
    weights = load_file(llama_copy.base / "model.safetensors")
    weights["model.embed_tokens.weight"][:] = torch.nan
    save_file(weights, llama_copy.base / "model.safetensors", {"format": "pt"})
    model = MaterializedModel(llama_copy.opened(), llama_copy.subnetwork(choose(llama_copy, "minimal"), "minimal"))
    with pytest.raises(LonasEdgeError) as error:
        reconstruct(model, batches, batches, tmp_path)
    assert all(f"{name}: its input holds NaN or Inf" in str(error.value) for name in mlp_consumers("llama"))


def test_moments_that_are_singular(llama: TinySource, choose: Callable, batches: Any, tmp_path: Path) -> None:
    """A negative regularization makes every matrix indefinite; the layers are named."""
    model = MaterializedModel(llama.opened(), llama.subnetwork(choose(llama, "minimal"), "minimal"))
    with pytest.raises(LonasEdgeError, match=rf"{mlp_consumers('llama')[0]}: the second moments of its input are singular"):
        few = [{name: value[:1] for name, value in batches[0].items() if name != "logits_to_keep"}]
        reconstruct(model, few, batches, tmp_path, -0.5)
