"""`lonas-edge export`: a sub-network, sliced, merged, compressed, as OpenVINO IR."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.cli.importing import importing
from lonas_edge.cli.options import (
    USER_PATH,
    JsonOption,
    ModelOption,
    OverwriteOption,
    RevisionOption,
    SourceArgument,
    SpaceOption,
    SubnetOption,
    choice,
    files,
    given,
    refuse_revision,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.exporting.stages import STAGES
from lonas_edge.formats import DTYPES, FORMATS

if TYPE_CHECKING:
    from lonas_edge.exporting.manifest import Manifest


def command(
    ctx: typer.Context,
    source: SourceArgument,
    output: Annotated[
        Path, typer.Option("--output", click_type=USER_PATH, help="Directory to write; it appears whole or not at all.")
    ],
    subnet: SubnetOption = None,
    weight_format: Annotated[
        str,
        typer.Option(
            "--weight-format",
            click_type=choice(FORMATS),
            help="Storage of the IR's weights; int8 and int4 are compressed by NNCF.",
        ),
    ] = "int8",
    stage: Annotated[
        str,
        typer.Option(
            "--stage", click_type=choice(STAGES), help="checkpoint stops at the sliced, merged Hugging Face checkpoint."
        ),
    ] = "ir",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", click_type=choice(DTYPES), help="Stored dtype with --stage checkpoint. Default: that of the base."
        ),
    ] = None,
    model: ModelOption = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    solve: Annotated[
        Path | None,
        typer.Option(
            "--solve",
            click_type=USER_PATH,
            metavar="DATA",
            help="Instruction data to solve what is cut on: the weights behind each cut answer as nearly as they can as the "
            "uncut layer does. Default: nothing is solved.",
        ),
    ] = None,
    solve_prompts: Annotated[
        int | None,
        typer.Option(
            "--solve-prompts",
            min=1,
            help="Prompts to solve on; a quarter as many more are held out, to see what it gives. Default: 512.",
        ),
    ] = None,
    fuse: Annotated[
        bool,
        typer.Option(
            "--fuse/--no-fuse",
            help="Store matrices that multiply the same input as one (q, k and v of a layer): fewer, larger products.",
        ),
    ] = True,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits, and refuse to finish when they differ.")
    ] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a sub-network as a directory that OpenVINO clients run as it is.

    SOURCE is a super-adapter directory, a PEFT adapter (with --model and --nncf-config), or a base model; or a hub id. A plain
    LoRA adapter needs no --nncf-config and has the maximal network only.
    """
    _refuse_what_does_nothing(stage, dtype, given(ctx, "weight_format"), given(ctx, "fuse"))
    if solve_prompts and not solve:
        raise typer.BadParameter("--solve-prompts goes with --solve")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with progress(left=False) as report:
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.output import OutputDirectory
        OutputDirectory(output, overwrite, (source, model, nncf_config, solve, *files([subnet]))).check(0)
        opened = open_source(source, model, nncf_config, revision)
        refuse_revision(revision, opened.base)
        chosen = opened.select(subnet)
        with importing():
            from lonas_edge.exporting.export import ExportOptions, export
            from lonas_edge.exporting.solved import SOLVE_PROMPTS
        options = ExportOptions(weight_format, stage, dtype, verify, overwrite, solve, solve_prompts or SOLVE_PROMPTS, fuse)
        manifest = export(opened, chosen, output, options, report)
    if as_json:
        print(json.dumps(manifest.to_json(), indent=2))
    else:
        _print(manifest, output)


def _refuse_what_does_nothing(stage: str, dtype: str | None, weight_format_given: bool, fuse_given: bool) -> None:
    if dtype and stage != "checkpoint":
        raise typer.BadParameter("--dtype goes with --stage checkpoint; an IR has --weight-format")
    if stage == "checkpoint" and weight_format_given:
        raise typer.BadParameter("--weight-format is an IR's; --stage checkpoint has --dtype")
    if stage == "checkpoint" and fuse_given:
        raise typer.BadParameter("--fuse and --no-fuse are an IR's; --stage checkpoint keeps every matrix")


def _print(manifest: "Manifest", output: Path) -> None:
    from rich.table import Table

    from lonas_edge.exporting.manifest import COMPARED

    shown = console()
    before, after = manifest.sizes.unpruned.parameters, manifest.sizes.subnetwork.parameters
    shown.print(
        f"{output}: {manifest.subnetwork.name} sub-network, {manifest.weight_format}, {after / 1e6:,.1f} M parameters "
        f"({after / before:.1%} of the unpruned model's {before / 1e6:,.1f} M)",
    )
    if solved := manifest.solved:
        outcome = "" if solved.kept else ": no better, the cut is plain"
        shown.print(
            f"solved on {solved.prompts:,} prompts: mean KL from the maximal network {solved.before:.3f} nats before, "
            f"{solved.after:.3f} after{outcome}"
        )
    table = Table(title="Parity", title_justify="left")
    for column in ("logits", "largest difference", "mean KL, nats", "same answer"):
        table.add_column(column, justify="left" if column == "logits" else "right")
    for name, parity in manifest.parity.items():
        figures = f"{parity.max_logit_difference:.1e}", f"{parity.mean_kl:.1e}", f"{parity.top1_agreement:.1%}"
        table.add_row(COMPARED[name], *figures)
    shown.print(table if manifest.parity else "not verified (--no-verify)")
    seconds = {name.replace("_", " "): step.seconds for name, step in manifest.steps.items()}
    shown.print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
