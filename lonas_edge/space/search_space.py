"""Search spaces: the widths and ranks that a super-network offers, read from (and written as) NNCF configuration JSON.

The format is NNCF 2.x's `bootstrapNAS` section as the LoNAS authors published it (Muñoz et al., LREC-COLING 2024). NNCF 3
dropped its code for it. There is no torch here, so that `inspect` and `space` stay fast.

The published format has no removable blocks. They are in a section of our own next to `width`:

    "lonas_edge": {"version": 1, "blocks": [["model.layers.7.self_attn"], ["model.layers.9.self_attn", "model.layers.9.mlp"]]}

Each list is a group of the widths 1 and 0, after the groups of `width`; 0 removes its blocks. `add_dynamic_inputs` is not read:
what follows elastic heads is known.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal

import pyjson5

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import DEPTH_LIMIT, read_text

Role = Literal["base", "lora_A", "lora_B", "block"]

_NODE_PART = re.compile(r"[^/\[\]]+\[([^\[\]]+)\]")
_PEFT_PREFIX = ["base_model", "model"]
_OTHER_DIMENSIONS = ("depth", "kernel")  # NNCF's other dimensions of elasticity
_INSTEAD = {"depth": "; for removable blocks use `lonas-edge space --depth`"}
EXTENSION, EXTENSION_VERSION = "lonas_edge", 1  # our own section of `elasticity`
BLOCK_WIDTHS = (1, 0)  # kept, removed


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


@dataclass(frozen=True)
class Stage:
    """One training stage of progressive shrinking (`list_stage_descriptions`)."""

    epochs: float = 1
    init_lr: float | None = None
    epochs_lr: float | None = None
    width_indicator: int | None = None
    train_dims: tuple[str, ...] = ("width",)
    reorg_weights: bool = False
    sample_rate: int = 1


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the sub-network search (`bootstrapNAS.search`)."""

    algorithm: str = "NSGA2"
    num_evals: int = 200
    population: int = 40
    ref_acc: float | None = None
    acc_delta: float | None = None
    eval_metric_name: str | None = None
    seed: int = 0
    crossover_prob: float = 0.9
    crossover_eta: float = 10
    mutation_prob: float = 0.02
    mutation_eta: float = 3


@dataclass(frozen=True)
class SearchSpace:
    """All sub-networks of a super-network: one width is picked from each group.

    A space without groups is that of a plain LoRA adapter, which has the maximal network only. `search_faults` lists problems
    of the search settings, which `search_settings` reports: only a search needs them.
    """

    groups: tuple[Group, ...] = ()
    stages: tuple[Stage, ...] = ()
    search: SearchSettings = field(default_factory=SearchSettings)
    search_faults: tuple[str, ...] = ()
    sequence_length: int | None = None

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

    def search_settings(self) -> SearchSettings:
        """The settings of the sub-network search."""
        hint = "Correct or delete them in the NNCF configuration; each has a default."
        raise_all("The search space's search settings cannot be used:", self.search_faults, hint)
        return self.search


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
        raise ValueError("no module path in brackets")
    return Member(".".join(path), role, node)


def read_search_space(path: Path) -> SearchSpace:
    """Read an NNCF configuration file: JSON in which comments and trailing commas are allowed."""
    text = read_text(Path(path), "the NNCF configuration")
    try:
        content = pyjson5.decode(text, maxdepth=DEPTH_LIMIT)
    except (pyjson5.Json5Exception, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise LonasEdgeError(f"{path}: not JSON: {reason}. Comments and trailing commas are allowed.") from error
    space, problems = parse_search_space(content)
    raise_all(f"{path}: not a usable NNCF search space:", problems)
    return replace(space, search_faults=tuple(f"{path}: {fault}" for fault in space.search_faults))


def parse_search_space(content: Any) -> tuple[SearchSpace, list[str]]:
    """Build a search space from decoded JSON; the second result lists everything that makes it unusable."""
    section = content.get("bootstrapNAS") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        return SearchSpace(), ['no "bootstrapNAS" section; expected an NNCF configuration of a LoNAS super-network']
    training = _mapping(section, "training")
    elasticity = _mapping(training, "elasticity")
    width = _mapping(elasticity, "width")
    groups, problems = _parse_groups(width.get("overwrite_groups"), width.get("overwrite_groups_widths"))
    blocks, block_problems = _parse_blocks(elasticity.get(EXTENSION), len(groups))
    stages, stage_problems = _parse_stages(_mapping(training, "schedule").get("list_stage_descriptions", []))
    search, search_faults = _parse_settings(SearchSettings, section.get("search", {}), "bootstrapNAS.search")
    space = SearchSpace(
        groups=groups + blocks,
        stages=stages,
        search=search,
        search_faults=tuple(search_faults),
        sequence_length=_sequence_length(content.get("input_info")),
    )
    return space, _dimension_faults(elasticity) + problems + block_problems + stage_problems


def _dimension_faults(elasticity: dict[str, Any]) -> list[str]:
    """Elastic dimensions that the groups do not describe."""
    where, key = "bootstrapNAS.training.elasticity", "available_elasticity_dims"
    listed = elasticity.get(key, [])
    if not isinstance(listed, list) or not all(isinstance(dimension, str) for dimension in listed):
        return [f"{where}.{key} must be a list of names, found {shortened(listed)}"]
    fixed = [(shortened(dimension).strip("'"), key) for dimension in listed if dimension != "width"]
    fixed += [(dimension, f'the section "{dimension}"') for dimension in _OTHER_DIMENSIONS if dimension in elasticity]
    return [
        f"{where}: elastic {dimension} ({field}) is not supported, only elastic widths and ranks. Remove it from the file, and "
        f"every sub-network keeps the full {dimension}{_INSTEAD.get(dimension, '')}"
        for dimension, field in fixed
    ]


def _parse_blocks(section: Any, before: int) -> tuple[tuple[Group, ...], list[str]]:
    """The groups of our own section; they follow `before` others."""
    where = f"bootstrapNAS.training.elasticity.{EXTENSION}"
    if section is None:
        return (), []
    if not isinstance(section, dict) or section.get("version") != EXTENSION_VERSION:
        version = section.get("version") if isinstance(section, dict) else section
        return (), [f"{where}: expected version {EXTENSION_VERSION}, found {shortened(version)}. Update lonas-edge"]
    listed, unknown = section.get("blocks", []), sorted(section.keys() - {"version", "blocks"})
    problems = [f"{where}: unknown field {shortened(name)}" for name in unknown]
    if not isinstance(listed, list):
        return (), [*problems, f"{where}.blocks must be a list of lists of module paths, found {shortened(listed)}"]
    groups: list[Group] = []
    seen: dict[str, int] = {}
    for index, paths in enumerate(listed, before):
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
            problems.append(f"group {index}: expected a list of module paths of blocks, found {shortened(paths)}")
            continue
        twice = [path for path in paths if seen.setdefault(path, index) != index]
        problems += [f"group {index}: {path[:300]} is in group {seen[path]} too" for path in twice]
        groups.append(Group(tuple(Member(path, "block", path) for path in dict.fromkeys(paths)), BLOCK_WIDTHS))
    return tuple(groups), problems


def _mapping(parent: dict[str, Any], key: str) -> dict[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _parse_groups(groups: Any, widths: Any) -> tuple[tuple[Group, ...], list[str]]:
    where = "bootstrapNAS.training.elasticity.width"
    if not isinstance(groups, list) or not isinstance(widths, list):
        return (), [f"{where} needs two lists, overwrite_groups and overwrite_groups_widths"]
    if len(groups) != len(widths):
        return (), [f"{len(groups)} overwrite_groups but {len(widths)} overwrite_groups_widths; expected one list a group"]
    parsed: list[Group] = []
    problems: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    for index, (nodes, values) in enumerate(zip(groups, widths, strict=True)):
        members, faults = _parse_members(nodes)
        faults += _width_faults(values)
        for member in members:
            first = seen.setdefault((member.module, member.role), index)
            if first != index:
                faults.append(f"{member.module} ({member.role}) is in group {first} too")
        problems += [f"group {index}: {fault}" for fault in faults]
        if not faults:
            parsed.append(Group(tuple(members), tuple(values)))
    return tuple(parsed), problems


def _parse_members(nodes: Any) -> tuple[list[Member], list[str]]:
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) for node in nodes):
        return [], [f"expected a list of node names, found {shortened(nodes)}"]
    members, faults = [], []
    for node in nodes:
        try:
            members.append(parse_node(node))
        except ValueError as error:
            faults.append(f"unknown node {node[:300]!r}: {error}")
    roles = {member.role for member in members}
    if "lora_A" in roles and len(roles) > 1:
        faults.append("mixes lora_A (a rank) with base or lora_B weights (an output width)")
    return members, faults


def _width_faults(values: Any) -> list[str]:
    if not isinstance(values, list) or not values:
        return [f"expected a list of widths, found {shortened(values)}"]
    if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
        return [f"widths must be positive whole numbers, found {shortened(values)}"]
    if any(left <= right for left, right in pairwise(values)):
        return [f"widths must fall from widest to narrowest, found {shortened(values)}"]
    return []


def _parse_stages(descriptions: Any) -> tuple[tuple[Stage, ...], list[str]]:
    if not isinstance(descriptions, list):
        return (), ["list_stage_descriptions must be a list"]
    parsed = [_parse_settings(Stage, item, f"stage {index}") for index, item in enumerate(descriptions)]
    return tuple(stage for stage, _ in parsed), [fault for _, faults in parsed for fault in faults]


def _parse_settings(kind: Any, values: Any, where: str) -> tuple[Any, list[str]]:
    """Fill a settings dataclass from its fields in `values`; other fields belong to other tools."""
    if not isinstance(values, dict):
        return kind(), [f"{where}: expected an object, found {shortened(values)}"]
    known, faults = {}, []
    for name, definition in kind.__dataclass_fields__.items():
        if name not in values:
            continue
        wanted, fits = _wanted(name, definition.default)
        if fits(values[name]):
            known[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
        else:
            faults.append(f"{where}: {name} must be {wanted}, found {shortened(values[name])}")
    return kind(**known), faults


def _wanted(name: str, default: Any) -> tuple[str, Callable[[Any], bool]]:
    """The expected value of a setting in words, and a test for it. None means unset."""
    if isinstance(default, tuple):
        return "a list of names", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(default, str) or name == "eval_metric_name":
        return "a name", lambda value: isinstance(value, str) or (value is None and default is None)
    return "a number", lambda value: _is_number(value) or (value is None and default is None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 2**53  # false for NaN


def _sequence_length(input_info: Any) -> int | None:
    entries = input_info if isinstance(input_info, list) else [input_info]
    for entry in entries:
        shape = entry.get("sample_size") if isinstance(entry, dict) else None
        if isinstance(shape, list) and len(shape) > 1 and _is_number(shape[1]) and shape[1] == int(shape[1]) > 0:
            return int(shape[1])
    return None
