"""`lonas-edge space`: write a search space for a model."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import BLOCK_KINDS
from lonas_edge.options import COMMAS, Names, Options, PathOrName, UserPath, option
from lonas_edge.output import check_replaceable

if TYPE_CHECKING:
    from lonas_edge.network.source import Source
    from lonas_edge.space.architecture import Architecture

_ATTENTION = BLOCK_KINDS[0]
_Ratio = Annotated[float, Field(gt=0, le=1)]
_RATIOS = (1.0, 0.875, 0.75, 0.625, 0.5)


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(Options):
    """The dimensions of a search space."""

    model: PathOrName | None = option(
        None,
        metavar="MODEL",
        help="Base model, a directory (config.json is enough without --data) or hub id (ID or ID@REVISION).",
        unset="the one that --adapter names",
    )
    output: UserPath = option(metavar="FILE.json", help="NNCF configuration to write.")
    adapter: PathOrName | None = option(
        None, metavar="ADAPTER", help="LoRA adapter that the space is for; sets ranks and target modules."
    )
    data: UserPath | None = option(
        None,
        exists=True,
        metavar="FILE",
        help="Examples by which to sort the channels of a model without elastic training, the most important one first.",
    )
    ratios: Annotated[tuple[_Ratio, ...], COMMAS] = option(
        (),
        help="MLP widths, as fractions of the full width.",
        unset="1,0.875,0.75,0.625,0.5; 1 for an --adapter of a language model without --heads or --data",
    )
    depth: Names = option(
        (),
        choices=BLOCK_KINDS,
        help="Kinds of blocks that can be removed; of encoders layer, of others attention and mlp, or layer (both).",
        unset="none; attention for an --adapter of a language model without --heads or --data",
    )
    heads: bool = option(
        False, panel="Advanced", help="Add elastic attention heads, with the fractions of --ratios. Encoders have them anyway."
    )
    ranks: Annotated[tuple[int, ...], COMMAS] | None = option(
        None,
        panel="Advanced",
        help="LoRA ranks.",
        unset="the family's published ones (32,28; encoders: 8,4,2), or the same fractions of the adapter's rank",
    )
    template: str | None = option(None, choices=(*TEMPLATES, CHAT), hidden=True, help="Prompt template for --data.")
    max_length: int | None = option(None, hidden=True, minimum=2, help="Tokens of the longest example of --data.")
    overwrite: bool = option(False, panel="Output", help="Replace an existing file.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not (self.model or self.adapter):
            yield "pass --model, or --adapter to read the base model from its configuration"


@command
def run(options: SpaceOptions) -> None:
    """Write a search space: elastic LoRA ranks, elastic widths of MLPs and attention, and blocks that can be removed."""
    with progress(left=False):
        from lonas_edge.files import replace_text
        from lonas_edge.network.source import open_source
        from lonas_edge.network.super_network import order_channels
        from lonas_edge.space.generate import generate_space, removable_blocks

    check_replaceable(options.output, options.overwrite, (options.model, options.adapter), directory=False)
    base = options.model if options.adapter else None
    source = open_source(options.adapter or options.model, base, weights=options.data is not None, elastic=False)
    _check_adapter(options, source)
    architecture, ranks = source.architecture, source.ranks() or None
    ratios, depth = _freedom(options, architecture)
    offered = removable_blocks(architecture, depth, str(source.base.folder))
    content = generate_space(architecture, ratios, options.ranks, offered, options.heads, ranks, bool(options.data))
    if options.data:
        data = source.open_data(options.data, options.template, max_length=options.max_length)
        order_channels(source, content, data, str(options.output))
    replace_text(options.output, json.dumps(content, indent=2) + "\n")
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    name = (source.adapter or source.base).name
    console(stderr=True, soft_wrap=True).print(f"{options.output}: {len(groups) + len(offered)} elastic groups for {name}")


def _freedom(options: SpaceOptions, architecture: "Architecture") -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The MLP widths and the removable blocks. MLPs of a plain adapter whose channels are not sorted stay full."""
    attention = any(block.kind == _ATTENTION for block in architecture.blocks.values())
    if options.heads or options.data or not options.adapter or not attention:
        return options.ratios or _RATIOS, options.depth
    return options.ratios or (1.0,), options.depth or (_ATTENTION,)


def _check_adapter(options: SpaceOptions, source: "Source") -> None:
    if options.adapter and source.adapter is None:
        raise LonasEdgeError(f"--adapter {options.adapter}: {source.folder} is a base model; pass it as --model")
    if source.training and source.training.recovered and source.training.recovered.widths:
        name = source.training.recovered.subnetwork
        raise LonasEdgeError(f"{source.folder}: fine-tuned for its {name} sub-network alone; pass the super-adapter instead")
    if options.data and (source.order or (source.training and source.training.search_space)):
        raise LonasEdgeError(f"--data: {source.folder} is trained elastically, and has its own order of channels. Omit --data.")
