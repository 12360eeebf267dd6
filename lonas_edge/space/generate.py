"""Write a search space for a supported model, in the published NNCF format and group order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import BLOCK_KINDS, GroupKind, WidthRule
from lonas_edge.formats import FORMATS
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.search_space import EXTENSION_VERSION, Role

_LAYER = BLOCK_KINDS[2]

_INT4 = FORMATS["int4_sym"]
_FEWEST_GROUPS = 2  # openvino 2026.4 crashes on AMX where every layer has as many inputs as a group of INT8 activations
DEFAULT_RATIOS = (1, 0.875, 0.75, 0.625, 0.5)


@dataclass(frozen=True)
class _NodeGroup:
    """An elastic group in NNCF's names."""

    nodes: list[str]
    widths: list[int]


def generate_space(
    architecture: Architecture,
    ratios: Sequence[float] = DEFAULT_RATIOS,
    ranks: Sequence[int] | None = None,
    blocks: Sequence[Sequence[str]] = (),
    heads: bool = False,
    adapter: Mapping[str, int] | None = None,
    grouped: bool = False,
) -> dict[str, Any]:
    """Generate a search space: the published groups of LLaMA-7B, or the corresponding ones of another family.

    Groups, in order: the shared rank of each layer's q, k, v; the width of each MLP; the shared rank of the layers that
    widen it; the heads of each attention; each block that can be removed, in our own section (see `search_space`). BERT, as
    published: the heads of each attention; the shared rank of queries and values; the width of each MLP.

    Args:
        architecture: The model.
        ratios: MLP widths (and numbers of heads) as fractions of the full ones, rounded down.
        ranks: Elastic ranks; by default those of the family's published spaces, or the same fractions of the adapter's ranks.
        blocks: Module paths of the blocks that can be removed, those of a group together.
        heads: Whether attention heads are elastic where published spaces have fixed ones.
        adapter: Rank by module path of the adapter that the space is for; ranks are elastic only where it has any. When None,
            an adapter on the published layers is assumed.
        grouped: Whether MLP widths are rounded down to multiples of the model's INT4 group size, which a narrower network then
            keeps: larger groups decode faster (docs/benchmarks/latency.md).

    Returns:
        The NNCF configuration, ready for `json.dump`.
    """
    family = architecture.family
    errors = [f"ratio {ratio:g}: expected more than 0 and at most 1" for ratio in ratios if not 0 < ratio <= 1]
    errors += [f"rank {rank}: expected at least 1" for rank in ranks or () if rank < 1]
    if adapter and ranks and max(ranks) > min(adapter.values()):
        errors.append(f"rank {max(ranks)}: the adapter has rank {min(adapter.values())}")
    if heads and family.head_rule is None:
        errors.append(f"the heads of {architecture.model_type} cannot be elastic: {family.refused_heads}")
    elif heads and not any(
        _choices(architecture, layer, rule) for layer, rule in architecture.rules if rule == family.head_rule
    ):
        errors.append("all heads share one key-value head: there are no heads to choose from")
    raise_all("The search space cannot be generated:", errors)
    kinds = [*family.generated_groups]
    if heads and GroupKind(family.head_rule) not in kinds:
        kinds.append(GroupKind(family.head_rule))
    groups: list[_NodeGroup] = []
    multiple = _int4_group(architecture) if grouped else 1
    for kind in kinds:
        for layer in architecture.layers:
            if kind.rule is None:
                groups += _rank_groups(architecture, kind, layer, ranks, adapter)
            elif (layer, kind.rule) in architecture.rules and _choices(architecture, layer, kind.rule):
                groups.append(_width_group(architecture, kind.rule, layer, ratios, adapter, multiple))
    return _configuration(architecture, groups, blocks)


def _int4_group(architecture: Architecture) -> int:
    """The group size of the unpruned model in INT4; 1 where none fits."""
    linears = {name: linear for name, linear in architecture.linears.items() if linear.used and architecture.split(name)[0]}
    grouped = [linear for name, linear in linears.items() if f"{name}.weight" not in architecture.eight_bits]
    return _INT4.group_size(linear.in_features for linear in grouped) or 1


def _rank_groups(
    architecture: Architecture, kind: GroupKind, layer: str, ranks: Sequence[int] | None, adapter: Mapping[str, int] | None
) -> list[_NodeGroup]:
    """Layers that share an elastic rank: one group for each rank that the adapter has on them."""
    published = architecture.family.generated_ranks
    by_rank: dict[int, list[str]] = {}
    for name in kind.layers:
        module = f"{layer}.{name}"
        if module in architecture.linears and (adapter is None or module in adapter):
            by_rank.setdefault(adapter[module] if adapter else max(published), []).append(module)
    groups = []
    for rank, modules in by_rank.items():
        scaled = {max(1, rank * value // max(published)) for value in published}
        nodes = [node_name(architecture, module, "lora_A", adapter) for module in modules]
        groups.append(_NodeGroup(nodes, _sort_widths(ranks or tuple(scaled), "ranks")))
    return groups


def _choices(architecture: Architecture, layer: str, rule: WidthRule) -> bool:
    """Whether a width of the decoder layer with this path can be smaller; heads that share one key-value head cannot."""
    return rule.full(architecture.of_layer(layer)) > rule.unit(architecture.of_layer(layer))


def _width_group(
    architecture: Architecture,
    rule: WidthRule,
    layer: str,
    ratios: Sequence[float],
    adapter: Mapping[str, int] | None,
    multiple: int,
) -> _NodeGroup:
    nodes = []
    for name in rule.producers:
        module = f"{layer}.{name}"
        nodes.append(node_name(architecture, module, "base", adapter))
        if _adapted(architecture, module, adapter):
            nodes.append(node_name(architecture, module, "lora_B", adapter))
    full, unit = rule.full(architecture.of_layer(layer)), rule.unit(architecture.of_layer(layer))
    if unit == 1:
        widths = [int(full * ratio) for ratio in ratios]
        if multiple > 1 and full >= _FEWEST_GROUPS * multiple:
            widths = [*{max(width // multiple, _FEWEST_GROUPS) * multiple for width in widths}]
        return _NodeGroup(nodes, _sort_widths(widths, f"widths of {rule.config_field} {full}"))
    shares = {max(1, int(full // unit * ratio)) for ratio in ratios}
    return _NodeGroup(nodes, _sort_widths([unit * share for share in shares], "numbers of heads"))


def _sort_widths(values: Sequence[int], what: str) -> list[int]:
    ordered = sorted(values, reverse=True)
    if len(set(ordered)) != len(ordered) or ordered[-1] < 1:
        raise LonasEdgeError(f"The {what} must differ and be at least 1; found {ordered}. Choose other ratios or ranks.")
    return ordered


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


def _configuration(architecture: Architecture, groups: Sequence[_NodeGroup], blocks: Sequence[Sequence[str]]) -> dict[str, Any]:
    stage = {
        "train_dims": ["width", "depth"] if blocks else ["width"],
        "epochs": 6,
        "depth_indicator": 1,
        "width_indicator": max(len(group.widths) for group in groups),
        "epochs_lr": 6,
        "sample_rate": 1,
    }
    width: dict[str, Any] = {
        "overwrite_groups": [group.nodes for group in groups],
        "overwrite_groups_widths": [group.widths for group in groups],
    }
    dynamic = [f"{layer}.{name}" for layer in architecture.layers for name in architecture.family.dynamic_inputs]
    if dynamic:
        width["add_dynamic_inputs"] = [node_name(architecture, module, "base") for module in dynamic]
    elasticity: dict[str, Any] = {"available_elasticity_dims": ["width"], "width": width}
    if blocks:
        elasticity["lonas_edge"] = {"version": EXTENSION_VERSION, "blocks": [list(group) for group in blocks]}
    shape = {"sample_size": [1, architecture.family.kind.sequence_length], "type": "long"}
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
                "elasticity": elasticity,
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


def removable_blocks(architecture: Architecture, kinds: Sequence[str], where: str) -> list[list[str]]:
    """Module paths of the blocks of some kinds (`BLOCK_KINDS`) that may be removed, by kind and in the model's order.

    Each is a group of its own; whole layers of decoders are groups of their blocks. Those of the first layer, and of the last
    one of language models and encoders, may not be removed: they are needed most. At least one attention block, or one whole
    layer, is not offered: hybrids may have attention in inner layers only.

    Raises:
        LonasEdgeError: The model, which `where` names, has no blocks of a kind, or a kind includes the others.
    """
    known = dict.fromkeys(block.kind for block in architecture.blocks.values())
    whole = _LAYER in kinds and bool(known) and _LAYER not in known  # layers of a decoder
    if missing := [] if whole else [kind for kind in kinds if kind not in known]:
        reason = f"expected {','.join(known)}" if known else "no blocks can be removed"
        raise LonasEdgeError(f"{where}: --depth {','.join(missing)}: {reason} for {architecture.model_type}")
    if whole and len(kinds) > 1:
        raise LonasEdgeError(f"{where}: --depth {','.join(kinds)}: a layer has all blocks; name {_LAYER} or the others")
    layers, candidates = list(architecture.layers), dict[str, list[str]]()
    inner = architecture.family.kind.generates or _LAYER in known
    kept = {layers[0], *(layers[-1:] if inner else ())}
    for path, block in architecture.blocks.items():
        if whole and block.refused:
            kept.add(architecture.split(path)[0])
    for kind in sorted(kinds):
        for path, block in architecture.blocks.items():
            layer = architecture.split(path)[0]
            if layer not in kept and not block.refused and (whole or block.kind == kind):
                candidates.setdefault(layer if whole else path, []).append(path)
    needed, groups = [path for path, block in architecture.blocks.items() if block.needed], list(candidates.values())
    if needed and set(needed) <= {path for group in groups for path in group}:
        return [group for group in groups if needed[-1] not in group]
    return groups
