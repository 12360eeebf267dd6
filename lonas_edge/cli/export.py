"""`lonas-edge export`: a sub-network, sliced, merged, compressed, as OpenVINO IR."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lonas_edge.cli.options import JsonOption, ModelOption, RevisionOption, SourceArgument, SpaceOption, SubnetOption


class WeightFormatChoice(StrEnum):
    """How the IR's weights are stored."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


class StageChoice(StrEnum):
    """Where to stop."""

    CHECKPOINT = "checkpoint"
    IR = "ir"


class DtypeChoice(StrEnum):
    """Stored dtype of a checkpoint."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def command(
    source: SourceArgument,
    output: Annotated[Path, typer.Option("--output", help="Directory to write; it appears whole or not at all.")],
    subnet: SubnetOption = None,
    weight_format: Annotated[
        WeightFormatChoice,
        typer.Option("--weight-format", help="Storage of the IR's weights; int8 and int4 are compressed by NNCF."),
    ] = WeightFormatChoice.INT8,
    stage: Annotated[
        StageChoice, typer.Option("--stage", help="checkpoint stops at the sliced, merged Hugging Face checkpoint.")
    ] = StageChoice.IR,
    dtype: Annotated[
        DtypeChoice | None,
        typer.Option("--dtype", help="Stored dtype with --stage checkpoint. Default: that of the base."),
    ] = None,
    model: ModelOption = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare logits, and refuse to finish when they differ.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a sub-network as a directory that OpenVINO clients run as it is.

    SOURCE is a super-adapter directory, a PEFT adapter (with --model and --nncf-config), or a base model; or a hub id. A plain
    LoRA adapter needs no --nncf-config and has the maximal network only.
    """
    if dtype and stage == StageChoice.IR:
        raise typer.BadParameter("--dtype goes with --stage checkpoint; an IR has --weight-format")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with _progress() as report:
        report("Loading", None)
        from lonas_edge.network.source import open_source
        from lonas_edge.output import OutputDirectory
        from lonas_edge.space.subnetwork import select

        OutputDirectory(output, overwrite).check(0)
        opened = open_source(source, model, nncf_config, revision)
        chosen = select(opened.space, subnet)
        from lonas_edge.exporting.export import ExportOptions, export

        options = ExportOptions(
            weight_format=weight_format.value,
            stage=stage.value,
            dtype=dtype.value if dtype else None,
            verify=verify,
            overwrite=overwrite,
        )
        manifest = export(opened, chosen, output, options, report)
    if as_json:
        print(json.dumps(manifest, indent=2))
    else:
        _print(manifest, output)


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on standard error: the step, and its share done where that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(step: str, done: float | None) -> None:
            bar.update(task, description=step, total=None if done is None else 1, completed=done or 0)

        yield report


def _print(manifest: dict[str, Any], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    sizes, kind = manifest["sizes"], manifest["weight_format"]
    before, after = sizes["unpruned"]["parameters"], sizes["subnetwork"]["parameters"]
    console.print(
        f"{output}: {manifest['subnetwork']['name']} sub-network, {kind}, {after / 1e6:,.1f} M parameters "
        f"({after / before:.1%} of the unpruned model's {before / 1e6:,.1f} M)",
        highlight=False,
    )
    table = Table(title="Parity", title_justify="left")
    for column in ("logits", "largest difference", "mean KL, nats", "same top token"):
        table.add_column(column, justify="left" if column == "logits" else "right")
    names = {
        "materialized": "materialized model / activated super-network",
        "stored": f"{kind} checkpoint / materialized model",
        "ir_stored": f"{kind} IR / its stored weights",
        "ir": f"{kind} IR / materialized model",
    }
    for key, parity in manifest["parity"].items():
        table.add_row(
            names[key],
            f"{parity['max_logit_difference']:.1e}",
            f"{parity['mean_kl']:.1e}",
            f"{parity['top1_agreement']:.1%}",
        )
    console.print(table if manifest["parity"] else "not verified (--no-verify)")
    seconds = {name.replace("_", " "): step["seconds"] for name, step in manifest["steps"].items()}
    console.print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()), highlight=False)
