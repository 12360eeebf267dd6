"""`lonas-edge search`: the sub-networks worth exporting."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    choice,
    given,
    refuse_revision,
    seed_option,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.tables import print_table
from lonas_edge.cli.terminal import console
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.evaluate.protocols import PROTOCOLS
from lonas_edge.families import CLASSIFICATION
from lonas_edge.formats import DEFAULT_FORMAT, FORMATS
from lonas_edge.search.cost import COSTS
from lonas_edge.search.quality import QUALITIES

if TYPE_CHECKING:
    from lonas_edge.network.source import Source
    from lonas_edge.search.cost import CostSettings
    from lonas_edge.search.record import SearchRecord

_DTYPES = ("fp32", "bf16")
SAMPLER = "nsga2"
_OF_LATENCY = ("device", "prompt_len", "new_tokens", "batch_size", "threads")


def _described(registry: dict[str, Any]) -> str:
    return "; ".join(f"{known.name}: {known.described}" for known in registry.values())


_Data = Annotated[
    Path,
    typer.Option(
        "--data",
        click_type=USER_PATH,
        help="Prompts with answers, in the format of `train`; best unseen in training. GLUE: a TSV file of the task.",
    ),
]
_Output = Annotated[
    Path,
    typer.Option(
        "--output",
        click_type=USER_PATH,
        help="Directory for search.json, plots and sub-networks. The same search there is continued.",
    ),
]
_Quality = Annotated[
    str, typer.Option("--quality", click_type=choice(QUALITIES), help=f"Quality to search for. {_described(QUALITIES)}.")
]
_Cost = Annotated[
    str | None,
    typer.Option(
        "--cost",
        click_type=choice(COSTS),
        help=f"Cost to minimize. {_described(COSTS)}. Default: tpot, or latency of a classifier.",
    ),
]
_WeightFormat = Annotated[
    str, typer.Option("--weight-format", click_type=choice(FORMATS), help="Weight format of the exported network.")
]
_Device = Annotated[str, typer.Option("--device", help="OpenVINO device of a latency.")]
_PromptLen = Annotated[
    int | None,
    typer.Option("--prompt-len", min=1, help="Prompt tokens of a latency. Default: 256, or 128 of a classifier."),
]
_NewTokens = Annotated[int, typer.Option("--new-tokens", min=2, help="Generated tokens of a latency.")]
_BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts or texts per batch of a latency.")]
_Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: one per physical core.")]
_NumPrompts = Annotated[int, typer.Option("--num-prompts", min=1, help="Prompts of --data to score each network on.")]
_Prompt = Annotated[
    str | None,
    typer.Option("--prompt", click_type=choice((*TEMPLATES, CHAT)), help="Prompt template. Default: the training's."),
]
_Protocol = Annotated[str, typer.Option("--protocol", click_type=choice(PROTOCOLS), help="Protocol of --quality accuracy.")]
_TorchDtype = Annotated[
    str, typer.Option("--torch-dtype", click_type=choice(_DTYPES), help="Data type in which networks are scored.")
]
_Evals = Annotated[int, typer.Option("--evals", min=3, help="Networks to evaluate.")]
_Sampler = Annotated[str, typer.Option("--sampler", click_type=choice((SAMPLER,)), help="Sampler: NSGA-II.")]
_WarmStart = Annotated[
    bool,
    typer.Option("--warm-start/--no-warm-start", help="Evaluate knapsack solutions over the sensitivity table first."),
]
_Refine = Annotated[
    bool, typer.Option("--refine/--no-refine", help="Refine the picks and the Pareto front in the last evaluations.")
]
_Seed = Annotated[int, seed_option("Seed of the sampler and of the choice of prompts.")]
_Picks = Annotated[
    list[str] | None,
    typer.Option(
        "--pick",
        help="Save the best network under a bound: 'macs<=1.43e12', 'tpot<=0.85x' (of the unpruned network), 'kl<=0.05' "
        "(then the cheapest). Repeatable.",
    ),
]
_Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Database that several workers share: postgresql://…, sqlite:///FILE. Run the same command on each, with its own "
        "--output.",
    ),
]
_Study = Annotated[str | None, typer.Option("--study", help="Name of the study in --storage.")]
_Measure = Annotated[
    bool | None,
    typer.Option(
        "--measure/--no-measure",
        help="Export and time the Pareto front at the end. Default: if --cost is a latency.",
        show_default=False,
    ),
]


def command(
    ctx: typer.Context,
    source: SourceArgument,
    data: _Data,
    output: _Output,
    quality: _Quality = "kl",
    cost: _Cost = None,
    weight_format: _WeightFormat = DEFAULT_FORMAT,
    device: _Device = "CPU",
    prompt_len: _PromptLen = None,
    new_tokens: _NewTokens = 64,
    batch_size: _BatchSize = 1,
    threads: _Threads = None,
    num_prompts: _NumPrompts = 64,
    prompt: _Prompt = None,
    protocol: _Protocol = "option-text",
    torch_dtype: _TorchDtype = "fp32",
    evals: _Evals = 80,
    sampler: _Sampler = SAMPLER,
    warm_start: _WarmStart = True,
    refine: _Refine = True,
    seed: _Seed = 0,
    picks: _Picks = None,
    storage: _Storage = None,
    study: _Study = None,
    measure: _Measure = None,
    model: ModelOption = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search the sub-networks with the best quality at each cost.

    First measures the sensitivity of each elastic group. Then evaluates a warm start, NSGA-II's networks and refinements of the
    best. The same command continues an interrupted search; a higher --evals continues a finished one.
    """
    if overwrite and storage:
        raise typer.BadParameter("--overwrite cannot be used with --storage: start another study with --study NAME")
    if given(ctx, "protocol") and quality != "accuracy":
        raise typer.BadParameter(f"--protocol has no effect on --quality {quality}; pass --quality accuracy")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with progress() as report:
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.network.speed import quicker_in
            from lonas_edge.search.plan import SearchOptions, make_plan
        report("Reading configurations", None)
        opened = open_source(source, model, nncf_config, revision)
        refuse_revision(revision, opened.base)
        _refuse_of_language_models(ctx, opened)
        options = SearchOptions(
            data=data,
            output=output,
            quality=quality,
            cost=cost,
            cost_settings=_cost_settings(opened, weight_format, device, prompt_len, new_tokens, batch_size, threads),
            num_prompts=num_prompts,
            prompt=prompt,
            protocol=protocol,
            dtype=torch_dtype,
            evals=evals,
            seed=seed,
            warm_start=warm_start,
            refine=refine,
            storage=storage,
            study=study,
            picks=tuple(picks or ()),
            overwrite=overwrite,
            measure=measure,
        )
        plan = make_plan(opened, options)
        if plan.timed:
            from lonas_edge.ir.runtime import check_device

            check_device(device)
        elif idle := [f"--{name.replace('_', '-')}" for name in _OF_LATENCY if given(ctx, name)]:
            raise typer.BadParameter(f"{', '.join(idle)}: has no effect: nothing is timed (--cost {plan.cost}, no --measure)")
        asked_for_fp32 = torch_dtype == "fp32" and given(ctx, "torch_dtype")
        if not asked_for_fp32 and (hint := quicker_in(torch_dtype, "--torch-dtype")):
            report(f"{hint}\nLoading", None)
        with importing():
            from lonas_edge.search.run import search
        record = search(plan, report)
    print(json.dumps(record.to_json(), indent=1)) if as_json else _print(record, output)


def _refuse_of_language_models(ctx: typer.Context, source: "Source") -> None:
    """Refuse options that a classifier does not have."""
    if source.architecture.family.task != CLASSIFICATION:
        return
    reasons = dict.fromkeys(("prompt", "protocol"), "has no prompt template") | {"new_tokens": "generates no tokens"}
    for name, reason in reasons.items():
        if given(ctx, name):
            raise typer.BadParameter(f"--{name.replace('_', '-')}: a classifier {reason}")


def _cost_settings(
    source: "Source",
    weight_format: str,
    device: str,
    prompt_len: int | None,
    new_tokens: int,
    batch_size: int,
    threads: int | None,
) -> "CostSettings":
    """Lengths by the task; a classifier's text is no longer than its context."""
    from lonas_edge.search.cost import CostSettings

    task = source.architecture.family.task
    if not task.generates:
        length = min(task.sequence_length, source.architecture.config.max_position_embeddings)
        prompt_len, new_tokens = prompt_len or length, 0
    return CostSettings(weight_format, device, prompt_len or 256, new_tokens, batch_size, threads)


def _print(record: "SearchRecord", output: Path) -> None:
    from lonas_edge.search import SUBNETWORKS
    from lonas_edge.search.report import tables

    shown = console()
    shown.print(
        f"{output}: {len(record.evaluations)} networks evaluated, {len(record.front)} in the Pareto front; "
        f"{sum(record.seconds.values()):.0f} s"
    )
    if record.data.unseen is False:
        shown.print("The super-adapter was trained on this data. Unseen prompts give a better choice.", style="yellow")
    shown.print(f"{output / SUBNETWORKS}: the Pareto front and the picks, for --subnet")
    for table in tables(record):
        print_table(shown, *table)
