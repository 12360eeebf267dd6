"""One step: loss and gradients against plain PEFT on the sliced model, and by hand."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import oracle_logits, read_groups, read_removed
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from tiny_models import CASES, OTHER_TARGETS, TARGETS, TinyModels, TinySource, families, has_heads, mlp_names, random_model
from torch import nn
from training_runs import (
    EOS,
    EXAMPLES,
    Tokens,
    active_part,
    cross_entropy,
    divergence,
    logits_of,
    plain_base,
    rows_of,
    tensors_of,
)
from transformers import TrainingArguments

from lonas_edge.data.encoding import Collator
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.elastic_trainer import ElasticTrainer

_READS_HEADS = {"q_proj": "o_proj", "k_proj": "o_proj", "v_proj": "o_proj", "qkv_proj": "o_proj", "query_key_value": "dense"}


def elastic_trainer(source: TinySource, widths: list[int], folder: Path, teacher: Any = None) -> ElasticTrainer:
    """The trainer on the tiny adapter in float64; every step trains the given sub-network."""
    model = PeftModel.from_pretrained(
        plain_base(source, torch.float64), source.adapter, is_trainable=True, autocast_adapter_dtype=False
    ).to(torch.float64)
    network = SuperNetwork(model, source.opened().elasticity)
    schedule = SimpleNamespace(subnetwork=lambda _step: tuple(widths))
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", remove_unused_columns=False)
    return ElasticTrainer(network, schedule, teacher=teacher, args=arguments)


def step(trainer: ElasticTrainer, tokens: list[Tokens], learned: int | None = None) -> float:
    """Forward and backward of a batch; `learned` tokens are in the whole optimizer step, all of them here when None."""
    batch = Collator(EOS)([t.for_training() for t in tokens])
    return trainer.training_step(trainer.network.model, batch, learned or sum(t.learned for t in tokens)).item()


def sliced_peft(source: TinySource, widths: list[int]) -> PeftModel:
    """The sub-network as a smaller Hugging Face model with a plain, unmerged PEFT adapter on it, in float64."""
    ranks, outputs = read_groups(source.space, widths)
    model, (producers, consumer) = plain_base(source, torch.float64), mlp_names(source.case)
    for name, module in list(model.named_modules()):
        path, _, kind = name.rpartition(".")
        if kind not in (*producers, consumer):
            continue
        rows = rows_of(kind, outputs.get(name), module.out_features)
        weight = module.weight.detach()[rows, : outputs[f"{path}.{producers[0]}"] if kind == consumer else None]
        small = nn.Linear(weight.shape[1], weight.shape[0], module.bias is not None, dtype=torch.float64)
        small.weight.data = weight.clone()
        if module.bias is not None:
            small.bias.data = module.bias.detach()[rows].clone()
        model.get_submodule(path)._modules[kind] = small
    targets = OTHER_TARGETS.get(model.config.model_type, TARGETS)
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern=dict(ranks), target_modules=list(targets))
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    tensors = tensors_of(source.adapter)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            whole = tensors[name.replace(".default.", ".")]
            part = whole[active_part(name.replace(".default.", "."), whole.shape, ranks, outputs)]
            parameter.data = part.reshape(parameter.shape).double().clone()
    for module in peft.modules():
        if isinstance(module, LoraLinear):
            module.scaling["default"] = 16 / 8  # that of the whole adapter, whatever the rank
    return peft.train()


@pytest.mark.parametrize("case", families())
def test_gradients_equal_plain_peft_on_the_sliced_model(
    case: str, tiny_models: TinyModels, choose: Callable, tmp_path: Path
) -> None:
    source = tiny_models.source(case)
    widths = choose(source, "unequal:11")
    assert len(set(widths[3:6])) == 3
    tokens = [Tokens.of(source, example) for example in EXAMPLES[:6]]
    trainer = elastic_trainer(source, widths, tmp_path)
    step(trainer, tokens)

    reference = sliced_peft(source, widths)
    loss = sum(t.cross_entropy(lambda ids: reference(input_ids=ids, use_cache=False).logits) for t in tokens)
    (loss / sum(t.learned for t in tokens)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in trainer.network.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    layers, smaller = len(found) // 2, 0
    assert layers == 3 * len(OTHER_TARGETS.get(reference.config.model_type, TARGETS))
    groups = read_groups(source.space, widths)
    for name, gradient in found.items():
        inside = active_part(name, gradient.shape, *groups)
        assert (gradient[inside] - expected[name].flatten()).abs().max() < 1e-5, name
        assert expected[name].abs().max() > 1e-4, name
        assert not gradient[~inside].any(), name
        smaller += expected[name].shape != gradient.shape
    assert smaller > layers / 2
    assert all(p.grad is None for p in trainer.network.model.parameters() if not p.requires_grad)


def of_kept_heads(kind: str, width: int, whole: int, size: int) -> torch.Tensor:
    """Which of the `size` rows of a layer of attention are of the heads whose `width` of `whole` channels reach the output."""
    if kind == "qkv_proj":  # q, k and v one after the other; k and v share what q does not have
        shared = (size - whole) // 2
        starts = ((0, whole), (whole, shared), (whole + shared, shared))
        return torch.cat([start + torch.arange(own * width // whole) for start, own in starts])
    return torch.arange(size * width // whole)  # fused as [heads, 3, head_dim], too


# heads and blocks that are out, of three groups each; where the heads of a family are no dimension, blocks alone
@pytest.mark.parametrize(("heads", "depth"), [((-1, 0, -1), [0, 1, 1]), ((0, -1, 0), [1, 0, 0])])
@pytest.mark.parametrize("case", families(*(name for name in CASES if not name.endswith("-tied"))))
def test_gradients_of_heads_and_blocks(
    case: str, heads: tuple[int, ...], depth: list[int], tiny_models: TinyModels, choose: Callable, tmp_path: Path
) -> None:
    """Plain PEFT on a base in which what is out adds nothing: the columns that read it are zero, and what it writes."""
    source = tiny_models.heads_source(case) if has_heads(case) else tiny_models.deep_source(case)
    widths = choose(tiny_models.source(case), "unequal:11")
    widths += [group[place] for group, place in zip(source.groups()[9:-3], heads, strict=False)] + depth
    tokens = [Tokens.of(source, example) for example in EXAMPLES[:6]]
    trainer = elastic_trainer(source, widths, tmp_path)
    step(trainer, tokens)

    reference = PeftModel.from_pretrained(
        plain_base(source, torch.float64), source.adapter, is_trainable=True, autocast_adapter_dtype=False
    ).to(torch.float64)
    ranks, outputs = read_groups(source.space, widths)
    base = {name: one for name, one in reference.get_base_model().named_modules() if isinstance(one, nn.Linear | LoraLinear)}
    attention = {name: outputs.pop(name) for name in list(outputs) if name.rpartition(".")[2] in _READS_HEADS}

    def active(name: str, shape: torch.Size) -> torch.Tensor:
        found = active_part(name, shape, ranks, outputs)
        layer, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if layer in attention and factor.startswith("B"):
            path, _, kind = layer.rpartition(".")
            whole = base[f"{path}.{_READS_HEADS[kind]}"].in_features
            rows = of_kept_heads(kind, attention[layer], whole, shape[0])
            found[[row for row in range(shape[0]) if row not in set(rows.tolist())]] = False
        return found

    out = read_removed(source.space, widths)
    parameters = {name: one for name, one in reference.named_parameters() if one.requires_grad}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter[~active(name, parameter.shape)] = 0
        for name, width in attention.items():
            path, _, kind = name.rpartition(".")
            base[f"{path}.{_READS_HEADS[kind]}"].weight[:, width:] = 0
        for name, width in outputs.items():
            base[f"{name.rpartition('.')[0]}.{mlp_names(case)[1]}"].weight[:, width:] = 0
        for name, layer in base.items():
            if name.rpartition(".")[0] in out and name.endswith((*_READS_HEADS.values(), mlp_names(case)[1])):
                for parameter in layer.parameters():  # the adapter's, too
                    parameter.zero_()
    loss = sum(t.cross_entropy(lambda ids: reference(input_ids=ids, use_cache=False).logits) for t in tokens)
    (loss / sum(t.learned for t in tokens)).backward()

    found = {name: one for name, one in trainer.network.model.named_parameters() if one.requires_grad}
    assert found.keys() == parameters.keys()
    for name, parameter in found.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if any(f".{block}." in name for block in out):
            assert not gradient.any(), name
            continue
        inside, expected = active(name, parameter.shape), parameters[name].grad
        assert (gradient - expected)[inside].abs().max() < 1e-5, name
        assert expected[inside].abs().max() > 1e-4, name
        assert not gradient[~inside].any(), name


def test_loss_of_a_step(llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """Averaged over the learned tokens of examples of unequal length, padded in one batch."""
    widths = choose(llama, "unequal:4")
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:6]]
    assert len({t.learned for t in tokens}) >= 3
    trainer = elastic_trainer(llama, widths, tmp_path)
    found = step(trainer, tokens)
    expected = cross_entropy(tokens, lambda ids: oracle_logits(llama.base, llama.adapter, llama.space, widths, ids))
    assert found == pytest.approx(expected, abs=1e-5)
    # with the tokens of the whole optimizer step, of which this micro-batch has a part
    assert step(trainer, tokens, 200) == pytest.approx(expected * sum(t.learned for t in tokens) / 200, abs=1e-5)


@pytest.mark.parametrize("name", ["maximal", "unequal:4"])
def test_loss_and_gradients_with_a_frozen_teacher(name: str, llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """Half cross-entropy, half KL(teacher ‖ network), for the maximal network, too; the teacher stays as it is."""
    teacher, widths = random_model("llama", seed=5).double(), choose(llama, name)
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:5]]
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    trainer = elastic_trainer(llama, widths, tmp_path, teacher)
    loss = step(trainer, tokens)

    def network(ids: torch.Tensor) -> torch.Tensor:
        return oracle_logits(llama.base, llama.adapter, llama.space, widths, ids)

    kl = divergence(tokens, lambda ids: logits_of(teacher, ids), network)
    assert kl > 0.01
    assert loss == pytest.approx(0.5 * cross_entropy(tokens, network) + 0.5 * kl, abs=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for key, parameter in trainer.network.model.named_parameters():
        if parameter.requires_grad:
            active = active_part(key, parameter.shape, *read_groups(llama.space, widths))
            assert parameter.grad[active].any() and not parameter.grad[~active].any()
