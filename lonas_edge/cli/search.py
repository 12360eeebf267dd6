"""`lonas-edge search`: the sub-networks worth exporting."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import SourceOptions, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.formats import DEFAULT_FORMAT, FORMATS
from lonas_edge.options import option
from lonas_edge.output import check_replaceable
from lonas_edge.search.options import SearchOptions

if TYPE_CHECKING:
    from lonas_edge.search.record import SearchRecord


@dataclass(frozen=True, kw_only=True)
class SearchCommand(SearchOptions, SourceOptions):
    """All options of the command: also the network that is timed, and how."""

    weight_format: str = option(DEFAULT_FORMAT, panel="Device", choices=tuple(FORMATS), help="Weight format of the IR.")
    device: str = option("CPU", panel="Device", help="OpenVINO device of a latency.")
    prompt_len: int | None = option(
        None, panel="Device", minimum=1, help="Prompt tokens of a latency.", unset="256; 128 for an encoder"
    )
    sampler: str = option("nsga2", choices=("nsga2",), hidden=True, help="For programs that pass it.")


@command
def run(options: SearchCommand) -> None:
    """Search the sub-networks with the best quality at each cost.

    First measures the sensitivity to each elastic group. Then evaluates a warm start, NSGA-II's networks and refinements of
    the best. Blocks alone, and spaces by `space --data`, are searched greedily until --pick is met. The same command continues
    an interrupted search; a higher --evals continues a finished one.
    """
    with progress() as report:
        from lonas_edge.network.source import open_source
        from lonas_edge.search.cost import NEW_TOKENS, CostSettings
        from lonas_edge.search.plan import make_plan

        report("Reading configurations", None)
        opened = open_source(options.source, options.model, options.nncf_config)
        kind = opened.architecture.family.kind
        if not kind.generates:
            options.refuse_idle(("max_length",), f"a {kind.name} cuts longer texts")
        prompt_len = options.prompt_len or kind.timed_length(opened.architecture.context)
        settings = CostSettings(options.weight_format, options.device, prompt_len, NEW_TOKENS if kind.generates else 0)
        plan = make_plan(opened, replace(options.part(SearchOptions), cost_settings=settings))
        if options.overwrite:  # `search` knows the other inputs
            check_replaceable(options.output, True, [options.nncf_config])
        if plan.timed:
            from lonas_edge.ir.core import check_device

            check_device(options.device)
        else:
            options.refuse_idle(("device", "prompt_len"), f"nothing is timed (--cost {plan.cost})")
        from lonas_edge.search.run import search

        record = search(plan, report)
    _print(record, options.output)


def _print(record: "SearchRecord", output: Path) -> None:
    from lonas_edge.search import SUBNETWORKS
    from lonas_edge.search.results import table

    shown = console()
    shown.print(
        f"{output}: {len(record.evaluations)} networks evaluated, {len(record.front)} in the Pareto front; "
        f"{record.seconds:.0f} s"
    )
    if record.unseen is False:
        shown.print("The super-adapter was trained on this data. Unseen prompts give a better choice.", style="yellow")
    shown.print(f"{output / SUBNETWORKS}: the Pareto front and the picks, for --subnet")
    table(record).print(shown)
