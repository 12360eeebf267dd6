"""A sub-network: one width picked from each group of a search space, and what is then active in the model."""

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, ClassVar

from lonas_edge.errors import LonasEdgeError, LonasEdgeWarning, raise_all
from lonas_edge.families import Linear, WidthRule
from lonas_edge.files import exists
from lonas_edge.schema import Record
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import NOTHING, Elasticity, Widths
from lonas_edge.space.search_space import SearchSpace

FILE = "subnetwork.json"  # an exported directory keeps its sub-network under this name
DEFAULT = "heuristic"
MAX_NAME = 200  # characters; model cards and tables show it
_UNNAMED = (
    "the widths name neither their groups nor a search space; they are taken in the order of this search space's groups. "
    'Write "widths": {group name: width, …}; `lonas-edge inspect --json` shows the names.'
)


@dataclass(frozen=True)
class SearchOrigin:
    """How a search found a sub-network.

    Attributes:
        quality: Name of the quality.
        quality_value: In its unit.
        cost: Name of the cost.
        cost_value: In its unit.
        units: Of both, by name.
        weight_format: Of the IR whose cost it is.
        proposed_by: `seed:…`, a sampler, or `refined`.
        evaluation: Index among the evaluations, from 0 on.
        evaluations: Number of evaluations.
        prompts: Number of prompts that each was scored on.
        super_adapter: SHA-256 of the adapter's files by name, where there is one; another adapter's sub-network is another.
    """

    quality: str
    quality_value: float
    cost: str
    cost_value: float
    units: dict[str, str]
    weight_format: str
    proposed_by: str
    evaluation: int
    evaluations: int
    prompts: int
    super_adapter: dict[str, str] | None


@dataclass(frozen=True)
class SubnetworkRecord(Record):
    """A sub-network file. `{"widths": {"layers.0.mlp.width": 768, …}}` is one; it may have other fields.

    Attributes:
        widths: By group name; or a list in group order, which `search_space` should then accompany.
        name: Name of the sub-network; without one it is called by its file name.
        search_space: Hash of the search space; checked for a list of widths.
        origin: How a search found it, if one did.
    """

    NAME: ClassVar[str] = "subnetwork"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = 'Expected {"widths": {group name: width, …}}.'
    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}
    widths: dict[str, int] | tuple[int, ...]
    name: str | None = None
    search_space: str | None = None
    origin: SearchOrigin | None = None


@dataclass(frozen=True)
class Subnetwork:
    """One width of each group of a search space that is laid over a model, and what is then active in the model.

    Attributes:
        elasticity: The search space laid over the model.
        widths: In group order.
        name: How the widths were chosen.
        origin: The search that proposed them, if one did.
    """

    elasticity: Elasticity
    widths: tuple[int, ...]
    name: str = ""
    origin: SearchOrigin | None = None

    @property
    def architecture(self) -> Architecture:
        """The model's shapes."""
        return self.elasticity.architecture

    @property
    def by_group(self) -> dict[str, int]:
        """Widths by group name."""
        return dict(zip(self.elasticity.group_names, self.widths, strict=True))

    @cached_property
    def removed(self) -> tuple[str, ...]:
        """Module paths of the removed blocks, in the model's order."""
        return self.elasticity.removed(self.widths)

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Number of each decoder layer in the materialized model, by its index in the base; without those removed whole."""
        layers = range(self.architecture.config.num_hidden_layers)
        kept = [index for index in layers if self.architecture.family.layer(index) not in self.removed]
        return {index: number for number, index in enumerate(kept)}

    @property
    def canonical(self) -> tuple[int, ...]:
        """Widths that are equal for equal networks; see `Elasticity.canonical`."""
        return self.elasticity.canonical(self.widths)

    @cached_property
    def linears(self) -> dict[str, Widths]:
        """The active part of every linear layer by module path; `NOTHING` inside a removed block."""
        elasticity, architecture, chosen = self.elasticity, self.architecture, self.widths
        removed = tuple(f"{block}." for block in self.removed)

        def active(linear: Linear) -> Widths:
            name = linear.name
            if name.startswith(removed):
                return NOTHING
            full = elasticity.rules[name].full(architecture.of_layer(name)) if name in elasticity.rules else 1
            rows = linear.rows(chosen[elasticity.out_group[name]] if name in elasticity.out_group else full, full)
            columns = linear.columns(chosen[elasticity.in_group[name]] if name in elasticity.in_group else full, full)
            return Widths(rows, columns, chosen[elasticity.rank_group[name]] if name in elasticity.rank_group else None)

        return {name: active(linear) for name, linear in architecture.linears.items()}

    def layer_fields(self) -> list[dict[str, int]]:
        """The configuration fields that widths decide, per decoder layer; a removed block has none."""
        architecture, elasticity = self.architecture, self.elasticity
        family, removed = architecture.family, tuple(f"{block}." for block in (*architecture.removed, *self.removed))

        def fields(layer: str, rule: WidthRule) -> dict[str, int]:
            consumer = f"{layer}.{rule.consumer}"
            if consumer.startswith(removed):
                return {}
            group, config = elasticity.in_group.get(consumer), architecture.of_layer(layer)
            return rule.fields(config, rule.full(config) if group is None else self.widths[group])

        layers = map(family.layer, range(architecture.config.num_hidden_layers))
        return [{k: v for rule in family.width_rules for k, v in fields(layer, rule).items()} for layer in layers]

    def attention_fields(self) -> dict[str, dict[str, int]]:
        """The numbers of heads of each attention whose heads are elastic, by module path."""
        architecture, groups = self.architecture, self.elasticity.in_group
        rule = architecture.family.head_rule
        if rule is None:
            return {}
        attention = [path for path, block in architecture.blocks.items() if block.cached]
        consumers = {path: f"{architecture.split(path)[0]}.{rule.consumer}" for path in attention}
        return {
            path: rule.fields(architecture.of_layer(path), self.widths[groups[name]])
            for path, name in consumers.items()
            if name in groups
        }

    def record(self) -> SubnetworkRecord:
        """What a sub-network file holds."""
        space = self.elasticity.space.hash
        return SubnetworkRecord(self.by_group, self.name, space, self.origin)


def unpruned(architecture: Architecture) -> Subnetwork:
    """The whole model as a sub-network of a search space without groups."""
    return Subnetwork(Elasticity(architecture, SearchSpace(), {}, {}, {}, {}), (), "unpruned")


def is_name(choice: str) -> bool:
    """Whether a choice of `select` is a name; a file or directory of that name is ignored."""
    return choice in ("maximal", DEFAULT, "minimal") or choice.startswith("random:")


def select(elasticity: Elasticity, choice: str | None = None) -> Subnetwork:
    """Pick a sub-network by name or from a JSON file; by default heuristic, or maximal in a space without groups.

    `maximal` takes the first width of every group, `minimal` the last, `heuristic` the one at index (n - 1) // 2 of n
    (Muñoz et al. 2024), `random:SEED` draws each uniformly.
    """
    groups = elasticity.space.groups
    choice = choice or (DEFAULT if groups else "maximal")
    if not groups and choice != "maximal":
        raise LonasEdgeError(
            f"sub-network {choice!r}: without a search space there is only the maximal network. Pass --nncf-config FILE."
        )
    if choice.startswith("random:"):
        draw = _generator(choice)
        return Subnetwork(elasticity, tuple(draw.choice(group.widths) for group in groups), choice)
    if not is_name(choice):
        return read_subnetwork(Path(choice), elasticity)
    return Subnetwork(elasticity, elasticity.space.preset(choice), choice)


def _generator(choice: str) -> random.Random:
    try:
        return random.Random(int(choice.removeprefix("random:")))
    except ValueError:
        raise LonasEdgeError(f"sub-network {choice!r}: expected random:SEED with a whole number") from None


def read_subnetwork(path: Path, elasticity: Elasticity) -> Subnetwork:
    """Read a sub-network file and check that it belongs to a search space; without a `name` it is called by its file name."""
    if not exists(path):
        raise LonasEdgeError(
            f"sub-network {str(path)[:300]!r}: neither a name (heuristic, maximal, minimal, random:SEED) nor an existing file"
        )
    record = SubnetworkRecord.read(path)
    widths = record.widths
    if isinstance(widths, dict):
        problems = _name_misfits(elasticity, widths)
        widths = () if problems else tuple(widths[name] for name in elasticity.group_names)
        problems = problems or misfits(elasticity, widths)
    else:
        problems = misfits(elasticity, widths, record.search_space)
        if record.search_space is None:
            warnings.warn(f"{path}: {_UNNAMED}", LonasEdgeWarning, stacklevel=2)
    if record.name is not None and not _printable(record.name):
        problems.append(f"name: expected at most {MAX_NAME} printable characters, found {shortened(record.name)}")
    problems += _origin_faults(record.origin) if record.origin else []
    raise_all(f"{path}: not a sub-network of this search space:", problems)
    return Subnetwork(elasticity, widths, record.name or path.name, record.origin)


def misfits(elasticity: Elasticity, widths: Sequence[int], search_space: str | None = None) -> list[str]:
    """List the reasons why widths, in group order and for the space of this hash (if known), are no sub-network of a space."""
    space, problems = elasticity.space, []
    if search_space not in (None, space.hash):
        problems.append(f"it was written for search space {str(search_space)[:12]}, and this one is {space.hash[:12]}")
    if len(widths) != len(space.groups):
        return [*problems, f"{len(widths)} widths; the search space has {len(space.groups)} groups"]
    return problems + [
        f"{name}: {shortened(width)} is not one of {list(group.widths)}"
        for name, width, group in zip(elasticity.group_names, widths, space.groups, strict=True)
        if width not in group.widths
    ]


def _name_misfits(elasticity: Elasticity, widths: Mapping[str, int]) -> list[str]:
    """List groups that only the file or only the space has."""
    names = elasticity.group_names
    kinds = {
        "not in the search space": [name for name in widths if name not in names],
        "missing in the file": [name for name in names if name not in widths],
    }
    return [
        f"{len(groups)} group{'s' * (len(groups) > 1)} {kind}: {', '.join(map(shortened, groups[:3]))}"
        + ", …" * (len(groups) > 3)
        for kind, groups in kinds.items()
        if groups
    ]


def _printable(text: str) -> bool:
    return text.isprintable() and len(text) <= MAX_NAME


def _origin_faults(origin: SearchOrigin) -> list[str]:
    """List texts that a model card could not show."""
    texts = {name: value for name, value in asdict(origin).items() if isinstance(value, str)}
    texts |= {f"units.{name}": unit for name, unit in origin.units.items()}
    return [
        f"origin.{name}: expected at most {MAX_NAME} printable characters, found {shortened(text)}"
        for name, text in texts.items()
        if not _printable(text)
    ]
