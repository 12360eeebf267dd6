"""`lonas-edge inspect`: the sizes of a sub-network next to those of the unpruned model, from configurations alone."""

import json
from dataclasses import dataclass as plain_dataclass
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import JsonOptions, SourceOptions, SubnetOptions
from lonas_edge.cli.terminal import console, importing, loading
from lonas_edge.options import option

if TYPE_CHECKING:
    from rich.table import Table

    from lonas_edge.network.source import Source
    from lonas_edge.space.subnetwork import Sizes, Subnetwork


@dataclass(frozen=True, kw_only=True)
class InspectOptions(JsonOptions, SubnetOptions, SourceOptions):
    """What is counted and shown."""

    seq_len: int | None = option(
        None, help="Sequence length of the MACs, in tokens.", minimum=1, unset="the search space's, 256 in the published ones"
    )


@command
def run(options: InspectOptions) -> None:
    """Show the sizes of a sub-network next to those of the unpruned model, and a picture of it. No weights are read."""
    with loading():
        with importing():
            from lonas_edge.network.source import open_source

        opened = open_source(options.source, options.model, options.nncf_config, weights=False)
    chosen = opened.select(options.subnet)
    unpruned, small = (
        _Counts(opened.sizes(network, options.seq_len), network.kv_elements(), network.token_parameters(opened.unties))
        for network in (opened.unpruned, chosen)
    )
    if not options.json:
        _print(opened, chosen, unpruned, small)
        return
    groups = [
        {"name": name, "kind": group.kind, "modules": list(group.modules), "widths": list(group.widths), "width": width}
        for group, (name, width) in zip(opened.space.groups, chosen.by_group.items(), strict=True)
    ]
    print(json.dumps({"unpruned": unpruned.to_json(), "subnetwork": small.to_json(), "groups": groups}, indent=2))


@plain_dataclass(frozen=True)
class _Counts:
    """Sizes of a network, elements of keys and values per token, and parameters of embedding and head."""

    sizes: "Sizes"
    kv_elements: int
    token_parameters: int

    @property
    def token_share(self) -> float:
        """Share of embedding and head in all parameters."""
        return self.token_parameters / self.sizes.parameters

    def to_json(self) -> dict[str, Any]:
        return {**self.sizes.to_json(), "kv_elements": self.kv_elements, "token_parameters": self.token_parameters}


def _print(opened: "Source", chosen: "Subnetwork", unpruned: _Counts, small: _Counts) -> None:
    from rich.table import Table

    from lonas_edge.space.picture import EMPTY, FULL, draw, picture_of

    table = Table(title=f"{opened.base.name}, {chosen.name} sub-network", title_justify="left")
    table.add_column("")
    for column in ("unpruned LoRA", chosen.name, "ratio"):
        table.add_column(column, justify="right")
    before, after = unpruned.sizes, small.sizes
    cached = unpruned.kv_elements, small.kv_elements
    rows = [
        ("parameters (merged)", before.parameters, after.parameters, "{:,}"),
        ("embedding and head, share of parameters", unpruned.token_share, small.token_share, "{:.1%}"),
        (
            "linear weights, LM head and adapters (“total params”)",
            before.linear_weights,
            after.linear_weights,
            "{:,}",
        ),
        (f"MACs, {after.seq_len} tokens (“TFLOPs”)", before.macs, after.macs, "{:.4g}"),
        *([("KV cache, values a token", *cached, "{:,}")] if cached[0] else []),
        *((f"bytes, {kind}", before.bytes[kind], after.bytes[kind], "{:,}") for kind in after.bytes),
    ]
    for name, whole, left, style in rows:
        table.add_row(name, style.format(whole), style.format(left), f"{left / whole:.3f}")
    shown = console()
    shown.print(table)
    if opened.space.groups:
        shown.print(_groups_table(opened, chosen))
        marks = (FULL, EMPTY) if shown.encoding.lower().startswith("utf") else ("#", ".")
        for line in draw(picture_of(chosen), marks):
            shown.print(line, overflow="crop", no_wrap=True)


def _groups_table(opened: "Source", chosen: "Subnetwork") -> "Table":
    """Groups that differ only in the layer are one row."""
    from rich.table import Table

    prefix = opened.architecture.family.layers + "."
    folded: dict[tuple[str, tuple[str, ...], tuple[int, ...], int], list[int]] = {}
    for group, width in zip(opened.space.groups, chosen.widths, strict=True):
        layer = group.modules[0].removeprefix(prefix).split(".")[0]
        whole = f"{prefix}{layer}"
        names = tuple("layer" if module == whole else module.removeprefix(f"{whole}.") for module in group.modules)
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
