"""Write a search space for a supported model, in the published NNCF format and group order."""

from collections.abc import Sequence
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import GroupKind, key_value_heads
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.search_space import EXTENSION, EXTENSION_VERSION, Role

DEFAULT_RATIOS = (1, 0.875, 0.75, 0.625, 0.5)


def generate_space(
    architecture: Architecture,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    ranks: Sequence[int] | None = None,
    seq_len: int | None = None,
    blocks: Sequence[str] = (),
    heads: bool = False,
) -> dict[str, Any]:
    """Generate a search space: the published groups of LLaMA-7B, or what they are in another family.

    Groups, in order: the shared rank of each layer's q, k, v; the width of each MLP; the shared rank of what widens it; the
    heads of each attention; each block that may be left out, in the section of our own (see `search_space`). BERT's, as
    published: the heads of each attention; the shared rank of queries and values; the width of each MLP.

    Args:
        architecture: The model.
        ratios: Admissible widths of the MLP as shares of the full one; made whole numbers.
        ranks: Admissible ranks; those of the family's published spaces when None.
        seq_len: The sequence length that sizes are counted at; that of the task's published spaces when None.
        blocks: Module paths of the blocks that may be left out.
        heads: Whether heads are elastic where published spaces do not have them so, at the same shares as the MLP, query heads
            with the key-value head they share.

    Returns:
        The NNCF configuration, ready for `json.dump`.

    Raises:
        LonasEdgeError: If a ratio is not in (0, 1], widths or ranks coincide, or heads cannot be elastic.
    """
    family = architecture.family
    ranks = family.generated_ranks if ranks is None else ranks
    problems = [f"ratio {ratio:g}: expected more than 0 and at most 1" for ratio in ratios if not 0 < ratio <= 1]
    problems += [f"rank {rank}: expected at least 1" for rank in ranks if rank < 1]
    if heads and family.head_rule is None:
        problems.append(f"the heads of {architecture.model_type} cannot be elastic: {family.refused_heads}")
    elif heads and key_value_heads(architecture.config) == 1:
        problems.append("all heads share one key-value head: there are no heads to choose from")
    raise_all("The search space cannot be generated:", problems)
    groups: list[list[str]] = []
    widths: list[list[int]] = []
    kinds, asked = family.generated_groups, [GroupKind(family.head_rule)] if heads else []
    for kind in (*kinds, *(kind for kind in asked if kind not in kinds)):
        members, values = _kind(architecture, kind, ratios, ranks)
        for layer in range(architecture.config.num_hidden_layers):
            groups.append([node_name(architecture, layer, name, role) for name, role in members])
            widths.append(values)
    content = _configuration(groups, widths, architecture, seq_len or family.task.sequence_length)
    if blocks:
        training = content["bootstrapNAS"]["training"]
        training["elasticity"][EXTENSION] = {"version": EXTENSION_VERSION, "blocks": [[block] for block in blocks]}
        training["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
    return content


def _kind(
    architecture: Architecture, kind: GroupKind, ratios: Sequence[float], ranks: Sequence[int]
) -> tuple[list[tuple[str, Role]], list[int]]:
    """Members, each with its role, and the values of one kind of group."""
    if kind.rule is None:
        return [(name, "lora_A") for name in kind.layers], _falling(ranks, "ranks")
    members: list[tuple[str, Role]] = []
    for name in kind.rule.producers:
        members += [(name, "base"), (name, "lora_B")] if _adapted(architecture, name) else [(name, "base")]
    full, unit = kind.rule.full(architecture.config), kind.rule.unit(architecture.config)
    if unit > 1:
        shares = {max(1, int(full // unit * ratio)) for ratio in ratios}
        return members, _falling([unit * share for share in shares], "numbers of heads")
    values = _falling([int(full * ratio) for ratio in ratios], f"widths of {kind.rule.config_field} {full}")
    return members, values


def _adapted(architecture: Architecture, module: str) -> bool:
    """Whether published adapters have something on a layer."""
    return module.rpartition(".")[2] in architecture.family.default_targets


def node_name(architecture: Architecture, layer: int, module: str, role: Role) -> str:
    """The name NNCF 2.x gave a weight of a PEFT model with adapters on the family's default targets.

    Args:
        architecture: The model.
        layer: Index of the decoder layer.
        module: Path relative to it, as `mlp.gate_proj`.
        role: The frozen weight, or a factor of the adapter.

    Returns:
        The node name.
    """
    leaf = module.rpartition(".")[2]
    if role == "base" and not _adapted(architecture, module):
        last = f"NNCFLinear[{leaf}]"
    else:
        ending = "NNCFUserSelfLinear[self_linear]" if role == "base" else f"ModuleDict[{role}]/NNCFLinear[default]"
        last = f"Linear[{leaf}]/{ending}"
    return architecture.family.node_name(architecture.model_type, layer, module, last)


def _falling(values: Sequence[int], what: str) -> list[int]:
    ordered = sorted(values, reverse=True)
    if len(set(ordered)) != len(ordered) or ordered[-1] < 1:
        raise LonasEdgeError(f"The {what} must differ and be at least 1; found {ordered}. Choose other ratios or ranks.")
    return ordered


def _configuration(
    groups: list[list[str]], widths: list[list[int]], architecture: Architecture, seq_len: int
) -> dict[str, Any]:
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
    width: dict[str, Any] = {"overwrite_groups": groups, "overwrite_groups_widths": widths}
    layers = range(architecture.config.num_hidden_layers)
    following = [node_name(architecture, i, name, "base") for i in layers for name in architecture.family.dynamic_inputs]
    width |= {"add_dynamic_inputs": following} if following else {}
    no_adaptation = {"num_bn_adaptation_samples": 0}
    return {
        "input_info": [{**shape, "keyword": name} for name in architecture.family.task.inputs],
        "bootstrapNAS": {
            "training": {
                "algorithm": "progressive_shrinking",
                "frozen_layers_allowed": True,
                "progressivity_of_elasticity": ["width"],
                "batchnorm_adaptation": no_adaptation,
                "schedule": {"list_stage_descriptions": [stage]},
                "elasticity": {
                    "available_elasticity_dims": ["width"],
                    "width": width,
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
