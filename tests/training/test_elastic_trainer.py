"""One step: loss and gradients against plain PEFT."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracle import read_groups, read_removed
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from tiny_models import CASES, TinyModels, TinySource, families, has_heads, mlp_names, unused_layers
from torch import nn
from training_runs import EOS, EXAMPLES, Tokens, active_part, plain_base
from transformers import TrainingArguments

from lonas_edge.data.encoding import collate_tokens
from lonas_edge.network.modeling import repair
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.elastic_trainer import ElasticTrainer

_READS_HEADS = {"q_proj": "o_proj", "k_proj": "o_proj", "v_proj": "o_proj", "qkv_proj": "o_proj", "query_key_value": "dense"}


def elastic_trainer(source: TinySource, widths: list[int], folder: Path) -> ElasticTrainer:
    """The trainer on the tiny adapter in float64; every step trains the given sub-network."""
    base, elasticity = plain_base(source, torch.float64), source.opened().elasticity
    repair(base, elasticity.architecture.family)  # as `load_model` does
    model = PeftModel.from_pretrained(base, source.adapter, is_trainable=True, autocast_adapter_dtype=False).to(torch.float64)
    network = SuperNetwork(model, elasticity)
    schedule = SimpleNamespace(subnetwork=lambda _step: tuple(widths))
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", remove_unused_columns=False)
    return ElasticTrainer(network, schedule, args=arguments)


def of_kept_heads(kind: str, width: int, whole: int, size: int) -> torch.Tensor:
    """Rows, of `size`, of an attention layer that belong to the first `width` of `whole` channels."""
    if kind == "qkv_proj":  # q, k and v one after the other; k and v share what q does not have
        shared = (size - whole) // 2
        starts = ((0, whole), (whole, shared), (whole + shared, shared))
        return torch.cat([start + torch.arange(own * width // whole) for start, own in starts])
    return torch.arange(size * width // whole)  # fused as [heads, 3, head_dim], too


def cut_among(mlp: nn.Module, width: int) -> None:
    """Let a sparse MLP of Gemma 3n cut its gate at a mean over the first channels."""
    if stock := getattr(type(mlp), "_gaussian_topk", None):
        mlp._gaussian_topk = lambda gate: nn.functional.pad(stock(mlp, gate[..., :width]), (0, gate.shape[-1] - width))


# removed heads and blocks, of three groups each; only blocks for families without elastic heads
@pytest.mark.parametrize(("heads", "depth"), [((-1, 0, -1), [0, 1, 1]), ((0, -1, 0), [1, 0, 0])])
@pytest.mark.parametrize("case", families(*(name for name in CASES if not name.endswith("-tied"))))
def test_gradients_of_heads_and_blocks(
    case: str, heads: tuple[int, ...], depth: list[int], tiny_models: TinyModels, choose: Callable, tmp_path: Path
) -> None:
    """Plain PEFT on a base in which the columns that read removed channels, and the outputs of removed blocks, are zero."""
    source = tiny_models.heads_source(case) if has_heads(case) else tiny_models.deep_source(case)
    widths = choose(tiny_models.source(case), "unequal:11")
    widths += [group[level] for group, level in zip(source.groups()[9:-3], heads, strict=False)] + depth
    tokens = [Tokens.of(source, example) for example in EXAMPLES[:6]]
    trainer = elastic_trainer(source, widths, tmp_path)
    batch = collate_tokens([each.for_training() for each in tokens], EOS)
    trainer.training_step(trainer.network.model, batch, sum(each.learned for each in tokens))

    reference = PeftModel.from_pretrained(
        plain_base(source, torch.float64), source.adapter, is_trainable=True, autocast_adapter_dtype=False
    ).to(torch.float64)
    ranks, outputs = read_groups(source.space, widths)
    modules = reference.get_base_model().named_modules()
    base = {name: module for name, module in modules if isinstance(module, nn.Linear | LoraLinear)}
    attention = {name: outputs.pop(name) for name in list(outputs) if name.rpartition(".")[2] in _READS_HEADS}

    def active(name: str, shape: torch.Size) -> torch.Tensor:
        part = active_part(name, shape, ranks, outputs)
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if layer in attention and factor.startswith("B"):
            path, _, kind = layer.rpartition(".")
            whole = base[f"{path}.{_READS_HEADS[kind]}"].in_features
            rows = of_kept_heads(kind, attention[layer], whole, shape[0])
            part[[row for row in range(shape[0]) if row not in set(rows.tolist())]] = False
        return part

    removed = read_removed(source.space, widths)
    parameters = {name: parameter for name, parameter in reference.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter[~active(name, parameter.shape)] = 0
        for name, width in attention.items():
            path, _, kind = name.rpartition(".")
            base[f"{path}.{_READS_HEADS[kind]}"].weight[:, width:] = 0
        for name, width in outputs.items():
            path = name.rpartition(".")[0]
            base[f"{path}.{mlp_names(case)[1]}"].weight[:, width:] = 0
            cut_among(reference.get_base_model().get_submodule(path), width)
        for name, layer in base.items():
            if name.rpartition(".")[0] in removed and name.endswith((*_READS_HEADS.values(), mlp_names(case)[1], "out_proj")):
                for parameter in layer.parameters():  # the adapter's, too
                    parameter.zero_()
    loss = sum(t.cross_entropy(lambda ids: reference(input_ids=ids).logits) for t in tokens)
    (loss / sum(t.learned for t in tokens)).backward()

    trained = {name: p for name, p in trainer.network.model.named_parameters() if p.requires_grad}
    assert trained.keys() == parameters.keys()
    for name, parameter in trained.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if any(f".{module}." in name for module in (*removed, *unused_layers(case))):
            assert not gradient.any(), name
            continue
        inside, expected = active(name, parameter.shape), parameters[name].grad
        assert (gradient - expected)[inside].abs().max() < 1e-5, name
        assert expected[inside].abs().max() > 1e-4, name
        assert not gradient[~inside].any(), name
