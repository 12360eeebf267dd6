"""`lonas-edge space`: write a search space for a model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lonas_edge.cli.options import RevisionOption, loading


def _numbers(kind: type) -> Any:
    def parse(text: str) -> list:
        try:
            return [kind(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"expected numbers separated by commas, found {text!r}") from None

    return parse


def command(
    model: Annotated[str, typer.Option("--model", help="Base model, a directory (config.json is enough) or hub id.")],
    output: Annotated[Path, typer.Option("--output", help="The NNCF configuration file to write.")],
    ratios: Annotated[
        str, typer.Option("--ratios", help="Admissible MLP widths, as shares of the full one.")
    ] = "1,.875,.75,.625,.5",
    ranks: Annotated[str, typer.Option("--ranks", help="Admissible LoRA ranks.")] = "32,28",
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Sequence length that sizes are counted at.")] = 256,
    revision: RevisionOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a search space: elastic ranks of q, k, v and of gate, up; elastic MLP widths."""
    parsed_ratios, parsed_ranks = _numbers(float)(ratios), _numbers(int)(ranks)
    with loading():
        from lonas_edge.errors import LonasEdgeError
        from lonas_edge.network.source import locate, read_model_config
        from lonas_edge.space.architecture import Architecture
        from lonas_edge.space.generate import generate_space

    if output.exists() and not overwrite:
        raise LonasEdgeError(f"{output}: exists and is kept as it is. Choose another --output, or give --overwrite.")
    located = locate(model, revision, weights=False)
    architecture = Architecture.from_config(read_model_config(located), str(located.folder))
    content = generate_space(architecture, parsed_ratios, parsed_ranks, seq_len)
    partial = output.with_name(f".{output.name}.incomplete")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.rename(output)
    except OSError as error:
        raise LonasEdgeError(f"{output}: cannot be written: {error}") from error
    from rich.console import Console

    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups"]
    Console(stderr=True).print(f"{output}: {len(groups)} elastic groups for {located.name}", highlight=False)
