"""`lonas-edge bench`: latency of a sub-network vs. the unpruned LoRA model."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.variants import Case
from lonas_edge.cli.command import ReportOptions, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.options import COMMAS, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.bench.record import BenchRecord

_Counts = Annotated[tuple[PositiveInt, ...], COMMAS]
_TwoOrMore = Annotated[int, Field(ge=2)]
_ROOM = 10_000_000  # bytes for the report


@dataclass(frozen=True, kw_only=True)
class BenchCommand(ReportOptions, BenchOptions):
    """All options of the command."""

    exported: UserPath = option(argument=True, help="Directory written by `lonas-edge export`.")
    prompt_len: _Counts | None = option(
        None, help="Prompt tokens; several lengths give several tables.", unset="256; 128 for an encoder"
    )
    new_tokens: Annotated[tuple[_TwoOrMore, ...], COMMAS] = option(
        (64,), help="Tokens to generate; several numbers give several tables."
    )
    rounds: int = option(24, panel="Advanced", minimum=1, help="Measured rounds; an interval needs at least 6.")


@command
def run(options: BenchCommand) -> None:
    """Compare the latency of an exported sub-network with the unpruned LoRA model and other variants.

    All variants run in interleaved rounds, each in its own process, on distinct random prompts, and generate a fixed number of
    tokens. An encoder computes one pass per text. Ctrl-C ends the run and reports the completed rounds.
    """
    with progress() as report:
        from lonas_edge.bench.prepare import VARIANTS
        from lonas_edge.bench.report import write
        from lonas_edge.bench.run import bench
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.processes import interrupts_deferred

        folders = [name for name in options.variants or () if name not in VARIANTS]
        directory = options.check_output(
            (options.exported, options.model, options.adapter, options.draft, options.data, *folders), _ROOM
        )
        opened = open_exported(options.exported)
        kind = opened.kind
        if not kind.generates:
            options.refuse_idle(("new_tokens", "draft", "data"), f"{opened.folder} is a {kind.name} and generates nothing")
        if options.data:
            options.refuse_idle(("prompt_len", "new_tokens"), "--data has its own prompts")
        lengths = options.prompt_len or (kind.timed_length(opened.context),)
        cases = product(lengths, options.new_tokens if kind.generates else (0,))
        settings = replace(
            options.part(BenchOptions),
            cases=tuple(Case(length, new) for length, new in cases),
            schedule=Schedule.of(options.rounds),
        )
        result = bench(opened, settings, report)
        if directory:
            with interrupts_deferred(), directory.open() as folder:
                write(result, folder)
    print(json.dumps(result.to_json(), indent=1)) if options.json else _print(result, options.output)
    if result.failures or result.interrupted:
        raise click.exceptions.Exit(1)


def _print(report: "BenchRecord", output: Path | None) -> None:
    from lonas_edge.bench.report import case_tables, describe_conditions, explain, variant_table

    terminal = console()
    for case in dict.fromkeys(row.case for row in report.rows):
        for table in case_tables(report, case):
            table.print(terminal)
    variant_table(report).print(terminal)
    terminal.print(explain(report) + "\n")
    for line in describe_conditions(report):
        terminal.print(line)
    for warning in report.warnings:
        terminal.print(f"warning: {warning}", style="yellow")
    for failure in report.failures:
        terminal.print(f"not measured: {failure.reason}", style="red")
    if output:
        terminal.print(f"\n{output}: bench.json and bench.md")
