"""`lonas-edge inspect`: the sizes of a sub-network next to those of the unpruned model, from configurations alone."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import JsonOptions, SourceOptions, SubnetOptions
from lonas_edge.cli.importing import importing
from lonas_edge.cli.terminal import console, loading
from lonas_edge.options import option

if TYPE_CHECKING:
    from rich.table import Table

    from lonas_edge.network.source import Source
    from lonas_edge.space.complexity import Sizes
    from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True, kw_only=True)
class InspectOptions(SubnetOptions, JsonOptions):
    """What is counted and shown."""

    seq_len: int | None = option(
        None, help="Sequence length of the MACs, in tokens.", minimum=1, unset="the search space's, 256 in the published ones"
    )


@command(SourceOptions, InspectOptions)
def run(source: SourceOptions, options: InspectOptions) -> None:
    """Show the sizes of a sub-network next to those of the unpruned model, and a picture of it. No weights are read."""
    with loading():
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.space.complexity import kv_elements
        opened = open_source(source.source, source.model, source.nncf_config, weights=False)
    chosen = opened.select(options.subnet)
    unpruned, small = opened.sizes(opened.unpruned, options.seq_len), opened.sizes(chosen, options.seq_len)
    cached = kv_elements(opened.unpruned), kv_elements(chosen)
    if not options.json:
        _print(opened, chosen, unpruned, small, cached)
        return
    groups = [
        {"name": name, "kind": group.kind, "modules": list(group.modules), "widths": list(group.widths), "width": width}
        for group, (name, width) in zip(opened.space.groups, chosen.by_group.items(), strict=True)
    ]
    sizes = [{**each.to_json(), "kv_elements": count} for each, count in zip((unpruned, small), cached, strict=True)]
    print(json.dumps({"unpruned": sizes[0], "subnetwork": sizes[1], "groups": groups}, indent=2))


def _print(opened: "Source", chosen: "Subnetwork", unpruned: "Sizes", small: "Sizes", cached: tuple[int, int]) -> None:
    from rich.table import Table

    from lonas_edge.space.picture import EMPTY, FULL, lines, picture_of

    table = Table(title=f"{opened.base.name}, {chosen.name} sub-network", title_justify="left")
    table.add_column("")
    for column in ("unpruned LoRA", chosen.name, "ratio"):
        table.add_column(column, justify="right")
    rows = [
        ("parameters (merged)", unpruned.parameters, small.parameters, "{:,}"),
        (
            "linear weights, LM head and adapters (“total params”)",
            unpruned.linear_weights,
            small.linear_weights,
            "{:,}",
        ),
        (f"MACs, {small.seq_len} tokens (“TFLOPs”)", unpruned.macs, small.macs, "{:.4g}"),
        *([("KV cache, values a token", *cached, "{:,}")] if cached[0] else []),
        *((f"bytes, {kind}", unpruned.bytes[kind], small.bytes[kind], "{:,}") for kind in small.bytes),
    ]
    for name, before, after, style in rows:
        table.add_row(name, style.format(before), style.format(after), f"{after / before:.3f}")
    shown = console()
    shown.print(table)
    if opened.space.groups:
        shown.print(_groups_table(opened, chosen))
        marks = (FULL, EMPTY) if shown.encoding.lower().startswith("utf") else ("#", ".")
        for line in lines(picture_of(chosen), marks):
            shown.print(line, overflow="crop", no_wrap=True)


def _groups_table(opened: "Source", chosen: "Subnetwork") -> "Table":
    """Groups that differ only in the layer are one row."""
    from rich.table import Table

    prefix = opened.architecture.family.layers + "."
    folded: dict[tuple[str, tuple[str, ...], tuple[int, ...], int], list[int]] = {}
    for group, width in zip(opened.space.groups, chosen.widths, strict=True):
        layer = group.modules[0].removeprefix(prefix).split(".")[0]
        names = tuple(module.removeprefix(f"{prefix}{layer}.") for module in group.modules)
        folded.setdefault((group.kind, names, group.widths, width), []).append(int(layer) if layer.isdigit() else -1)
    table = Table(title=f"{len(opened.space.groups)} elastic groups", title_justify="left")
    for column in ("kind", "layers", "members", "widths", "chosen"):
        table.add_column(column)
    for (kind, names, widths, width), layers in folded.items():
        table.add_row(kind, _ranges(layers), ", ".join(names), ", ".join(map(str, widths)), str(width))
    return table


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
