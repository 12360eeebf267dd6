"""`lonas-edge export`: a sub-network as OpenVINO IR or checkpoint."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import SourceOptions, SubnetOptions, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.options import UserPath, option
from lonas_edge.output import OutputDirectory

if TYPE_CHECKING:
    from lonas_edge.exporting.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class ExportCommand(ExportOptions, SubnetOptions, SourceOptions):
    """All options of the command."""

    output: UserPath = option(metavar="DIR", help="Directory to write.")


@command
def run(options: ExportCommand) -> None:
    """Export a sub-network as a directory that OpenVINO clients open without lonas-edge.

    A plain LoRA adapter needs no search space and has the maximal network only.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with progress(left=False) as report:
        from lonas_edge.network.source import open_source

        read = (options.source, options.model, options.nncf_config, options.calibration)
        files = [options.subnet] if options.subnet and Path(options.subnet).is_file() else []
        OutputDirectory(options.output, options.overwrite, (*read, *files)).check(0)
        opened = open_source(options.source, options.model, options.nncf_config)
        chosen = opened.select(options.subnet)
        from lonas_edge.exporting.calibration import loss_warnings
        from lonas_edge.exporting.export import export

        manifest = export(opened, chosen, options.output, options.part(ExportOptions), report)
    for warning in loss_warnings(opened, options, manifest):
        console(stderr=True).print(f"warning: {warning}", style="yellow")
    _print(manifest, options.output)


def _print(manifest: "Manifest", output: Path) -> None:
    shown = console()
    before, after = manifest.sizes.unpruned.parameters, manifest.sizes.subnetwork.parameters
    shown.print(
        f"{output}: {manifest.subnetwork.name} sub-network, {manifest.formats}, {after / 1e6:,.1f} M parameters "
        f"({after / before:.1%} of the unpruned model's {before / 1e6:,.1f} M)",
    )
    if manifest.verified:
        manifest.parity_table.print(shown)
    else:
        shown.print("not verified (--no-verify)")
    seconds = {name.replace("_", " "): step.seconds for name, step in manifest.steps.items()}
    shown.print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
