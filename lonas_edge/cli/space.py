"""`lonas-edge space`: write a search space for a model."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from lonas_edge.cli.options import USER_PATH, USER_PATH_OR_NAME, OverwriteOption, RevisionOption, loading, refuse_revision
from lonas_edge.cli.terminal import console
from lonas_edge.errors import one_line

_Number = TypeVar("_Number", int, float)


def _numbers(kind: Callable[[str], _Number], text: str) -> list[_Number]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise typer.BadParameter(f"expected finite numbers separated by commas, found {one_line(repr(text))}")
    return found


def command(
    model: Annotated[
        str,
        typer.Option(
            "--model", click_type=USER_PATH_OR_NAME, help="Base model, a directory (config.json is enough) or hub id."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", click_type=USER_PATH, help="The NNCF configuration file to write.")],
    ratios: Annotated[
        str, typer.Option("--ratios", help="Admissible MLP widths, as shares of the full one.")
    ] = "1,.875,.75,.625,.5",
    ranks: Annotated[str, typer.Option("--ranks", help="Admissible LoRA ranks.")] = "32,28",
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Sequence length that sizes are counted at.")] = 256,
    revision: RevisionOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a search space: elastic ranks of q, k, v and of gate, up; elastic MLP widths."""
    parsed_ratios, parsed_ranks = _numbers(float, ratios), _numbers(int, ranks)
    with loading():
        from lonas_edge.files import replace_text
        from lonas_edge.network.source import locate, read_model_config
        from lonas_edge.output import check_output_file
        from lonas_edge.space.architecture import Architecture
        from lonas_edge.space.generate import generate_space

    check_output_file(output, overwrite, (model,))
    located = locate(model, revision, weights=False)
    refuse_revision(revision, located)
    architecture = Architecture.from_config(read_model_config(located), str(located.folder))
    content = generate_space(architecture, parsed_ratios, parsed_ranks, seq_len)
    replace_text(output, json.dumps(content, indent=2) + "\n")
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    console(stderr=True).print(f"{output}: {len(groups)} elastic groups for {located.name}")
