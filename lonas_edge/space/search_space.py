"""Search spaces: the widths and ranks that a super-network offers, read from (and written as) NNCF configuration JSON.

The format is NNCF 2.x's `bootstrapNAS` section as the LoNAS authors published it (Muñoz et al., LREC-COLING 2024). NNCF 3
dropped its code for it. There is no torch here, so that `inspect` and `space` stay fast.

The published format has no removable blocks. They are in a section of our own next to `width`:

    "lonas_edge": {"version": 1, "blocks": [["model.layers.7.self_attn"], ["model.layers.9.self_attn", "model.layers.9.mlp"]]}

Each list is a group of the widths 1 and 0, after the groups of `width`; 0 removes its blocks. `channel_order` in it has the
channels of a layer's input, the most important one first: {"model.layers.0.mlp.down_proj": "17 4 …"}. `add_dynamic_inputs` is
not read: what follows elastic heads is known.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyjson5
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lonas_edge.errors import raise_all
from lonas_edge.files import read_by, read_text
from lonas_edge.schema import describe_error

Role = Literal["base", "lora_A", "lora_B", "block"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

EXTENSION_VERSION: Literal[1] = 1  # of our own section of `elasticity`, `lonas_edge`
BLOCK_WIDTHS = (1, 0)  # kept, removed
_NODE_PART = re.compile(r"[^/\[\]]+\[([^\[\]]+)\]")
_PEFT_PREFIX = ["base_model", "model"]


@dataclass(frozen=True)
class Member:
    """One weight of an elastic group: `role` of the linear layer `module`, NNCF's name `node`. A block's name is its path."""

    module: str
    role: Role
    node: str


@dataclass(frozen=True)
class Group:
    """Layers that always share one width. `widths` are the admissible values, widest first."""

    members: tuple[Member, ...]
    widths: tuple[int, ...]

    @property
    def kind(self) -> Literal["rank", "width", "block"]:
        """An elastic LoRA rank, an elastic output width, or removable blocks."""
        if self.members[0].role == "block":
            return "block"
        return "rank" if self.members[0].role == "lora_A" else "width"

    @property
    def modules(self) -> tuple[str, ...]:
        """The module paths of the members, each once, in order."""
        return tuple(dict.fromkeys(member.module for member in self.members))


class _Section(BaseModel):
    """A part of the file that is read; other tools' fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class TrainingStage(_Section):
    """One training stage of progressive shrinking (`list_stage_descriptions`)."""

    epochs: Positive = 1
    init_lr: Positive | None = None
    epochs_lr: Positive | None = None
    width_indicator: Count | None = None
    train_dims: Annotated[tuple[Literal["width", "depth"], ...], Field(strict=False)] = ("width",)
    reorg_weights: Literal[False] = False  # channels are sorted once, before the first stage
    sample_rate: Count = 1

    @field_validator("train_dims")
    @classmethod
    def _check_width(cls, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        if "width" not in dimensions:
            raise ValueError(f"expected width, or width and depth, found {list(dimensions)}")
        return dimensions


class SearchSettings(_Section):
    """NSGA-II's settings (`bootstrapNAS.search`); others are options of `search`."""

    population: Annotated[int, Field(ge=2)] = 40
    seed: int = 0
    crossover_prob: Share = 0.9
    crossover_eta: float = 10
    mutation_prob: Share = 0.02
    mutation_eta: float = 3


@dataclass(frozen=True)
class SearchSpace:
    """All sub-networks of a super-network: one width is picked from each group.

    A space without groups is that of a plain LoRA adapter, which has the maximal network only.
    """

    groups: tuple[Group, ...] = ()
    stages: tuple[TrainingStage, ...] = ()
    search: SearchSettings = field(default_factory=SearchSettings)
    sequence_length: int | None = None
    order: Mapping[str, Sequence[int]] = field(default_factory=dict)  # of channels, as in ChannelOrder.columns

    @property
    def hash(self) -> str:
        """SHA-256 over the groups: members as (module, role), and widths, in order."""
        content = [[[[m.module, m.role] for m in g.members], list(g.widths)] for g in self.groups]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()

    def preset(self, name: str) -> tuple[int, ...]:
        """Widths of `maximal`, `minimal` or `heuristic`: the first, the last, or the one at index (n - 1) // 2 of n."""
        last = {"maximal": 0, "heuristic": 1, "minimal": 2}[name]
        return tuple(group.widths[(len(group.widths) - 1) * last // 2] for group in self.groups)

    @property
    def has_blocks(self) -> bool:
        """Whether there are removable blocks."""
        return any(group.kind == "block" for group in self.groups)


def parse_node(node: str) -> Member:
    """Parse an NNCF node name; its bracketed parts spell the module path.

    Three endings occur: `NNCFUserSelfLinear[self_linear]/linear_0`, the frozen weight of a layer with an adapter;
    `ModuleDict[lora_A]/NNCFLinear[default]/linear_0` (or `lora_B`), the adapter; `NNCFLinear[gate_proj]/linear_0`, a layer
    without one.

    Returns:
        The module path relative to the base model (`model.layers.0.mlp.gate_proj`) and the member's role.

    Raises:
        ValueError: If the name has no module path.
    """
    path = _NODE_PART.findall(node)
    if path[: len(_PEFT_PREFIX)] == _PEFT_PREFIX:
        path = path[len(_PEFT_PREFIX) :]
    role: Role = "base"
    if len(path) > 2 and path[-2] in ("lora_A", "lora_B"):
        role = "lora_A" if path[-2] == "lora_A" else "lora_B"
        path = path[:-2]
    elif path and path[-1] == "self_linear":
        path = path[:-1]
    if not path:
        raise ValueError(f"unknown node {node[:300]!r}: no module path in brackets")
    return Member(".".join(path), role, node)


def _check_nodes(nodes: list[str]) -> list[str]:
    roles = {parse_node(node).role for node in nodes}
    if "lora_A" in roles and len(roles) > 1:
        raise ValueError("the group mixes lora_A (a rank) with base or lora_B weights (an output width)")
    return nodes


def _check_order(widths: list[int]) -> list[int]:
    if any(left <= right for left, right in pairwise(widths)):
        raise ValueError(f"widths must fall from widest to narrowest, found {widths}")
    return widths


_Nodes = Annotated[list[str], Field(min_length=1), AfterValidator(_check_nodes)]
_Order = Annotated[list[int], BeforeValidator(lambda text: list(map(int, str(text).split())))]
_Widths = Annotated[list[Count], Field(min_length=1), AfterValidator(_check_order)]


def _elasticity(*path: str) -> AliasPath:
    return AliasPath("bootstrapNAS", "training", "elasticity", *path)


class _Configuration(_Section):
    """What is read of a file, by its path there."""

    groups: list[_Nodes] = Field(validation_alias=_elasticity("width", "overwrite_groups"))
    widths: list[_Widths] = Field(validation_alias=_elasticity("width", "overwrite_groups_widths"))
    dimensions: list[str] = Field([], validation_alias=_elasticity("available_elasticity_dims"))
    depth: Any = Field(None, validation_alias=_elasticity("depth"))
    kernel: Any = Field(None, validation_alias=_elasticity("kernel"))
    version: Literal[1] = Field(EXTENSION_VERSION, validation_alias=_elasticity("lonas_edge", "version"))
    blocks: list[Annotated[list[str], Field(min_length=1)]] = Field([], validation_alias=_elasticity("lonas_edge", "blocks"))
    order: dict[str, _Order] = Field({}, validation_alias=_elasticity("lonas_edge", "channel_order"))
    stages: list[TrainingStage] = Field(
        [], validation_alias=AliasPath("bootstrapNAS", "training", "schedule", "list_stage_descriptions")
    )
    search: SearchSettings = Field(SearchSettings(), validation_alias=AliasPath("bootstrapNAS", "search"))
    sequence_length: int | None = Field(
        None,
        validation_alias=AliasChoices(AliasPath("input_info", 0, "sample_size", 1), AliasPath("input_info", "sample_size", 1)),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        others = [name for name in self.dimensions if name != "width"]
        others += [name for name in ("depth", "kernel") if getattr(self, name) is not None and name not in others]
        if others:
            raise ValueError(
                f"elastic {' and '.join(others)}: not supported, only elastic widths and ranks. Remove it from the file; for "
                "removable blocks use `lonas-edge space --depth`"
            )
        groups, widths = len(self.groups), len(self.widths)
        if groups != widths:
            raise ValueError(f"{groups} overwrite_groups but {widths} overwrite_groups_widths; expected one list a group")
        return self


def read_search_space(path: Path) -> SearchSpace:
    """Read an NNCF configuration file: JSON in which comments and trailing commas are allowed."""
    text = read_text(Path(path), "the NNCF configuration")
    with read_by("pyjson5", Path(path)):
        content = pyjson5.decode(text)
    return parse_search_space(content, str(path))


def parse_search_space(content: Any, where: str) -> SearchSpace:
    """Build a search space from decoded JSON, which `where` names in errors."""
    headline, hint = f"{where}: not a usable NNCF search space:", "`lonas-edge space` writes one for a model."
    try:
        parsed = _Configuration.model_validate(content)
    except ValidationError as error:
        raise_all(headline, [describe_error(each) for each in error.errors(include_url=False)], hint)
        raise  # never reached: there is at least one error
    groups = []
    for nodes, widths in zip(parsed.groups, parsed.widths, strict=True):
        groups.append(Group(tuple(map(parse_node, nodes)), tuple(widths)))
    for paths in parsed.blocks:
        groups.append(Group(tuple(Member(path, "block", path) for path in dict.fromkeys(paths)), BLOCK_WIDTHS))
    raise_all(headline, _duplicate_errors(groups), hint)
    return SearchSpace(tuple(groups), tuple(parsed.stages), parsed.search, parsed.sequence_length, parsed.order)


def _duplicate_errors(groups: Sequence[Group]) -> list[str]:
    """Members of a group that another group has, too."""
    errors: list[str] = []
    first: dict[tuple[str, str], int] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            other = first.setdefault((member.module, member.role), index)
            if other != index:
                errors.append(f"group {index}: {member.module} ({member.role}) is in group {other} too")
    return errors
