"""A picture of a sub-network as text or SVG: one line per layer, with bars for the kept parts of attention and MLP."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lonas_edge.families import HeadRule, WidthRule
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.subnetwork import Subnetwork

BAR = 24  # characters of a whole block
FULL, EMPTY = "█", "·"
FILE = "subnetwork.svg"  # in an exported directory, where the layers differ

_UNITS = {"attention": "attention heads", "mlp": "MLP width"}
_COLOURS = {"attention": "#4c78a8", "mlp": "#e08e3b"}
_MARGIN, _ROW, _WHOLE, _NUMBER = 44, 14, 240, 56  # pixels: margin, row, full block, number


@dataclass(frozen=True)
class Part:
    """The kept part of a block of a decoder layer.

    Attributes:
        kind: attention or mlp.
        kept: Heads of an attention, width of an MLP; 0 if removed.
        full: The same of the whole network.
    """

    kind: str
    kept: int
    full: int


Layer = tuple[Part, ...]


def picture_of(subnetwork: Subnetwork) -> tuple[Layer, ...]:
    """What a sub-network keeps of each decoder layer: a tuple of parts per layer."""
    architecture, widths = subnetwork.architecture, subnetwork.linears

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


def alike(picture: Sequence[Layer]) -> bool:
    """Whether all layers keep the same."""
    return len(set(picture)) <= 1


def lines(picture: Sequence[Layer], marks: tuple[str, str] = (FULL, EMPTY)) -> list[str]:
    """The picture as text: a heading and a line per layer, or one line if all are alike; `marks` are the characters for kept
    and removed.
    """
    if not picture or not picture[0]:
        return []
    uniform = alike(picture)
    names = [f"0-{len(picture) - 1}"] if uniform and len(picture) > 1 else [str(index) for index in range(len(picture))]
    number = max(len(str(part.full)) for layer in picture for part in layer)
    heading = "  ".join(_UNITS.get(part.kind, part.kind).ljust(BAR + 1 + number) for part in picture[0])
    first = max(5, *map(len, names))
    text_lines = [f"{'layer':>{first}}  {heading}".rstrip()]
    for name, layer in zip(names, picture[:1] if uniform else picture, strict=True):
        bars = [f"{_bar(part, *marks)} {part.kept:>{number}}" for part in layer]
        text_lines.append(f"{name:>{first}}  {'  '.join(bars)}")
    return text_lines


def svg(picture: Sequence[Layer], title: str) -> str:
    """The picture as an SVG document."""
    parts = picture[0] if picture else ()
    width, height = _MARGIN + len(parts) * (_WHOLE + _NUMBER) + 8, (len(picture) + 4) * _ROW
    columns = [_MARGIN + index * (_WHOLE + _NUMBER) for index in range(len(parts))]
    drawn = [_text(8, _ROW + 2, title), _text(8, 3 * _ROW, "layer")]
    for left, part in zip(columns, parts, strict=True):
        drawn.append(_text(left, 3 * _ROW, f"{_UNITS.get(part.kind, part.kind)}, of {part.full}"))
    for row, layer in enumerate(picture):
        top = row * _ROW + 3 * _ROW + 6
        drawn.append(_text(_MARGIN - 12, top + 10, str(row), "end"))
        for left, part in zip(columns, layer, strict=True):
            kept = _WHOLE * part.kept / max(part.full, 1)
            drawn.append(_rectangle(left, top, _WHOLE, "#ececec"))
            drawn += [_rectangle(left, top, kept, _COLOURS.get(part.kind, "#777777"))] if kept else []
            drawn.append(_text(left + _WHOLE + 6, top + 10, str(part.kept)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _rectangle(left: float, top: float, width: float, colour: str) -> str:
    return f'<rect x="{left:g}" y="{top:g}" width="{width:g}" height="{_ROW - 3}" fill="{colour}"/>'


def _text(left: float, bottom: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{left:g}" y="{bottom:g}" text-anchor="{anchor}" fill="#333333">{escape(text)}</text>'


def _bar(part: Part, there: str, gone: str) -> str:
    """A kept block has at least one mark; a narrowed one lacks at least one."""
    filled = round(BAR * part.kept / max(part.full, 1))
    filled = min(max(filled, part.kept > 0), BAR - (part.kept < part.full))
    return there * filled + gone * (BAR - filled)
