"""`lonas-edge space`: write a search space for a model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import check_revision, revision_option
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console, loading
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.families import BLOCK_KINDS
from lonas_edge.options import Checked, option

if TYPE_CHECKING:
    from lonas_edge.search.depth import BlockCost

_SEED = 0  # of the choice of prompts


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(Checked):
    """The dimensions of a search space."""

    model: str = option(path=True, metavar="MODEL", help="Base model, a directory (config.json is enough) or hub id.")
    output: Path = option(metavar="FILE.json", help="NNCF configuration to write.")
    ranks: tuple[int, ...] | None = option(None, help="LoRA ranks.", unset="the family's published ones: 32,28; BERT: 8,4,2")
    ratios: tuple[float, ...] = option((1.0, 0.875, 0.75, 0.625, 0.5), help="MLP widths, as fractions of the full width.")
    depth: tuple[str, ...] = option((), choices=BLOCK_KINDS, help="Kinds of blocks that can be removed.")
    heads: bool = option(False, help="Add elastic attention heads, with the fractions of --ratios. BERT always has them.")
    data: Path | None = option(
        None,
        panel="Data",
        needs="depth",
        help="Training data to measure the sensitivity to each block on; the most sensitive ones stay.",
        unset="not measured; the blocks of the first and the last layer stay",
    )
    num_prompts: int = option(32, panel="Data", needs="data", minimum=1, help="Number of prompts from --data.")
    prompt: str | None = option(
        None,
        panel="Data",
        needs="data",
        choices=(*TEMPLATES, CHAT),
        help="Prompt template for --data.",
        unset="chat for conversations, else alpaca",
    )
    seq_len: int | None = option(
        None, panel="Advanced", minimum=1, help="Sequence length of the MACs, in tokens.", unset="256; BERT: 128"
    )
    revision: str | None = revision_option()
    overwrite: bool = option(False, panel="Output", help="Replace an existing file.")


@command(SpaceOptions)
def run(options: SpaceOptions) -> None:
    """Write a search space: elastic LoRA ranks, elastic widths of MLPs and attention, and blocks that can be removed."""
    with loading():
        from lonas_edge.files import replace_text
        from lonas_edge.network.source import locate, read_model_config
        from lonas_edge.overwrite import check_output_file
        from lonas_edge.search.depth import candidates, offered
        from lonas_edge.space.architecture import Architecture
        from lonas_edge.space.generate import generate_space

    check_output_file(options.output, options.overwrite, (options.model,))
    located = locate(options.model, options.revision, weights=options.data is not None)
    check_revision(options.revision, located)
    architecture = Architecture.from_config(read_model_config(located), str(located.folder))
    ratios, ranks, heads = options.ratios, options.ranks, options.heads
    generate_space(architecture, ratios, ranks, options.seq_len, heads=heads)  # checks before anything is measured
    blocks = candidates(architecture, options.depth, str(located.folder))
    if options.data is not None:
        blocks = _measured(options, options.data, blocks)
    removable, kept = offered(architecture, blocks)
    content = generate_space(architecture, ratios, ranks, options.seq_len, [block.path for block in removable], heads)
    replace_text(options.output, json.dumps(content, indent=2) + "\n")
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    shown = console(stderr=True, soft_wrap=True)
    shown.print(f"{options.output}: {len(groups) + len(removable)} elastic groups for {located.name}")
    order = "in the model's order" if options.data is None else "least sensitive first"
    for kind in options.depth:
        shown.print(f"{kind}: removable: {_layers(removable, kind)}, {order}; always kept: {_layers(kept, kind)}")
    if options.depth and options.data is None:
        shown.print("Sensitivity was not measured. Pass --data FILE to order the blocks and keep the most sensitive ones.")


def _measured(options: SpaceOptions, data: Path, blocks: "Sequence[BlockCost]") -> "list[BlockCost]":
    from lonas_edge.network.source import open_source
    from lonas_edge.search.depth import measured

    with progress() as report:
        base = open_source(options.model, revision=options.revision)
        return measured(base, blocks, data, options.num_prompts, options.prompt, _SEED, report)


def _layers(blocks: "Sequence[BlockCost]", kind: str) -> str:
    """Layers of a kind of blocks, with the KL of each where it was measured."""
    layers = [
        f"{next(part for part in block.path.split('.') if part.isdigit())}"
        + (f" ({block.kl:.2g})" if block.kl is not None else "")
        for block in blocks
        if block.kind == kind
    ]
    return f"layer{'s' * (len(layers) != 1)} {', '.join(layers)}" if layers else "none"
