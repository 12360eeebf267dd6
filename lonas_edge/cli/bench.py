"""`lonas-edge bench`: the latency of a sub-network beside the unpruned LoRA model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.bench.arms import Case
from lonas_edge.bench.making import ARMS, ArmKind, kind_of
from lonas_edge.bench.measure import Schedule
from lonas_edge.bench.memory import KV_BYTES
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.runners import ENGINES
from lonas_edge.bench.timing import OBJECTIVES
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
    require_extra,
    seed_option,
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
_TOLD_ARMS = ", ".join(f"{arm.name} ({arm.told})" for arm in ARMS.values())
_NOT_TO_TUNE = (
    *("arms", "model", "adapter", "revision", "torch_device", "torch_dtype", "kv_precision", "properties", "gguf"),
    *("num_assistant_tokens", "data"),
    *("memory", "output", "overwrite"),
)


_Exported = Annotated[
    Path, typer.Argument(click_type=USER_PATH, help="A directory that `lonas-edge export` wrote.", show_default=False)
]
_Arms = Annotated[
    str,
    typer.Option(
        "--arms",
        help=f"What is compared, separated by commas: {_TOLD_ARMS}, further exported directories, and .gguf files.",
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        click_type=USER_PATH_OR_NAME,
        help="Base model, a directory or hub id. Default: where it was, if on the hub.",
    ),
]
_Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter", click_type=USER_PATH_OR_NAME, help="Adapter or super-adapter. Default: where it was, if on the hub."
    ),
]
_PromptLen = Annotated[
    str | None,
    typer.Option(
        "--prompt-len",
        help="Tokens of the prompt, or of a classifier's text; several separated by commas. Default: 256, or 128 of a "
        "classifier.",
    ),
]
_NewTokens = Annotated[
    str,
    typer.Option(
        "--new-tokens",
        help="Tokens to generate, at least 2; several separated by commas. A classifier generates none.",
    ),
]
_BatchSize = Annotated[str, typer.Option("--batch-size", help="Prompts at once; several separated by commas.")]
_Rounds = Annotated[
    int, typer.Option("--rounds", min=1, max=_MOST_ROUNDS, help="Rounds that count; 6 are the least for an interval.")
]
_Warmup = Annotated[int, typer.Option("--warmup", min=0, max=_MOST_ROUNDS, help="Rounds at every start that do not count.")]
_Starts = Annotated[
    int,
    typer.Option(
        "--starts",
        min=1,
        max=_MOST_ROUNDS,
        help="How often all arms are started afresh; the rounds are divided among the starts. From 6 on, intervals are "
        "over the starts, which differ more than rounds do.",
    ),
]
_Seed = Annotated[int, seed_option("Seed of prompts and of the order of arms.")]
_Device = Annotated[
    str,
    typer.Option("--device", help="OpenVINO device of the IRs: CPU, GPU, NPU, AUTO, …; those present are listed if not."),
]
_TorchDevice = Annotated[
    str, typer.Option("--torch-device", click_type=choice(("cpu", "cuda")), help="Device of the PyTorch arms.")
]
_TorchDtype = Annotated[str, typer.Option("--torch-dtype", click_type=choice(DTYPES), help="Dtype of the PyTorch arms.")]
_Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of every arm on a CPU. Default: one for each physical core.")
]
_KvPrecision = Annotated[
    str | None,
    typer.Option(
        "--kv-precision",
        click_type=choice(KV_BYTES),
        help="KV cache of every IR. Default: that of the tuned properties, or what stock clients give EXPORTED, u8 where "
        "its weights are quantized, f16 where not.",
    ),
]
_Properties = Annotated[
    list[str] | None,
    typer.Option("--property", help="NAME=VALUE, an OpenVINO run-time property of every IR; may be repeated."),
]
_Gguf = Annotated[Path | None, typer.Option("--gguf", click_type=USER_PATH, help="The GGUF file of the arm gguf.")]
_NumAssistantTokens = Annotated[
    str,
    typer.Option(
        "--num-assistant-tokens",
        help="Tokens that the draft of the arm draft proposes at a time; several separated by commas, an arm for each.",
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        click_type=USER_PATH,
        help="Instruction data, conversations or texts to take prompts from, of up to --prompt-len tokens, in the template "
        "that the model was trained with. What a draft gains depends on the text. Default: random tokens.",
    ),
]
_Memory = Annotated[
    bool,
    typer.Option("--memory/--no-memory", help="Measure peak memory and compile time, in a run of its own for each arm."),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", click_type=USER_PATH, help="Directory for bench.json, bench.csv, bench.md and plots."),
]
_Tune = Annotated[
    bool,
    typer.Option("--tune", help="Search run-time properties for the lowest latency and store them in EXPORTED instead."),
]
_Objective = Annotated[
    str,
    typer.Option(
        "--objective",
        click_type=choice(OBJECTIVES),
        help="What --tune makes small. Of tpot and ttft the other may grow by 10 % at most; end-to-end is the whole "
        "answer, of --prompt-len and --new-tokens.",
    ),
]
_Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance", min=0, help="With --tune: mean KL of the answers from those by default, in nats, that is allowed."
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
    warmup: _Warmup = 2,
    starts: _Starts = 8,
    seed: _Seed = 0,
    device: _Device = "CPU",
    torch_device: _TorchDevice = "cpu",
    torch_dtype: _TorchDtype = "fp32",
    threads: _Threads = None,
    kv_precision: _KvPrecision = None,
    properties: _Properties = None,
    gguf: _Gguf = None,
    num_assistant_tokens: _NumAssistantTokens = "3",
    data: _Data = None,
    memory: _Memory = True,
    output: _Output = None,
    overwrite: OverwriteOption = False,
    tune: _Tune = False,
    objective: _Objective = "tpot",
    tolerance: _Tolerance = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Compare the latency of an exported sub-network with the unpruned LoRA model and other arms, side by side in one run.

    EXPORTED is a directory that `lonas-edge export` wrote. Every arm runs in a process of its own, in turn, on prompts that are
    never repeated, generating a fixed number of tokens; a classifier passes each text through once. Ctrl-C ends the run; the
    rounds done so far are reported.
    """
    lengths, news, batches = (
        numbers(*pair)
        for pair in (("--prompt-len", prompt_len or "256", 1), ("--new-tokens", new_tokens, 2), ("--batch-size", batch_size, 1))
    )
    cases = tuple(Case(length, new, batch) for batch in batches for length in lengths for new in news)
    options = BenchOptions(
        arms=tuple(names("--arms", arms)),
        cases=cases,
        schedule=Schedule(rounds, warmup, seed),
        starts=starts,
        device=device,
        torch_device=torch_device,
        torch_dtype=torch_dtype,
        threads=threads,
        kv_precision=kv_precision,
        properties=parse_properties(properties or []),
        gguf=gguf,
        assistant_tokens=tuple(numbers("--num-assistant-tokens", num_assistant_tokens, 1)),
        data=data,
        memory=memory,
        model=model,
        adapter=adapter,
        revision=revision,
    )
    _refuse_idle(context, options, tune, output)
    _require_extras(options)
    if tune:
        _tune(exported, options, objective, tolerance, as_json)
    else:
        _bench(context, exported, options, output, overwrite, as_json)


def _refuse_idle(context: typer.Context, options: BenchOptions, tune: bool, output: Path | None) -> None:
    """Refuse options that would do nothing beside the others."""

    def without(able: Callable[[ArmKind], bool]) -> str:
        those = [arm.name for arm in ARMS.values() if able(arm)]
        return "" if set(those) & set(options.arms) else f"goes with --arms {' or '.join(those)}"

    idle = (
        (_NOT_TO_TUNE, "does nothing with --tune" if tune else ""),
        (("objective", "tolerance"), "" if tune else "goes with --tune"),
        (("overwrite",), "" if output else "goes with --output"),
        (("gguf",), without(lambda arm: arm.kind == "gguf")),
        (("num_assistant_tokens",), without(lambda arm: arm.needs_draft)),
        (("torch_device", "torch_dtype"), without(lambda arm: arm.kind == "torch")),
        (("model", "adapter", "revision"), without(lambda arm: arm.needs_source)),
        (("kv_precision",), "is not for an NPU" if options.device.startswith("NPU") else ""),
        (("kv_precision",), "--property says it" if "KV_CACHE_PRECISION" in options.properties else ""),
    )
    spelled = {param.name: "/".join((*param.opts, *param.secondary_opts)) for param in context.command.params}
    for idle_ones, why in idle:
        for name in idle_ones:
            if why and given(context, name):
                raise typer.BadParameter(f"{spelled[name]}: {why}")
    if options.data and (len({case.prompt_len for case in options.cases}) > 1 or any(c.batch_size > 1 for c in options.cases)):
        raise typer.BadParameter("--data gives prompts of unequal lengths: one --prompt-len, the longest, and no --batch-size")
    if tune and len(options.cases) > 1:
        raise typer.BadParameter("--tune is at one length and batch size: give one --prompt-len, --new-tokens, --batch-size")


def _require_extras(options: BenchOptions) -> None:
    require_extra("bench", "openvino_genai", "matplotlib")
    for kind in {kind_of(name) for name in options.arms}:
        engine = ENGINES[kind]
        if engine.extra:
            require_extra(engine.extra, *engine.modules)


def _tune(exported: Path, options: BenchOptions, objective: str, tolerance: float, as_json: bool) -> None:
    with progress() as report:
        from lonas_edge.bench.tune import TuneOptions, tune
        from lonas_edge.exporting.exported import open_exported

        asked = TuneOptions(
            options.cases[0], options.schedule, options.starts, options.device, options.threads, objective, tolerance
        )
        chosen = tune(open_exported(exported, task=CAUSAL_LM), asked, report)
    print(json.dumps(chosen.to_json(), indent=1)) if as_json else _print_tuned(chosen, exported)


def _as_asked(context: typer.Context, opened: "Exported", options: BenchOptions) -> BenchOptions:
    """The options for the task of what is measured: a classifier has neither tokens to generate nor a cache."""
    if opened.task.generates:
        return options
    for name, option in (("new_tokens", "--new-tokens"), ("kv_precision", "--kv-precision"), ("data", "--data")):
        if given(context, name):
            told = f"{opened.folder} is a {opened.task.name}, which generates nothing; leave it out"
            raise typer.BadParameter(f"{option}: {told}")
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

        others = (name for name in options.arms if name not in ARMS)
        used = (exported, options.model, options.adapter, options.gguf, options.data, *others)
        directory = OutputDirectory(output, overwrite, used) if output else None
        if directory:
            directory.check(10_000_000)
        opened = open_exported(exported)
        found = bench(opened, _as_asked(context, opened, options), report)
        if directory:
            with interrupts_deferred(), directory.open() as folder:
                write(found, folder)
                write_plots(found, folder)
    print(json.dumps(found.to_json(), indent=1)) if as_json else _print(found, output)
    if found.failures or found.interrupted:
        raise typer.Exit(1)


def _print(found: "Report", output: Path | None) -> None:
    from lonas_edge.bench import report

    shown = console()
    for case in dict.fromkeys(row.case for row in found.rows):
        print_table(shown, f"{case}", report.headings(case), report.latency_table(found, case))
        print_table(shown, "", report.speedup_headings(case), report.speedup_table(found, case))
    if found.speculations:
        print_table(shown, "Speculative decoding", report.SPECULATION_HEADINGS, report.speculation_table(found))
        shown.print(report.SPECULATION_EXPLAINED + "\n")
    print_table(shown, "Arms", report.ARM_HEADINGS, report.arm_table(found))
    shown.print(report.explained(found) + "\n")
    for line in report.describe_conditions(found):
        shown.print(line)
    for warning in found.warnings:
        shown.print(f"warning: {warning}", style="yellow")
    for failure in found.failures:
        shown.print(f"not measured: {failure.reason}", style="red")
    if output:
        shown.print(f"\n{output}: bench.json, bench.csv, bench.md and plots")


def _print_tuned(chosen: "Tuned", exported: Path) -> None:
    shown = console()
    headings = ("value", "TTFT ms", "TPOT ms", f"{LABELS[chosen.objective]} x", "KL (nats)", "")
    shown.print("Tried, each beside the best so far; speed-up over that, and mean KL from the answers by default")
    for name in dict.fromkeys(trial.name for trial in chosen.trials):
        print_table(shown, name, headings, [trial.shown() for trial in chosen.trials if trial.name == name])
    if not chosen.properties:
        shown.print("Nothing is faster than the defaults within the tolerance; nothing was written.")
        return
    told = ", ".join(f"{name}={value}" for name, value in chosen.properties.items())
    shown.print(f"Stored in {exported}: {told}")
    shown.print(f"{chosen.speedup_shown()}; stock clients find {', '.join(chosen.in_ir) or 'none of them'} in the IR.")
