"""`lonas-edge bench`: latency of a sub-network vs. the unpruned LoRA model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.options import BenchOptions, TuneOptions
from lonas_edge.bench.prepare import VARIANTS, NamedVariant
from lonas_edge.bench.timing import OBJECTIVES
from lonas_edge.bench.variants import Case
from lonas_edge.cli.options import (
    USER_PATH,
    USER_PATH_OR_NAME,
    JsonOption,
    OverwriteOption,
    RevisionOption,
    choice,
    given,
    names,
    numbers,
    parse_properties,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.tables import print_table
from lonas_edge.cli.terminal import console
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import DTYPES
from lonas_edge.ir import LABELS

if TYPE_CHECKING:
    from lonas_edge.bench.report import Report
    from lonas_edge.bench.tune import Tuned
    from lonas_edge.exporting.exported import Exported

_MOST_ROUNDS = 1_000_000
_VARIANTS_HELP = ", ".join(f"{variant.name} ({variant.help})" for variant in VARIANTS.values())
_NOT_TO_TUNE = ("arms", "model", "adapter", "revision", "torch_device", "torch_dtype", "properties", "output", "overwrite")


_Exported = Annotated[
    Path, typer.Argument(click_type=USER_PATH, help="Directory written by `lonas-edge export`.", show_default=False)
]
_Arms = Annotated[
    str,
    typer.Option(
        "--arms", help=f"Variants to compare, separated by commas: {_VARIANTS_HELP}, exported directories, .gguf files."
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model", click_type=USER_PATH_OR_NAME, help="Base model, directory or hub id. Default: the recorded hub id."
    ),
]
_Adapter = Annotated[
    str | None,
    typer.Option("--adapter", click_type=USER_PATH_OR_NAME, help="Adapter, directory or hub id. Default: the recorded hub id."),
]
_PromptLen = Annotated[
    str | None,
    typer.Option("--prompt-len", help="Prompt tokens; several separated by commas. Default: 256; 128 for a classifier."),
]
_NewTokens = Annotated[str, typer.Option("--new-tokens", help="Tokens to generate, at least 2; several separated by commas.")]
_BatchSize = Annotated[str, typer.Option("--batch-size", help="Prompts per batch; several separated by commas.")]
_Rounds = Annotated[
    int, typer.Option("--rounds", min=1, max=_MOST_ROUNDS, help="Measured rounds; an interval needs at least 6.")
]
_Starts = Annotated[
    int,
    typer.Option(
        "--starts", min=1, max=_MOST_ROUNDS, help="Process starts that the rounds are divided among; 6 or more are best."
    ),
]
_Device = Annotated[str, typer.Option("--device", help="OpenVINO device of the IRs: CPU, GPU, NPU, AUTO, …")]
_TorchDevice = Annotated[
    str, typer.Option("--torch-device", click_type=choice(("cpu", "cuda")), help="Device of the PyTorch variants.")
]
_TorchDtype = Annotated[str, typer.Option("--torch-dtype", click_type=choice(DTYPES), help="Dtype of the PyTorch variants.")]
_Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of every variant. Default: one per physical core.")
]
_Properties = Annotated[
    list[str] | None,
    typer.Option("--property", help="OpenVINO runtime property of every IR, NAME=VALUE; repeatable."),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", click_type=USER_PATH, help="Directory for bench.json, bench.csv, bench.md and plots."),
]
_Tune = Annotated[
    bool,
    typer.Option("--tune", help="Search runtime properties for the lowest latency and store them in EXPORTED."),
]
_Objective = Annotated[
    str,
    typer.Option(
        "--objective", click_type=choice(OBJECTIVES), help="Metric to minimize with --tune; TTFT or TPOT may grow by 10 %."
    ),
]


def command(
    context: typer.Context,
    exported: _Exported,
    arms: _Arms = "subnet,lora,unpruned",
    model: _Model = None,
    adapter: _Adapter = None,
    revision: RevisionOption = None,
    prompt_len: _PromptLen = None,
    new_tokens: _NewTokens = "64",
    batch_size: _BatchSize = "1",
    rounds: _Rounds = 24,
    starts: _Starts = 8,
    device: _Device = "CPU",
    torch_device: _TorchDevice = "cpu",
    torch_dtype: _TorchDtype = "fp32",
    threads: _Threads = None,
    properties: _Properties = None,
    output: _Output = None,
    overwrite: OverwriteOption = False,
    tune: _Tune = False,
    objective: _Objective = "tpot",
    as_json: JsonOption = False,
) -> None:
    """Compare the latency of an exported sub-network with the unpruned LoRA model and other variants.

    All variants run in interleaved rounds, each in its own process, on distinct random prompts, and generate a fixed number of
    tokens. A classifier computes one pass per text. Ctrl-C ends the run and reports the completed rounds.
    """
    lengths, news, batches = (
        numbers(*pair)
        for pair in (("--prompt-len", prompt_len or "256", 1), ("--new-tokens", new_tokens, 2), ("--batch-size", batch_size, 1))
    )
    cases = tuple(Case(length, new, batch) for batch in batches for length in lengths for new in news)
    options = BenchOptions(
        arms=tuple(names("--arms", arms)),
        cases=cases,
        schedule=Schedule(rounds, starts),
        device=device,
        torch_device=torch_device,
        torch_dtype=torch_dtype,
        threads=threads,
        properties=parse_properties(properties or []),
        model=model,
        adapter=adapter,
        revision=revision,
    )
    _refuse_idle(context, options, tune, output)
    if tune:
        _tune(exported, options, objective, as_json)
    else:
        _bench(context, exported, options, output, overwrite, as_json)


def _refuse_idle(context: typer.Context, options: BenchOptions, tune: bool, output: Path | None) -> None:
    """Refuse options without effect."""

    def unless(used_by: Callable[[NamedVariant], bool]) -> str:
        variants = [variant.name for variant in VARIANTS.values() if used_by(variant)]
        return "" if set(variants) & set(options.arms) else f"requires --arms {' or '.join(variants)}"

    idle = (
        (_NOT_TO_TUNE, "has no effect with --tune" if tune else ""),
        (("objective",), "" if tune else "requires --tune"),
        (("overwrite",), "" if output else "requires --output"),
        (("torch_device", "torch_dtype"), unless(lambda variant: variant.in_torch)),
        (("model", "adapter", "revision"), unless(lambda variant: variant.needs_source)),
    )
    spelled = {param.name: "/".join((*param.opts, *param.secondary_opts)) for param in context.command.params}
    for names_, why in idle:
        for name in names_:
            if why and given(context, name):
                raise typer.BadParameter(f"{spelled[name]}: {why}")
    if tune and len(options.cases) > 1:
        raise typer.BadParameter("--tune needs one value each of --prompt-len, --new-tokens and --batch-size")


def _tune(exported: Path, options: BenchOptions, objective: str, as_json: bool) -> None:
    with progress() as report:
        from lonas_edge.bench.tune import tune
        from lonas_edge.exporting.exported import open_exported

        settings = TuneOptions(options.cases[0], options.schedule, options.device, options.threads, objective)
        tuned = tune(open_exported(exported, task=CAUSAL_LM), settings, report)
    print(json.dumps(tuned.to_json(), indent=1)) if as_json else _print_tuned(tuned, exported)


def _for_task(context: typer.Context, opened: "Exported", options: BenchOptions) -> BenchOptions:
    """Adapt the cases to a classifier, which generates no tokens."""
    if opened.task.generates:
        return options
    if given(context, "new_tokens"):
        raise typer.BadParameter(f"--new-tokens: {opened.folder} is a {opened.task.name} and generates nothing; omit it")
    length = min(opened.task.sequence_length, opened.context or opened.task.sequence_length)
    cases = [replace(case, new_tokens=0) for case in options.cases]
    cases = cases if given(context, "prompt_len") else [replace(case, prompt_len=length) for case in cases]
    return replace(options, cases=tuple(dict.fromkeys(cases)))


def _bench(
    context: typer.Context, exported: Path, options: BenchOptions, output: Path | None, overwrite: bool, as_json: bool
) -> None:
    with progress() as report:
        from lonas_edge.bench.plots import write_plots
        from lonas_edge.bench.report import write
        from lonas_edge.bench.run import bench
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.output import OutputDirectory
        from lonas_edge.processes import interrupts_deferred

        others = (name for name in options.arms if name not in VARIANTS)
        directory = OutputDirectory(output, overwrite, (exported, options.model, options.adapter, *others)) if output else None
        if directory:
            directory.check(10_000_000)
        opened = open_exported(exported)
        result = bench(opened, _for_task(context, opened, options), report)
        if directory:
            with interrupts_deferred(), directory.open() as folder:
                write(result, folder)
                write_plots(result, folder)
    print(json.dumps(result.to_json(), indent=1)) if as_json else _print(result, output)
    if result.failures or result.interrupted:
        raise typer.Exit(1)


def _print(report: "Report", output: Path | None) -> None:
    from lonas_edge.bench import tables

    terminal = console()
    for case in dict.fromkeys(row.case for row in report.rows):
        print_table(terminal, f"{case}", *tables.latency_table(report, case))
        print_table(terminal, "", *tables.ratio_table(report, case))
    print_table(terminal, "Variants", *tables.variant_table(report))
    terminal.print(tables.explain(report) + "\n")
    for line in tables.describe_conditions(report):
        terminal.print(line)
    for warning in report.warnings:
        terminal.print(f"warning: {warning}", style="yellow")
    for failure in report.failures:
        terminal.print(f"not measured: {failure.reason}", style="red")
    if output:
        terminal.print(f"\n{output}: bench.json, bench.csv, bench.md and plots")


def _print_tuned(tuned: "Tuned", exported: Path) -> None:
    terminal = console()
    headings = ("value", "TTFT ms", "TPOT ms", f"{LABELS[tuned.objective]} ratio", "KL (nats)", "")
    terminal.print("Ratio: latency vs the best properties so far. KL: mean divergence from the outputs with the defaults.")
    for name in dict.fromkeys(trial.name for trial in tuned.trials):
        print_table(terminal, name, headings, [trial.cells() for trial in tuned.trials if trial.name == name])
    if not tuned.properties:
        terminal.print("No property is faster than the defaults within the tolerance; nothing was stored.")
        return
    properties = ", ".join(f"{name}={value}" for name, value in tuned.properties.items())
    terminal.print(f"Stored in {exported}: {properties}")
    in_ir = f"stock clients read {', '.join(tuned.in_ir)} from the IR" if tuned.in_ir else "clients must pass all of them"
    terminal.print(f"{tuned.summary()}; {in_ir}.")
