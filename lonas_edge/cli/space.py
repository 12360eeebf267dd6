"""`lonas-edge space`: write a search space for a model."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from lonas_edge.cli.options import (
    USER_PATH,
    USER_PATH_OR_NAME,
    OverwriteOption,
    RevisionOption,
    choice,
    given,
    loading,
    refuse_revision,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import one_line
from lonas_edge.families import BLOCK_KINDS

if TYPE_CHECKING:
    from lonas_edge.search.depth import BlockCost

_SEED = 0  # of the choice of prompts
_Number = TypeVar("_Number", int, float)


def _numbers(kind: Callable[[str], _Number], text: str) -> list[_Number]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise typer.BadParameter(f"expected finite numbers separated by commas, found {one_line(repr(text))}")
    return found


_Model = Annotated[
    str,
    typer.Option("--model", click_type=USER_PATH_OR_NAME, help="Base model, a directory (config.json is enough) or hub id."),
]
_Output = Annotated[Path, typer.Option("--output", click_type=USER_PATH, help="The NNCF configuration file to write.")]
_Ratios = Annotated[str, typer.Option("--ratios", help="Admissible MLP widths, as shares of the full one.")]
_Ranks = Annotated[
    str | None,
    typer.Option("--ranks", help="Admissible LoRA ranks. Default: the published ones of the family, 32,28; BERT: 8,4,2."),
]
_SeqLen = Annotated[
    int | None,
    typer.Option("--seq-len", min=1, help="Sequence length that sizes are counted at. Default: 256; BERT: 128."),
]
_Depth = Annotated[
    str | None,
    typer.Option(
        "--depth", help="Blocks that may be left out: attention, mlp, or both with a comma between them. Default: none."
    ),
]
_Heads = Annotated[
    bool,
    typer.Option("--heads", help="Elastic heads, at the shares of --ratios: query heads with their key-value head."),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        click_type=USER_PATH,
        help="With --depth: prompts with answers, as of `train`, on which it is measured what each block costs; dear ones "
        "are kept. Default: not measured; those of the first and last layer are kept.",
    ),
]
_Prompts = Annotated[int, typer.Option("--val-set-size", min=1, help="With --data: how many of them, a seeded choice.")]
_Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        click_type=choice((*TEMPLATES, CHAT)),
        help="Prompt template of --data. Default: chat for conversations, else alpaca.",
    ),
]


def command(
    ctx: typer.Context,
    model: _Model,
    output: _Output,
    ratios: _Ratios = "1,.875,.75,.625,.5",
    ranks: _Ranks = None,
    seq_len: _SeqLen = None,
    depth: _Depth = None,
    heads: _Heads = False,
    data: _Data = None,
    prompts: _Prompts = 32,
    prompt: _Prompt = None,
    revision: RevisionOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a search space: elastic ranks of q, k, v and of gate, up; elastic MLP widths and heads; blocks to leave out.

    BERT's has heads as published, without --heads.
    """
    parsed_ratios, parsed_ranks = _numbers(float, ratios), None if ranks is None else _numbers(int, ranks)
    kinds = tuple(dict.fromkeys(part.strip() for part in depth.split(","))) if depth is not None else ()
    _refuse_what_does_nothing(ctx, kinds, data)
    with loading():
        from lonas_edge.files import replace_text
        from lonas_edge.network.source import locate, read_model_config
        from lonas_edge.output import check_output_file
        from lonas_edge.search.depth import candidates, offered
        from lonas_edge.space.architecture import Architecture
        from lonas_edge.space.generate import generate_space

    check_output_file(output, overwrite, (model,))
    located = locate(model, revision, weights=data is not None)
    refuse_revision(revision, located)
    architecture = Architecture.from_config(read_model_config(located), str(located.folder))
    generate_space(architecture, parsed_ratios, parsed_ranks, seq_len, heads=heads)  # refuses before anything is measured
    blocks = candidates(architecture, kinds, str(located.folder))
    if data is not None:
        blocks = _measured(model, revision, blocks, data, prompts, prompt)
    chosen, kept = offered(architecture, blocks)
    content = generate_space(architecture, parsed_ratios, parsed_ranks, seq_len, [block.path for block in chosen], heads)
    replace_text(output, json.dumps(content, indent=2) + "\n")
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    shown = console(stderr=True, soft_wrap=True)
    shown.print(f"{output}: {len(groups) + len(chosen)} elastic groups for {located.name}")
    order = "in the model's order" if data is None else "cheapest first"
    for kind in kinds:
        shown.print(f"{kind}: {_told(chosen, kind)} may be left out, {order}; {_told(kept, kind)} kept")
    if kinds and data is None:
        shown.print("What they cost was not measured: --data FILE.json orders them and keeps the dear ones.")


def _measured(
    model: str, revision: str | None, blocks: "Sequence[BlockCost]", data: Path, prompts: int, prompt: str | None
) -> "list[BlockCost]":
    from lonas_edge.network.source import open_source
    from lonas_edge.search.depth import measured

    with progress() as report:
        return measured(open_source(model, revision=revision), blocks, data, prompts, prompt, _SEED, report)


def _refuse_what_does_nothing(ctx: typer.Context, kinds: tuple[str, ...], data: Path | None) -> None:
    if unknown := [kind for kind in kinds if kind not in BLOCK_KINDS]:
        raise typer.BadParameter(f"--depth: expected {' or '.join(BLOCK_KINDS)}, found {one_line(repr(', '.join(unknown)))}")
    if data is not None and not kinds:
        raise typer.BadParameter("--data: measures what blocks cost; give --depth, too")
    if data is None and (idle := [name for name in ("prompts", "prompt") if given(ctx, name)]):
        flags = {"prompts": "--val-set-size", "prompt": "--prompt"}
        raise typer.BadParameter(f"{', '.join(flags[name] for name in idle)}: of --data, which is not given")


def _told(blocks: "Sequence[BlockCost]", kind: str) -> str:
    """Layers of a kind of blocks, with what each costs where that was measured."""
    layers = [
        f"{next(part for part in block.path.split('.') if part.isdigit())}"
        + (f" ({block.kl:.2g})" if block.kl is not None else "")
        for block in blocks
        if block.kind == kind
    ]
    return f"layer{'s' * (len(layers) != 1)} {', '.join(layers)}" if layers else "none"
