"""Draw a sub-network as text: one line per layer, with bars for the kept parts of attention and MLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lonas_edge.families import HeadRule, WidthRule
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.subnetwork import Subnetwork

BAR = 24  # characters of a whole block
FULL, EMPTY = "█", "·"

_UNITS = {"attention": "attention heads", "mlp": "MLP width"}


@dataclass(frozen=True)
class Part:
    """The kept part of a block of a decoder layer."""

    kind: str  # as of a block
    kept: int  # heads of an attention, width of an MLP, 1 for other blocks; 0 if removed
    full: int  # the same of the whole network


Layer = tuple[Part, ...]


def picture_of(subnetwork: Subnetwork) -> tuple[Layer, ...]:
    """List the kept parts of each decoder layer."""
    architecture = subnetwork.architecture
    if all(block.whole for block in architecture.all_blocks.values()):
        rules = architecture.family.width_rules
        return tuple(tuple(_part_of_rule(subnetwork, layer, rule) for rule in rules) for layer in architecture.layers)
    picture = []
    for layer in architecture.layers:
        paths = [path for path in architecture.all_blocks if path.startswith(f"{layer}.")]
        picture.append(tuple(_part_of_block(subnetwork, path) for path in paths))
    return tuple(picture)


def _part_of_block(subnetwork: Subnetwork, path: str) -> Part:
    architecture = subnetwork.architecture
    kind, full = architecture.all_blocks[path].kind, _full(architecture, path)
    if path in architecture.removed:
        return Part(kind, 0, full)
    inside = next(linear for name, linear in architecture.linears.items() if name.startswith(f"{path}."))
    return Part(kind, full * subnetwork.linears[inside.name].out_features // inside.out_features, full)


def _part_of_rule(subnetwork: Subnetwork, layer: str, rule: WidthRule) -> Part:
    heads, name = isinstance(rule, HeadRule), f"{layer}.{rule.consumer}"
    whole = subnetwork.architecture.linears[name].in_features
    full = int(subnetwork.architecture.config.num_attention_heads) if heads else whole
    return Part("attention" if heads else "mlp", full * subnetwork.linears[name].in_features // whole, full)


def _full(architecture: Architecture, path: str) -> int:
    """Heads of an attention, width of an MLP, 1 for a block that is whole or removed."""
    layer, _ = architecture.split(path)
    if architecture.all_blocks[path].kind == "attention":
        return int(architecture.of_layer(path).num_attention_heads)
    if architecture.all_blocks[path].state:
        return 1
    rules = [rule for rule in architecture.family.width_rules if f"{layer}.{rule.consumer}".startswith(f"{path}.")]
    return rules[0].full(architecture.of_layer(path))


def draw(picture: Sequence[Layer], marks: tuple[str, str] = (FULL, EMPTY)) -> list[str]:
    """Draw a heading and a line per layer, or one line for equal layers; `marks` stand for kept and removed."""
    if not picture or not picture[0]:
        return []
    uniform = len(set(picture)) == 1
    names = [f"0-{len(picture) - 1}"] if uniform and len(picture) > 1 else [str(index) for index in range(len(picture))]
    number = max(len(str(part.full)) for layer in picture for part in layer)
    columns = (dict.fromkeys(_UNITS.get(part.kind, part.kind) for part in column if part) for column in zip_longest(*picture))
    heading = "  ".join(" or ".join(names).ljust(BAR + 1 + number) for names in columns)
    first = max(5, *map(len, names))
    text_lines = [f"{'layer':>{first}}  {heading}".rstrip()]
    for name, layer in zip(names, picture[:1] if uniform else picture, strict=True):
        bars = [f"{_bar(part, *marks)} {part.kept:>{number}}" for part in layer]
        text_lines.append(f"{name:>{first}}  {'  '.join(bars)}")
    return text_lines


def _bar(part: Part, kept: str, removed: str) -> str:
    """Draw a bar; a kept block has at least one mark, a narrowed one lacks at least one."""
    filled = round(BAR * part.kept / max(part.full, 1))
    filled = min(max(filled, part.kept > 0), BAR - (part.kept < part.full))
    return kept * filled + removed * (BAR - filled)
