"""`lonas-edge inspect`: the sizes of a sub-network next to those of the unpruned model, from configurations alone."""

import json
from typing import TYPE_CHECKING, Any

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import JsonOptions, SourceOptions, SubnetOptions, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.options import option
from lonas_edge.tables import Table

if TYPE_CHECKING:
    from lonas_edge.network.source import Source
    from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True, kw_only=True)
class InspectOptions(JsonOptions, SubnetOptions, SourceOptions):
    """What is counted and shown."""

    seq_len: int | None = option(
        None, help="Sequence length of the MACs, in tokens.", minimum=1, unset="the search space's, 256 in the published ones"
    )


@command
def run(options: InspectOptions) -> None:
    """Show the sizes of a sub-network next to those of the unpruned model, and a picture of it. No weights are read."""
    with progress(left=False):
        from lonas_edge.network.source import open_source

        opened = open_source(options.source, options.model, options.nncf_config, weights=False)
    chosen = opened.select(options.subnet)
    unpruned, small = (
        {
            **opened.sizes(network, options.seq_len).to_json(),
            "kv_elements": network.kv_elements(),
            "token_parameters": network.token_parameters(opened.unties),
        }
        for network in (opened.unpruned, chosen)
    )
    if not options.json:
        _print(opened, chosen, unpruned, small)
        return
    groups = [
        {"name": name, "kind": group.kind, "modules": list(group.modules), "widths": list(group.widths), "width": width}
        for group, (name, width) in zip(opened.space.groups, chosen.by_group.items(), strict=True)
    ]
    print(json.dumps({"unpruned": unpruned, "subnetwork": small, "groups": groups}, indent=2))


def _print(opened: "Source", chosen: "Subnetwork", before: dict[str, Any], after: dict[str, Any]) -> None:
    from lonas_edge.space.picture import EMPTY, FULL, draw, picture_of

    names = {
        "parameters": "parameters (merged)",
        "token_parameters": "parameters of embedding and head",
        "linear_weights": "linear weights, LM head and adapters (“total params”)",
        "macs": f"MACs, {after['seq_len']} tokens (“TFLOPs”)",
        "kv_elements": "KV cache, values a token",
    }
    figures = [(title, before[name], after[name]) for name, title in names.items() if before[name]]
    figures += [(f"bytes, {kind}", before["bytes"][kind], after["bytes"][kind]) for kind in after["bytes"]]
    rows = [(title, f"{full:,}", f"{small:,}", f"{small / full:.3f}") for title, full, small in figures]
    title = f"{opened.base.name}, {chosen.name} sub-network"
    shown = console()
    Table(("", "unpruned LoRA", chosen.name, "ratio"), rows, title).print(shown)
    if opened.space.groups:
        marks = (FULL, EMPTY) if shown.encoding.lower().startswith("utf") else ("#", ".")
        for line in draw(picture_of(chosen), marks):
            shown.print(line, overflow="crop", no_wrap=True)
