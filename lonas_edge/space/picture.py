"""A picture of a sub-network: a line a layer, what is left of its attention and of its MLP as bars. Plain text."""

from collections.abc import Sequence
from dataclasses import dataclass

from lonas_edge.families import HeadRule, WidthRule
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity

BAR = 24  # characters of a whole block
FULL, EMPTY = "█", "·"


@dataclass(frozen=True)
class Part:
    """What is left of a block of a decoder layer.

    Attributes:
        kind: attention or mlp.
        kept: Heads of an attention, width of an MLP; 0 where it is left out.
        full: Of the whole network.
    """

    kind: str
    kept: int
    full: int


Layer = tuple[Part, ...]


def picture_of(elasticity: Elasticity, chosen: Sequence[int]) -> tuple[Layer, ...]:
    """What is left of each decoder layer.

    Args:
        elasticity: The search space laid over the model.
        chosen: One width a group, in group order.

    Returns:
        A tuple of parts for each decoder layer.
    """
    architecture, widths = elasticity.architecture, elasticity.widths(chosen)

    def part(path: str) -> Part:
        inside = next(linear for name, linear in architecture.linears.items() if name.startswith(f"{path}."))
        full = _full(architecture, path)
        return Part(architecture.blocks[path].kind, full * widths[inside.name].out_features // inside.out_features, full)

    def by_rule(layer: str, rule: WidthRule) -> Part:
        heads, name = isinstance(rule, HeadRule), f"{layer}{rule.consumer}"
        whole = architecture.linears[name].in_features
        full = int(architecture.config.num_attention_heads) if heads else whole
        return Part("attention" if heads else "mlp", full * widths[name].in_features // whole, full)

    layers = [f"{architecture.family.layer(index)}." for index in range(architecture.config.num_hidden_layers)]
    if not architecture.blocks:
        return tuple(tuple(by_rule(layer, rule) for rule in architecture.family.width_rules) for layer in layers)
    return tuple(tuple(part(path) for path in architecture.blocks if path.startswith(layer)) for layer in layers)


def _full(architecture: Architecture, path: str) -> int:
    """Heads of an attention, width of an MLP."""
    layer, _ = architecture.split(path)
    if architecture.blocks[path].cached:
        return int(architecture.config.num_attention_heads)
    rules = [rule for rule in architecture.family.width_rules if f"{layer}.{rule.consumer}".startswith(f"{path}.")]
    return rules[0].full(architecture.config)


def lines(picture: Sequence[Layer], marks: tuple[str, str] = (FULL, EMPTY)) -> list[str]:
    """The picture as text.

    Args:
        picture: As of `picture_of`.
        marks: The characters of what is there and of what is not.

    Returns:
        A heading and a line a layer; one line where all layers are alike.
    """
    if not picture or not picture[0]:
        return []
    alike = len(set(picture)) == 1
    names = [f"0-{len(picture) - 1}"] if alike and len(picture) > 1 else [str(index) for index in range(len(picture))]
    units = {"attention": "attention heads", "mlp": "MLP width"}
    number = max(len(str(part.full)) for layer in picture for part in layer)
    heading = "  ".join(units.get(part.kind, part.kind).ljust(BAR + 1 + number) for part in picture[0])
    first = max(5, *map(len, names))
    found = [f"{'layer':>{first}}  {heading}".rstrip()]
    for name, layer in zip(names, picture[:1] if alike else picture, strict=True):
        bars = [f"{_bar(part, *marks)} {part.kept:>{number}}" for part in layer]
        found.append(f"{name:>{first}}  {'  '.join(bars)}")
    return found


def _bar(part: Part, there: str, gone: str) -> str:
    """A block that is there has a character at least; one that is cut lacks one at least."""
    filled = round(BAR * part.kept / max(part.full, 1))
    filled = min(max(filled, part.kept > 0), BAR - (part.kept < part.full))
    return there * filled + gone * (BAR - filled)
