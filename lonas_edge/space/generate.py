"""Write a search space for a supported model, in the published NNCF format and group order."""

from collections.abc import Sequence
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import GroupKind, key_value_heads
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.complexity import DEFAULT_SEQUENCE_LENGTH
from lonas_edge.space.search_space import EXTENSION, EXTENSION_VERSION, Role

DEFAULT_RATIOS = (1, 0.875, 0.75, 0.625, 0.5)
DEFAULT_RANKS = (32, 28)


def generate_space(
    architecture: Architecture,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    ranks: Sequence[int] = DEFAULT_RANKS,
    seq_len: int = DEFAULT_SEQUENCE_LENGTH,
    blocks: Sequence[str] = (),
    heads: bool = False,
) -> dict[str, Any]:
    """Generate a search space: the published groups of LLaMA-7B, or what they are in another family.

    Groups, in order: the shared rank of each layer's q, k, v; the width of each MLP; the shared rank of what widens it; the
    heads of each attention; each block that may be left out, in the section of our own (see `search_space`).

    Args:
        architecture: The model.
        ratios: Admissible widths of the MLP as shares of the full one; made whole numbers.
        ranks: Admissible ranks.
        seq_len: The sequence length that sizes are counted at.
        blocks: Module paths of the blocks that may be left out.
        heads: Whether heads are elastic, at the same shares as the MLP, query heads with the key-value head they share.

    Returns:
        The NNCF configuration, ready for `json.dump`.

    Raises:
        LonasEdgeError: If a ratio is not in (0, 1], widths or ranks coincide, or heads cannot be elastic.
    """
    problems = [f"ratio {ratio:g}: expected more than 0 and at most 1" for ratio in ratios if not 0 < ratio <= 1]
    problems += [f"rank {rank}: expected at least 1" for rank in ranks if rank < 1]
    if heads and architecture.family.head_rule is None:
        problems.append(f"the heads of {architecture.model_type} cannot be elastic: {architecture.family.refused_heads}")
    elif heads and key_value_heads(architecture.config) == 1:
        problems.append("all heads share one key-value head: there are no heads to choose from")
    raise_all("The search space cannot be generated:", problems)
    groups: list[list[str]] = []
    widths: list[list[int]] = []
    rule = architecture.family.head_rule if heads else None
    for kind in (*architecture.family.generated_groups, *([GroupKind(rule)] if rule else [])):
        names, roles, values = _kind(architecture, kind, ratios, ranks)
        for layer in range(architecture.config.num_hidden_layers):
            groups.append([node_name(architecture, layer, name, role) for name in names for role in roles])
            widths.append(values)
    content = _configuration(groups, widths, seq_len)
    if blocks:
        training = content["bootstrapNAS"]["training"]
        training["elasticity"][EXTENSION] = {"version": EXTENSION_VERSION, "blocks": [[block] for block in blocks]}
        training["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
    return content


def _kind(
    architecture: Architecture, kind: GroupKind, ratios: Sequence[float], ranks: Sequence[int]
) -> tuple[tuple[str, ...], tuple[Role, ...], list[int]]:
    """Members, their roles and the values of one kind of group."""
    if kind.rule is None:
        return kind.layers, ("lora_A",), _falling(ranks, "ranks")
    full, unit = kind.rule.full(architecture.config), kind.rule.unit(architecture.config)
    if unit > 1:
        shares = {max(1, int(full // unit * ratio)) for ratio in ratios}
        return kind.rule.producers, ("base", "lora_B"), _falling([unit * share for share in shares], "numbers of heads")
    values = _falling([int(full * ratio) for ratio in ratios], f"widths of {kind.rule.config_field} {full}")
    return kind.rule.producers, ("base", "lora_B"), values


def node_name(architecture: Architecture, layer: int, module: str, role: Role) -> str:
    """The name NNCF 2.x gave a weight of a PEFT model with an adapter on `module`.

    Args:
        architecture: The model.
        layer: Index of the decoder layer.
        module: Path relative to it, as `mlp.gate_proj`.
        role: The frozen weight, or a factor of the adapter.

    Returns:
        The node name.
    """
    ending = "NNCFUserSelfLinear[self_linear]" if role == "base" else f"ModuleDict[{role}]/NNCFLinear[default]"
    return architecture.family.node_name(architecture.model_type, layer, module, ending)


def _falling(values: Sequence[int], what: str) -> list[int]:
    ordered = sorted(values, reverse=True)
    if len(set(ordered)) != len(ordered) or ordered[-1] < 1:
        raise LonasEdgeError(f"The {what} must differ and be at least 1; found {ordered}. Choose other ratios or ranks.")
    return ordered


def _configuration(groups: list[list[str]], widths: list[list[int]], seq_len: int) -> dict[str, Any]:
    shape = {"sample_size": [1, seq_len], "type": "long"}
    stage = {
        "train_dims": ["width"],
        "epochs": 6,
        "depth_indicator": 1,
        "width_indicator": max(map(len, widths)),
        "init_lr": 3e-4,
        "epochs_lr": 6,
        "sample_rate": 1,
    }
    no_adaptation = {"num_bn_adaptation_samples": 0}
    return {
        "input_info": [{**shape, "keyword": "input_ids"}, {**shape, "keyword": "attention_mask"}],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "frozen_layers_allowed": True,
                "progressivity_of_elasticity": ["width"],
                "batchnorm_adaptation": no_adaptation,
                "schedule": {"list_stage_descriptions": [stage]},
                "elasticity": {
                    "available_elasticity_dims": ["width"],
                    "width": {"overwrite_groups": groups, "overwrite_groups_widths": widths},
                },
            },
            "search": {
                "algorithm": "NSGA2",
                "batchnorm_adaptation": no_adaptation,
                "num_evals": 200,
                "population": 8,
                "ref_acc": 0.45,
                "acc_delta": 0.01,
            },
        },
    }
