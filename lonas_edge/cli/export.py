"""`lonas-edge export`: a sub-network as OpenVINO IR or checkpoint."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import JsonOptions, SourceOptions, SubnetOptions
from lonas_edge.cli.terminal import console, importing, progress
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.formats import FORMATS
from lonas_edge.options import UserPath, option

if TYPE_CHECKING:
    from lonas_edge.exporting.manifest import Manifest
    from lonas_edge.network.source import Source


@dataclass(frozen=True, kw_only=True)
class ExportCommand(ExportOptions, JsonOptions, SubnetOptions, SourceOptions):
    """All options of the command."""

    output: UserPath = option(metavar="DIR", help="Directory to write.")


@command
def run(options: ExportCommand) -> None:
    """Export a sub-network as a directory that OpenVINO clients open without lonas-edge.

    A plain LoRA adapter needs no search space and has the maximal network only.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two processes share the cores: a waiting thread must not spin
    with progress(left=False) as report:
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.output import OutputDirectory
        read = (options.source, options.model, options.nncf_config, options.calibration)
        files = [options.subnet] if options.subnet and Path(options.subnet).is_file() else []
        OutputDirectory(options.output, options.overwrite, (*read, *files)).check(0)
        opened = open_source(options.source, options.model, options.nncf_config)
        chosen = opened.select(options.subnet)
        with importing():
            from lonas_edge.exporting.export import export
        manifest = export(opened, chosen, options.output, options.part(ExportOptions), report)
    for warning in _warnings(opened, options.source, manifest, options):
        console(stderr=True).print(f"warning: {warning}", style="yellow")
    if options.json:
        print(json.dumps(manifest.to_json(), indent=2))
    else:
        _print(manifest, options.output)


def _warnings(source: "Source", name: str, manifest: "Manifest", options: ExportOptions) -> Iterator[str]:
    """Warn of quantization-aware training for another format, and of an INT4 head that is rounded without data."""
    from lonas_edge.exporting.calibration import as_trained

    of_head, trained = manifest.head and FORMATS[manifest.head.weight_format].bits == 4, source.trained_as
    if trained and not (as_trained(trained, options) and (options.calibration is None or of_head)):
        yield (
            f"{name} was trained for --weight-format {trained} (quantization-aware); this export stores it differently. "
            f"Pass --weight-format {trained}, without --group-size, and with --calibration for an INT4 head only."
        )
    if of_head and manifest.calibrated is None:
        yield (
            "the INT4 head was rounded without data, which costs much accuracy. Pass --calibration DATA; it needs INT4 layers."
        )


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
