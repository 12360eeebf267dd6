"""Write a search space for a supported model, in the published NNCF format and group order."""

from collections.abc import Mapping, Sequence
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import GroupKind, WidthRule
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.search_space import EXTENSION, EXTENSION_VERSION, Role

DEFAULT_RATIOS = (1, 0.875, 0.75, 0.625, 0.5)
_Groups = list[tuple[list[tuple[str, Role]], list[int]]]  # members of each group, and its values


def generate_space(
    architecture: Architecture,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    ranks: Sequence[int] | None = None,
    seq_len: int | None = None,
    blocks: Sequence[str] = (),
    heads: bool = False,
    adapter: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Generate a search space: the published groups of LLaMA-7B, or the corresponding ones of another family.

    Groups, in order: the shared rank of each layer's q, k, v; the width of each MLP; the shared rank of the layers that
    widen it; the heads of each attention; each block that can be removed, in our own section (see `search_space`). BERT, as
    published: the heads of each attention; the shared rank of queries and values; the width of each MLP.

    Args:
        architecture: The model.
        ratios: MLP widths (and numbers of heads) as fractions of the full ones, rounded down.
        ranks: Elastic ranks; by default those of the family's published spaces, or the same fractions of the adapter's ranks.
        seq_len: The sequence length that sizes are counted at; that of the task's published spaces when None.
        blocks: Module paths of the blocks that can be removed.
        heads: Whether attention heads are elastic where published spaces have fixed ones.
        adapter: Rank by module path of the adapter that the space is for; ranks are elastic only where it has any. When None,
            an adapter on the published layers is assumed.

    Returns:
        The NNCF configuration, ready for `json.dump`.
    """
    family = architecture.family
    problems = [f"ratio {ratio:g}: expected more than 0 and at most 1" for ratio in ratios if not 0 < ratio <= 1]
    problems += [f"rank {rank}: expected at least 1" for rank in ranks or () if rank < 1]
    if adapter and ranks and max(ranks) > min(adapter.values()):
        problems.append(f"rank {max(ranks)}: the adapter has rank {min(adapter.values())}")
    if heads and family.head_rule is None:
        problems.append(f"the heads of {architecture.model_type} cannot be elastic: {family.refused_heads}")
    elif heads and not any(
        rule == family.head_rule and _choices(architecture, layer, rule) for layer, rule in architecture.rules
    ):
        problems.append("all heads share one key-value head: there are no heads to choose from")
    raise_all("The search space cannot be generated:", problems)
    made: _Groups = []
    kinds, asked = family.generated_groups, [GroupKind(family.head_rule)] if heads else []
    for kind in (*kinds, *(kind for kind in asked if kind not in kinds)):
        for layer in range(architecture.config.num_hidden_layers):
            if kind.rule is None:
                made += _rank_groups(architecture, kind, layer, ranks, adapter)
            elif (path := family.layer(layer), kind.rule) in architecture.rules and _choices(architecture, path, kind.rule):
                made.append(_width_group(architecture, kind.rule, layer, ratios, adapter))
    groups = [[node_name(architecture, module, role, adapter) for module, role in members] for members, _ in made]
    content = _configuration(groups, [values for _, values in made], architecture, seq_len or family.kind.sequence_length)
    if blocks:
        training = content["bootstrapNAS"]["training"]
        training["elasticity"][EXTENSION] = {"version": EXTENSION_VERSION, "blocks": [[block] for block in blocks]}
        training["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
    return content


def _rank_groups(
    architecture: Architecture, kind: GroupKind, layer: int, ranks: Sequence[int] | None, adapter: Mapping[str, int] | None
) -> _Groups:
    """Layers that share an elastic rank: one group for each rank that the adapter has on them."""
    published = architecture.family.generated_ranks
    modules = [f"{architecture.family.layer(layer)}.{name}" for name in kind.layers]
    modules = [module for module in modules if module in architecture.linears]
    if not modules:
        return []
    if adapter is None:
        return [([(module, "lora_A") for module in modules], _falling(ranks or published, "ranks"))]
    by_rank: dict[int, list[tuple[str, Role]]] = {}
    for module in modules:
        if module in adapter:
            by_rank.setdefault(adapter[module], []).append((module, "lora_A"))

    def values(rank: int) -> list[int]:
        scaled = {max(1, rank * value // max(published)) for value in published}
        return _falling(ranks or tuple(scaled), "ranks")

    return [(members, values(rank)) for rank, members in by_rank.items()]


def _choices(architecture: Architecture, layer: str, rule: WidthRule) -> bool:
    """Whether a width of the decoder layer with this path can be smaller; heads that share one key-value head cannot."""
    return rule.full(architecture.of_layer(layer)) > rule.unit(architecture.of_layer(layer))


def _width_group(
    architecture: Architecture, rule: WidthRule, layer: int, ratios: Sequence[float], adapter: Mapping[str, int] | None
) -> tuple[list[tuple[str, Role]], list[int]]:
    members: list[tuple[str, Role]] = []
    for name in rule.producers:
        module = f"{architecture.family.layer(layer)}.{name}"
        members += [(module, "base"), (module, "lora_B")] if _adapted(architecture, module, adapter) else [(module, "base")]
    own = architecture.of_layer(architecture.family.layer(layer))
    full, unit = rule.full(own), rule.unit(own)
    if unit > 1:
        shares = {max(1, int(full // unit * ratio)) for ratio in ratios}
        return members, _falling([unit * share for share in shares], "numbers of heads")
    return members, _falling([int(full * ratio) for ratio in ratios], f"widths of {rule.config_field} {full}")


def _adapted(architecture: Architecture, module: str, adapter: Mapping[str, int] | None) -> bool:
    """Whether the adapter, or else a published one, has something on a layer."""
    return module.rpartition(".")[2] in architecture.family.default_targets if adapter is None else module in adapter


def node_name(architecture: Architecture, module: str, role: Role, adapter: Mapping[str, int] | None = None) -> str:
    """Return the NNCF 2.x name of a weight of a PEFT model."""
    layer, relative = architecture.split(module)
    leaf = module.rpartition(".")[2]
    if role == "base" and not _adapted(architecture, module, adapter):
        last = f"NNCFLinear[{leaf}]"
    else:
        ending = "NNCFUserSelfLinear[self_linear]" if role == "base" else f"ModuleDict[{role}]/NNCFLinear[default]"
        last = f"Linear[{leaf}]/{ending}"
    index = int(layer.rpartition(".")[2])
    return architecture.family.node_name(architecture.model_type, index, relative, last)


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
        "epochs_lr": 6,
        "sample_rate": 1,
    }
    width: dict[str, Any] = {"overwrite_groups": groups, "overwrite_groups_widths": widths}
    layers = [architecture.family.layer(index) for index in range(architecture.config.num_hidden_layers)]
    readers = [f"{layer}.{name}" for layer in layers for name in architecture.family.dynamic_inputs]
    following = [node_name(architecture, module, "base") for module in readers]
    width |= {"add_dynamic_inputs": following} if following else {}
    no_adaptation = {"num_bn_adaptation_samples": 0}
    return {
        "input_info": [{**shape, "keyword": name} for name in architecture.family.inputs],
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
