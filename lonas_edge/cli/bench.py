"""`lonas-edge bench`: the latency of a sub-network beside the unpruned LoRA model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.cli.options import JsonOption, RevisionOption, parse_properties
from lonas_edge.cli.tables import print_table

if TYPE_CHECKING:
    from lonas_edge.bench.report import Report
    from lonas_edge.bench.tune import Tuned


class TorchDtypeChoice(StrEnum):
    """Dtype of the PyTorch arms."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class TorchDeviceChoice(StrEnum):
    """Device of the PyTorch arms."""

    CPU = "cpu"
    CUDA = "cuda"


class KvChoice(StrEnum):
    """Precision of the KV cache."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    U8 = "u8"


class ObjectiveChoice(StrEnum):
    """What `--tune` makes small."""

    TPOT = "tpot"
    TTFT = "ttft"


def command(
    exported: Annotated[Path, typer.Argument(help="A directory that `lonas-edge export` wrote.", show_default=False)],
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="What subnet is compared with, separated by commas: lora (PyTorch, adapter unmerged), lora-merged, unpruned "
            "(the maximal network as IR at the same weight format), gguf (llama.cpp), and further exported directories.",
        ),
    ] = "subnet,lora,unpruned",
    model: Annotated[
        str | None, typer.Option("--model", help="Base model, a directory or hub id. Default: where it was, if on the hub.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Adapter or super-adapter. Default: where it was, if on the hub.")
    ] = None,
    revision: RevisionOption = None,
    prompt_len: Annotated[str, typer.Option("--prompt-len", help="Tokens of the prompt; several separated by commas.")] = "256",
    new_tokens: Annotated[
        str, typer.Option("--new-tokens", help="Tokens to generate, at least 2; several separated by commas.")
    ] = "64",
    batch_size: Annotated[str, typer.Option("--batch-size", help="Prompts at once; several separated by commas.")] = "1",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds that count; 6 are the least for an interval.")] = 24,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Rounds at every start that do not count.")] = 2,
    starts: Annotated[
        int,
        typer.Option(
            "--starts",
            min=1,
            help="How often all arms are started afresh; the rounds are divided among the starts. From 6 on, intervals are "
            "over the starts, which differ more than rounds do.",
        ),
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Seed of prompts and of the order of arms.")] = 0,
    device: Annotated[
        str,
        typer.Option("--device", help="OpenVINO device of the IRs: CPU, GPU, NPU, AUTO, …; those present are listed if not."),
    ] = "CPU",
    torch_device: Annotated[
        TorchDeviceChoice, typer.Option("--torch-device", help="Device of the PyTorch arms.")
    ] = TorchDeviceChoice.CPU,
    torch_dtype: Annotated[
        TorchDtypeChoice, typer.Option("--torch-dtype", help="Dtype of the PyTorch arms.")
    ] = TorchDtypeChoice.FP32,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of every arm on a CPU. Default: one for each physical core.")
    ] = None,
    kv_precision: Annotated[
        KvChoice | None,
        typer.Option(
            "--kv-precision",
            help="KV cache of every IR, unless a tuned or given property says it. Default: what stock clients give EXPORTED, "
            "u8 where its weights are quantized, f16 where not.",
        ),
    ] = None,
    properties: Annotated[
        list[str] | None,
        typer.Option("--property", help="NAME=VALUE, an OpenVINO run-time property of every IR; may be repeated."),
    ] = None,
    gguf: Annotated[Path | None, typer.Option("--gguf", help="The GGUF file of the arm gguf.")] = None,
    memory: Annotated[
        bool,
        typer.Option("--memory/--no-memory", help="Measure peak memory and compile time, in a run of its own for each arm."),
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", help="Directory for bench.json, bench.csv, bench.md and plots.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Search run-time properties for the lowest latency and store them in EXPORTED instead."),
    ] = False,
    objective: Annotated[
        ObjectiveChoice, typer.Option("--objective", help="What --tune makes small; the other may not grow by more than 10 %.")
    ] = ObjectiveChoice.TPOT,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", min=0, help="With --tune: mean KL of the answers from those by default, in nats, that is allowed."
        ),
    ] = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Compare the latency of an exported sub-network with the unpruned LoRA model and other arms, side by side in one run.

    EXPORTED is a directory that `lonas-edge export` wrote. Every arm runs in a process of its own, in turn, on prompts that are
    never repeated, generating a fixed number of tokens. Ctrl-C ends the run; the rounds done so far are reported.
    """
    from lonas_edge.bench.arms import Case

    lengths, news, batches = (
        _numbers(*pair)
        for pair in (("--prompt-len", prompt_len, 1), ("--new-tokens", new_tokens, 2), ("--batch-size", batch_size, 1))
    )
    given = parse_properties(properties or [])
    with _progress() as report:
        report("Loading", None)
        from lonas_edge.bench.measure import Schedule
        from lonas_edge.bench.run import BenchOptions, bench, uninterrupted
        from lonas_edge.exporting.exported import open_exported
        from lonas_edge.output import OutputDirectory

        opened = open_exported(exported)
        directory = OutputDirectory(output, overwrite) if output else None
        if directory:
            directory.check(10_000_000)
        options = BenchOptions(
            arms=tuple(name.strip() for name in arms.split(",") if name.strip()),
            cases=tuple(Case(length, new, batch) for batch in batches for length in lengths for new in news),
            schedule=Schedule(rounds, warmup, seed),
            starts=starts,
            device=device,
            torch_device=torch_device.value,
            torch_dtype=torch_dtype.value,
            threads=threads,
            kv_precision=kv_precision.value if kv_precision else None,
            properties=given,
            gguf=gguf,
            memory=memory,
        )
        if tune:
            from lonas_edge.bench.tune import tune as search

            chosen = search(opened, options, objective.value, tolerance, report)
        else:
            found = bench(opened, options, model, adapter, revision, report)
            if directory:
                from lonas_edge.bench.plots import write_plots
                from lonas_edge.bench.report import write

                with uninterrupted(), directory.open() as folder:
                    write(found, folder)
                    write_plots(found, folder)
    if tune:
        print(json.dumps(chosen.to_json(), indent=1)) if as_json else _print_tuned(chosen, exported)
    else:
        print(json.dumps(found.to_json(), indent=1)) if as_json else _print(found, output)
    if not tune and (found.failures or found.interrupted):
        raise typer.Exit(1)


def _numbers(option: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} {text}: expected whole numbers, separated by commas") from None
    if min(numbers) < least:
        raise typer.BadParameter(f"{option} {text}: must be {least} or more")
    return list(dict.fromkeys(numbers))


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on standard error: what is measured, the share done, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: float | None) -> None:
            bar.update(task, description=what, total=None if done is None else 1, completed=done or 0)

        yield report


def _print(found: "Report", output: Path | None) -> None:
    from rich.console import Console

    from lonas_edge.bench import report

    console = Console()
    for case in dict.fromkeys(row.case for row in found.rows):
        print_table(console, f"{case}", report.HEADINGS, report.latency_table(found, case))
        print_table(console, "", report.SPEEDUP_HEADINGS, report.speedup_table(found, case))
    print_table(console, "Arms", report.ARM_HEADINGS, report.arm_table(found))
    console.print(report.EXPLAINED + "\n", highlight=False)
    for line in report.describe_conditions(found):
        console.print(line, highlight=False)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    for failure in found.failures:
        console.print(f"not measured: {failure['reason']}", style="red", markup=False, highlight=False)
    if output:
        console.print(f"\n{output}: bench.json, bench.csv, bench.md and plots", markup=False, highlight=False)


def _print_tuned(chosen: "Tuned", exported: Path) -> None:
    from rich.console import Console

    console = Console()
    headings = ("value", "TTFT ms", "TPOT ms", f"{chosen.objective.upper()} x", "KL (nats)", "")
    console.print("Tried, each beside the best so far; speed-up over that, and mean KL from the answers by default")
    for name in dict.fromkeys(trial.name for trial in chosen.trials):
        print_table(console, name, headings, [trial.shown() for trial in chosen.trials if trial.name == name])
    if not chosen.properties:
        console.print("Nothing is faster than the defaults within the tolerance; nothing was written.")
        return
    told = ", ".join(f"{name}={value}" for name, value in chosen.properties.items())
    console.print(f"Stored in {exported}: {told}", markup=False, highlight=False)
    console.print(
        f"{chosen.speedup_shown()}; stock clients find {', '.join(chosen.in_ir) or 'none of them'} in the IR.", markup=False
    )
