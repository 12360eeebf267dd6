"""`lonas-edge bench`: latency of a sub-network vs. the unpruned LoRA model."""

import json
from collections.abc import Iterator
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
from lonas_edge.cli.command import command
from lonas_edge.cli.groups import JsonOptions
from lonas_edge.cli.terminal import console, progress
from lonas_edge.options import COMMAS, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.bench.record import BenchRecord
    from lonas_edge.exporting.exported import Exported

_Counts = Annotated[tuple[PositiveInt, ...], COMMAS]
_TwoOrMore = Annotated[int, Field(ge=2)]
_MOST_ROUNDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class BenchCommand(JsonOptions, BenchOptions):
    """All options of the command."""

    exported: UserPath = option(argument=True, help="Directory written by `lonas-edge export`.")
    prompt_len: _Counts | None = option(
        None, help="Prompt tokens; several lengths give several tables.", unset="256; 128 for an encoder"
    )
    new_tokens: Annotated[tuple[_TwoOrMore, ...], COMMAS] = option(
        (64,), help="Tokens to generate; several numbers give several tables."
    )
    output: UserPath | None = option(None, metavar="DIR", help="Directory for bench.json and bench.md.")
    batch_size: _Counts = option((1,), panel="Advanced", help="Prompts per batch.")
    rounds: int = option(
        24,
        panel="Advanced",
        minimum=1,
        maximum=_MOST_ROUNDS,
        help="Measured rounds; an interval needs at least 6.",
    )
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.overwrite and not self.output:
            yield "--overwrite needs --output"


@command
def run(where: BenchCommand) -> None:
    """Compare the latency of an exported sub-network with the unpruned LoRA model and other variants.

    All variants run in interleaved rounds, each in its own process, on distinct random prompts, and generate a fixed number of
    tokens. An encoder computes one pass per text. Ctrl-C ends the run and reports the completed rounds.
    """
    lengths = product(where.batch_size, where.prompt_len or (256,), where.new_tokens)
    cases = tuple(Case(length, new, batch) for batch, length, new in lengths)
    options = replace(where.part(BenchOptions), cases=cases, schedule=Schedule.of(where.rounds))
    with progress() as report:
        from lonas_edge.bench.prepare import VARIANTS
        from lonas_edge.bench.report import write
        from lonas_edge.bench.run import bench
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.output import OutputDirectory
        from lonas_edge.processes import interrupts_deferred

        others = (name for name in options.arms or () if name not in VARIANTS)
        read = (where.exported, options.model, options.adapter, *others)
        directory = OutputDirectory(where.output, where.overwrite, read) if where.output else None
        if directory:
            directory.check(10_000_000)
        opened = open_exported(where.exported)
        result = bench(opened, _for_task(opened, where, options), report)
        if directory:
            with interrupts_deferred(), directory.open() as folder:
                write(result, folder)
    print(json.dumps(result.to_json(), indent=1)) if where.json else _print(result, where.output)
    if result.failures or result.interrupted:
        raise click.exceptions.Exit(1)


def _for_task(opened: "Exported", where: BenchCommand, options: BenchOptions) -> BenchOptions:
    """Adapt the cases to an encoder, which generates no tokens."""
    if opened.kind.generates:
        return options
    if where.given("new_tokens"):
        raise click.UsageError(f"--new-tokens: {opened.folder} is a {opened.kind.name} and generates nothing; omit it")
    length = min(opened.kind.sequence_length, opened.context or opened.kind.sequence_length)
    cases = [replace(case, new_tokens=0) for case in options.cases]
    cases = cases if where.prompt_len else [replace(case, prompt_len=length) for case in cases]
    return replace(options, cases=tuple(dict.fromkeys(cases)))


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
