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
    require_extra,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.exporting.options import CALIBRATION_PROMPTS, ExportOptions
from lonas_edge.exporting.ovms import SERVERS
from lonas_edge.exporting.stages import STAGES
from lonas_edge.formats import (
    DEFAULT_FORMAT,
    DEFAULT_GGUF_TYPE,
    DEFAULT_METHOD,
    DTYPES,
    FORMATS,
    GGUF_TYPES,
    METHODS,
)
from lonas_edge.network.solved import SOLVE_PROMPTS

if TYPE_CHECKING:
    from lonas_edge.exporting.manifest import Manifest


_Output = Annotated[
    Path, typer.Option("--output", click_type=USER_PATH, help="Directory to write; it appears whole or not at all.")
]
_WeightFormat = Annotated[
    str,
    typer.Option(
        "--weight-format",
        click_type=choice(FORMATS),
        help="Storage of the IR's weights; all but fp32 and fp16 are compressed by NNCF, embedding and head to 8 bits.",
    ),
]
_GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        min=-1,
        help="Columns of a weight matrix that share a scale in a format of groups; -1: whole rows do. It must divide the "
        "input width of every layer. Default: the largest of 128, 64 and 32 that does.",
    ),
]
_Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio",
        min=0,
        max=1,
        help="Share of the weights between embedding and head, at most, that gets the format; the rest stays in int8: the "
        "matrices that NNCF finds most sensitive. Default: 1.",
    ),
]
_Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        click_type=USER_PATH,
        metavar="DATA",
        help="Instruction data that the compression of int4 and int4_sym looks at. The whole network is then in memory, "
        "uncompressed. Default: weights alone decide.",
    ),
]
_Int4Method = Annotated[
    str | None,
    typer.Option(
        "--int4-method",
        click_type=choice(METHODS),
        help="What --calibration does, by NNCF. Default: gptq.",
    ),
]
_CalibrationPrompts = Annotated[
    int | None, typer.Option("--calibration-prompts", min=1, help="Prompts of --calibration. Default: 64.")
]
_Stage = Annotated[
    str,
    typer.Option(
        "--stage",
        click_type=choice(STAGES),
        help="What is written: checkpoint is the sliced, merged Hugging Face checkpoint, gguf a file for llama.cpp.",
    ),
]
_Dtype = Annotated[
    str | None,
    typer.Option("--dtype", click_type=choice(DTYPES), help="Stored dtype with --stage checkpoint. Default: that of the base."),
]
_GgufType = Annotated[
    str | None,
    typer.Option(
        "--gguf-type",
        click_type=choice(GGUF_TYPES),
        help="Storage of the matrices with --stage gguf. Default: q8_0, and f16 where 32 does not divide their columns.",
    ),
]
_Server = Annotated[
    str | None,
    typer.Option(
        "--server",
        click_type=choice(SERVERS),
        help="Write what a server wants beside the IR, too; ovms is OpenVINO Model Server's graph.pbtxt. Default: none.",
    ),
]
_Solve = Annotated[
    Path | None,
    typer.Option(
        "--solve",
        click_type=USER_PATH,
        metavar="DATA",
        help="Instruction data to solve what is cut on: the weights behind each cut answer as nearly as they can as the "
        "uncut layer does. Default: nothing is solved.",
    ),
]
_SolvePrompts = Annotated[
    int | None,
    typer.Option(
        "--solve-prompts",
        min=1,
        help="Prompts to solve on; an eighth as many more are held out, to see what it gives. Default: 512.",
    ),
]
_Fuse = Annotated[
    bool,
    typer.Option(
        "--fuse/--no-fuse",
        help="Store matrices that multiply the same input as one (q, k and v of a layer): fewer, larger products.",
    ),
]
_Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="Compare logits, and refuse to finish when they differ.")]
_CompareTexts = Annotated[
    bool,
    typer.Option(
        "--compare-texts",
        help="Have the IR and the same sub-network in fp32 generate texts, and report FDT and SDT (first divergent token, "
        "divergent tokens) as who_what_benchmark does. The sub-network is then in memory in fp32. Default: logits alone.",
    ),
]


def command(
    ctx: typer.Context,
    source: SourceArgument,
    output: _Output,
    subnet: SubnetOption = None,
    weight_format: _WeightFormat = DEFAULT_FORMAT,
    group_size: _GroupSize = None,
    ratio: _Ratio = None,
    calibration: _Calibration = None,
    int4_method: _Int4Method = None,
    calibration_prompts: _CalibrationPrompts = None,
    stage: _Stage = "ir",
    dtype: _Dtype = None,
    gguf_type: _GgufType = None,
    server: _Server = None,
    model: ModelOption = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    solve: _Solve = None,
    solve_prompts: _SolvePrompts = None,
    fuse: _Fuse = True,
    verify: _Verify = True,
    compare_texts: _CompareTexts = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a sub-network as a directory that OpenVINO clients run as it is.

    SOURCE is a super-adapter directory, a PEFT adapter (with --model and --nncf-config), or a base model; or a hub id. A plain
    LoRA adapter needs no --nncf-config and has the maximal network only.
    """
    of_an_ir = any(given(ctx, name) for name in ("fuse", "group_size", "ratio", "calibration"))
    _refuse_what_does_nothing(stage, dtype, gguf_type, given(ctx, "weight_format"), of_an_ir)
    if server and stage != "ir":
        raise typer.BadParameter(f"--server {server} goes with --stage ir")
    _refuse_texts_that_say_nothing(compare_texts, stage, weight_format, verify)
    _refuse_storage_that_is_none(weight_format, group_size, ratio)
    _refuse_calibration_of_nothing(weight_format, calibration, int4_method, calibration_prompts)
    if solve_prompts and not solve:
        raise typer.BadParameter("--solve-prompts goes with --solve")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with progress(left=False) as report:
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.output import OutputDirectory
        OutputDirectory(output, overwrite, (source, model, nncf_config, solve, calibration, *files([subnet]))).check(0)
        opened = open_source(source, model, nncf_config, revision)
        refuse_revision(revision, opened.base)
        chosen = opened.select(subnet)
        with importing():
            from lonas_edge.exporting.export import export
        options = ExportOptions(
            weight_format=weight_format,
            stage=stage,
            dtype=dtype,
            gguf_type=gguf_type or DEFAULT_GGUF_TYPE,
            verify=verify,
            overwrite=overwrite,
            solve=solve,
            solve_prompts=solve_prompts or SOLVE_PROMPTS,
            fuse=fuse,
            group_size=group_size,
            ratio=1.0 if ratio is None else ratio,
            calibration=calibration,
            int4_method=int4_method or DEFAULT_METHOD,
            calibration_prompts=calibration_prompts or CALIBRATION_PROMPTS,
            server=server,
            compare_texts=compare_texts,
        )
        manifest = export(opened, chosen, output, options, report)
    as_told = any(given(ctx, name) for name in ("group_size", "ratio", "calibration"))
    if (trained_as := opened.trained_as) and (manifest.weight_format != trained_as or as_told):
        console(stderr=True).print(
            f"warning: {source} was trained as {trained_as} stores it (`train --weight-format`), and here it is stored "
            f"otherwise. What was trained is `export --weight-format {trained_as}`, without --group-size, --ratio "
            "and --calibration.",
            style="yellow",
        )
    if as_json:
        print(json.dumps(manifest.to_json(), indent=2))
    else:
        _print(manifest, output)


def _refuse_what_does_nothing(
    stage: str, dtype: str | None, gguf_type: str | None, weight_format_given: bool, storage_given: bool
) -> None:
    own = {"checkpoint": "--dtype", "gguf": "--gguf-type", "ir": "--weight-format"}
    if dtype and stage != "checkpoint":
        raise typer.BadParameter(f"--dtype goes with --stage checkpoint; --stage {stage} has {own[stage]}")
    if gguf_type and stage != "gguf":
        raise typer.BadParameter(f"--gguf-type goes with --stage gguf; --stage {stage} has {own[stage]}")
    if stage != "ir" and weight_format_given:
        raise typer.BadParameter(f"--weight-format is an IR's; --stage {stage} has {own[stage]}")
    if stage != "ir" and storage_given:
        raise typer.BadParameter(f"--fuse, --no-fuse, --group-size, --ratio, --calibration: an IR's; not --stage {stage}'s")
    if stage == "gguf":
        require_extra("gguf", "gguf")


def _refuse_texts_that_say_nothing(asked: bool, stage: str, weight_format: str, verify: bool) -> None:
    if asked and (stage != "ir" or weight_format == "fp32"):
        raise typer.BadParameter("--compare-texts is for IRs of another format than fp32, with which they are compared")
    if asked and not verify:
        raise typer.BadParameter("--compare-texts goes with --verify")


def _refuse_storage_that_is_none(weight_format: str, group_size: int | None, ratio: float | None) -> None:
    known = FORMATS[weight_format]
    if group_size == 0:
        raise typer.BadParameter("--group-size 0: expected a number of columns, or -1 for whole rows")
    if group_size is not None and not known.group_sizes:
        grouped = ", ".join(name for name, one in FORMATS.items() if one.group_sizes)
        raise typer.BadParameter(f"--group-size goes with --weight-format {grouped}; {weight_format} knows no groups")
    if ratio is not None and not known.outer:
        mixed = ", ".join(name for name, one in FORMATS.items() if one.outer)
        raise typer.BadParameter(f"--ratio goes with --weight-format {mixed}; {weight_format} has no rest")


def _refuse_calibration_of_nothing(weight_format: str, data: Path | None, method: str | None, prompts: int | None) -> None:
    if data is None and (method or prompts):
        raise typer.BadParameter("--int4-method and --calibration-prompts go with --calibration")
    if data is not None and not FORMATS[weight_format].group_sizes:
        known = ", ".join(name for name, one in FORMATS.items() if one.group_sizes)
        raise typer.BadParameter(f"--calibration goes with --weight-format {known}; {weight_format} needs no data")


def _print(manifest: "Manifest", output: Path) -> None:
    from rich.table import Table

    from lonas_edge.exporting.manifest import COMPARED

    shown = console()
    before, after = manifest.sizes.unpruned.parameters, manifest.sizes.subnetwork.parameters
    shown.print(
        f"{output}: {manifest.subnetwork.name} sub-network, {manifest.formats}, {after / 1e6:,.1f} M parameters "
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
    if texts := manifest.texts:
        shown.print(
            f"texts, {texts.prompts} of up to {texts.new_tokens} tokens, against fp32: "
            f"FDT {texts.fdt:.1f} ({texts.fdt_norm:.2f} of a text), "
            f"SDT {texts.sdt:.1f} ({texts.sdt_norm:.2f} of a text), {texts.equal} equal"
        )
    seconds = {name.replace("_", " "): step.seconds for name, step in manifest.steps.items()}
    shown.print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
