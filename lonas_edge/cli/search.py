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
    require_extra,
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
from lonas_edge.search.samplers import SAMPLERS

if TYPE_CHECKING:
    from lonas_edge.network.source import Source
    from lonas_edge.search.plan import SearchOptions
    from lonas_edge.search.record import SearchRecord
    from lonas_edge.search.timing_settings import CostSettings

_DTYPES = ("fp32", "bf16")
_OF_LATENCY = ("device", "prompt_len", "new_tokens", "batch_size", "threads")


def _described(registry: dict[str, Any]) -> str:
    return "; ".join(f"{known.name}: {known.described}" for known in registry.values())


_Data = Annotated[
    Path,
    typer.Option(
        "--data",
        click_type=USER_PATH,
        help="Prompts with answers, instruction data as of `train`; best of all such as the training has not seen.",
    ),
]
_Output = Annotated[
    Path,
    typer.Option(
        "--output",
        click_type=USER_PATH,
        help="Directory for search.json, plots and sub-networks. A search that is there goes on.",
    ),
]
_Quality = Annotated[str, typer.Option("--quality", click_type=choice(QUALITIES), help=f"{_described(QUALITIES)}.")]
_Cost = Annotated[str, typer.Option("--cost", click_type=choice(COSTS), help=f"{_described(COSTS)}.")]
_WeightFormat = Annotated[
    str,
    typer.Option(
        "--weight-format",
        help=f"Of the exported network: {', '.join(FORMATS)}. Several, separated by commas, are searched together.",
    ),
]
_Device = Annotated[str, typer.Option("--device", help="OpenVINO device of the latency.")]
_PromptLen = Annotated[
    int | None,
    typer.Option(
        "--prompt-len",
        min=1,
        help="Tokens of the prompt of the latency, or of a classifier's text. Default: 256, or 128 of a classifier.",
    ),
]
_NewTokens = Annotated[int, typer.Option("--new-tokens", min=2, help="New tokens of the latency. A classifier generates none.")]
_BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts or texts at once of the latency.")]
_Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the latency. Default: one a physical core.")]
_Prompts = Annotated[
    int, typer.Option("--val-set-size", min=1, help="Prompts of --data that networks are scored on, a seeded choice.")
]
_Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        click_type=choice((*TEMPLATES, CHAT)),
        help="Prompt template. Default: chat for conversations, else that of the training, else alpaca.",
    ),
]
_Protocol = Annotated[
    str, typer.Option("--protocol", click_type=choice(PROTOCOLS), help="How --quality accuracy asks, as `eval` does.")
]
_TorchDtype = Annotated[
    str, typer.Option("--torch-dtype", click_type=choice(_DTYPES), help="Dtype in which networks are scored.")
]
_Evals = Annotated[
    int | None, typer.Option("--evals", min=1, help="Networks to evaluate. Default: the search space's num_evals.")
]
_Population = Annotated[
    int | None, typer.Option("--population", min=2, help="Networks of a generation. Default: the search space's.")
]
_CrossoverProb = Annotated[float | None, typer.Option("--crossover-prob", min=0, max=1, help="Default: the search space's.")]
_MutationProb = Annotated[float | None, typer.Option("--mutation-prob", min=0, max=1, help="Default: the search space's.")]
_Sampler = Annotated[str, typer.Option("--sampler", click_type=choice(SAMPLERS), help=f"{_described(SAMPLERS)}.")]
_Seeds = Annotated[
    bool, typer.Option("--seeds/--no-seeds", help="Evaluate what a knapsack over the damage of each group gives first.")
]
_Refine = Annotated[
    bool,
    typer.Option(
        "--refine/--no-refine",
        help="Move widths between groups in the last evaluations: those of what is picked first, then of the front.",
    ),
]
_Seed = Annotated[int | None, seed_option("Of draws and of the choice of prompts. Default: the search space's.")]
_Picks = Annotated[
    list[str] | None,
    typer.Option(
        "--pick",
        help="A bound, and what is best under it: 'macs<=1.43e12', 'tpot<=0.85x' (of the maximal network), 'kl<=0.05' "
        "(then the cheapest). May be repeated.",
    ),
]
_Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="An Optuna storage that workers share: postgresql://…, mysql://…, sqlite:///FILE, grpc://HOST:PORT. The same "
        "command elsewhere joins, each with an --output of its own. Default: a file in --output.",
    ),
]
_Study = Annotated[str | None, typer.Option("--study", help="Name of the study in --storage. Default: by what is searched.")]
_Measure = Annotated[
    bool | None,
    typer.Option(
        "--measure/--no-measure",
        help="Export members of the front and measure them on the device in the end. Default: where the cost is a latency.",
        show_default=False,
    ),
]
_Resume = Annotated[bool, typer.Option("--resume", help="Refuse to begin: there must be a search to go on with.")]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and about how long; configurations are enough.")
]


def command(
    ctx: typer.Context,
    source: SourceArgument,
    data: _Data,
    output: _Output,
    quality: _Quality = "kl",
    cost: _Cost = "macs",
    weight_format: _WeightFormat = DEFAULT_FORMAT,
    device: _Device = "CPU",
    prompt_len: _PromptLen = None,
    new_tokens: _NewTokens = 64,
    batch_size: _BatchSize = 1,
    threads: _Threads = None,
    prompts: _Prompts = 64,
    prompt: _Prompt = None,
    protocol: _Protocol = "answer-word",
    torch_dtype: _TorchDtype = "fp32",
    evals: _Evals = None,
    population: _Population = None,
    crossover_prob: _CrossoverProb = None,
    mutation_prob: _MutationProb = None,
    sampler: _Sampler = "nsga2",
    seeds: _Seeds = True,
    refine: _Refine = True,
    seed: _Seed = None,
    picks: _Picks = None,
    storage: _Storage = None,
    study: _Study = None,
    measure: _Measure = None,
    resume: _Resume = False,
    dry_run: _DryRun = False,
    model: ModelOption = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the sub-networks with the best answers at each cost.

    First the damage of each elastic group alone; then the seeds that follow from it, Optuna's sampler, and a refinement of what
    is picked, and of the front. Every evaluation is kept: the same command, killed and started again, goes on where it was.
    """
    if overwrite and resume:
        raise typer.BadParameter("--overwrite begins anew, --resume goes on")
    if overwrite and storage:
        raise typer.BadParameter("--overwrite is of the study in --output; with --storage, begin another one (--study NAME)")
    measured = COSTS[cost].needs_device if measure is None else measure
    timed = COSTS[cost].needs_device or measured
    _refuse_what_does_nothing(ctx, timed, cost, quality)
    formats = _formats(weight_format)
    require_extra("search", "optuna", "matplotlib")
    if timed:
        require_extra("bench", "openvino_genai")
    if quality == "accuracy":
        require_extra("eval", "lm_eval")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with progress() as report:
        with importing():
            from lonas_edge.network.source import open_source
            from lonas_edge.network.speed import quicker_in
            from lonas_edge.search.plan import SearchOptions, make_plan
        report("Reading configurations", None)
        if timed:
            from lonas_edge.ir.runtime import check_device

            check_device(device)
        opened = open_source(source, model, nncf_config, revision, weights=not dry_run)
        refuse_revision(revision, opened.base)
        _refuse_of_language_models(ctx, opened)
        options = SearchOptions(
            data=data,
            output=output,
            quality=quality,
            cost=cost,
            cost_settings=_cost_settings(opened, device, prompt_len, new_tokens, formats, threads, batch_size),
            prompts=prompts,
            prompt=prompt,
            protocol=protocol,
            dtype=torch_dtype,
            evals=evals,
            population=population,
            crossover_prob=crossover_prob,
            mutation_prob=mutation_prob,
            seed=seed,
            sampler=sampler,
            seeded=seeds,
            refined=refine,
            storage=storage,
            study=study,
            picks=tuple(picks or ()),
            resume=resume,
            overwrite=overwrite,
            measured=measured,
        )
        plan = make_plan(opened, options)
        asked_for_fp32 = torch_dtype == "fp32" and given(ctx, "torch_dtype")
        if not asked_for_fp32 and (hint := quicker_in(torch_dtype, "--torch-dtype")):
            report(f"{hint}\nLoading", None)
        if not dry_run:
            with importing():
                from lonas_edge.search.run import search
            found = search(plan, report)
    if dry_run:
        shown = plan.to_json()
        print(json.dumps(shown, indent=1)) if as_json else _print_plan(shown)
    else:
        print(json.dumps(found.to_json(), indent=1)) if as_json else _print(found, options)


def _refuse_what_does_nothing(ctx: typer.Context, timed: bool, cost: str, quality: str) -> None:
    idle = [name for name in _OF_LATENCY if given(ctx, name) and not timed]
    if idle:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise typer.BadParameter(f"{told}: does nothing: no latency is measured (--cost {cost}, no --measure)")
    if given(ctx, "protocol") and quality != "accuracy":
        raise typer.BadParameter(f"--protocol does nothing: --quality {quality} asks no questions")


def _refuse_of_language_models(ctx: typer.Context, source: "Source") -> None:
    """Refuse what a classifier has not: prompts with a template, and tokens that it generates."""
    if source.architecture.family.task != CLASSIFICATION:
        return
    for name in ("prompt", "protocol"):
        if given(ctx, name):
            raise typer.BadParameter(f"--{name} does nothing: a classifier is asked texts as they are")
    if given(ctx, "new_tokens"):
        raise typer.BadParameter("--new-tokens does nothing: a classifier generates none")


def _cost_settings(
    source: "Source",
    device: str,
    prompt_len: int | None,
    new_tokens: int,
    formats: tuple[str, ...],
    threads: int | None,
    batch_size: int,
) -> "CostSettings":
    """What a latency is of, for the task of what is searched; a classifier's text is no longer than its context."""
    from lonas_edge.search.timing_settings import CostSettings

    task = source.architecture.family.task
    if not task.generates:
        length = min(task.sequence_length, source.architecture.config.max_position_embeddings)
        prompt_len, new_tokens = prompt_len or length, 0
    return CostSettings(device, prompt_len or 256, new_tokens, formats, threads, batch_size=batch_size)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise typer.BadParameter(f"--weight-format {text}: expected one or several of {', '.join(FORMATS)}")
    return names


def _print_plan(plan: dict[str, Any]) -> None:
    shown = console()
    shown.print(
        f"{len(plan['searched'])} of {plan['groups']} groups are searched ({float(plan['networks']):.3g} networks); "
        f"{len(plan['fixed'])} stay at their widest: they cost nothing once merged.\n"
        f"{plan['quality']} on {plan['prompts']} prompts ({plan['template']}) and {plan['cost']}, "
        f"{', '.join(plan['weight_formats'])}; {plan['sampler']['name']}, population {plan['sampler']['population']}.",
    )
    rows = [[step["name"], str(step["count"]), _time(step["seconds"])] for step in plan["steps"]]
    rows.append(["in all", "", _time(plan["seconds"])])
    print_table(shown, "Estimated, by the speed of this processor's matrix products", ["step", "count", "time"], rows)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print(record: "SearchRecord", options: "SearchOptions") -> None:
    from lonas_edge.search import LATENCY, SUBNETWORKS
    from lonas_edge.search.latency_table import LatencyTable
    from lonas_edge.search.report import latency_shown, tables

    shown = console()
    shown.print(
        f"{options.output}: {len(record.evaluations)} networks evaluated, {len(record.front)} in the front; "
        f"{sum(record.seconds.values()):.0f} s",
    )
    if record.data.unseen is False:
        told = "The prompts are of the file that the super-adapter was trained on: give others for a better choice."
        shown.print(told, style="yellow")
    told = f"{options.output / SUBNETWORKS}: a file of each network of the front and each pick, for --subnet"
    shown.print(told)
    for table in tables(record):
        print_table(shown, *table)
    if (options.output / LATENCY).exists():
        print_table(shown, *latency_shown(LatencyTable.read(options.output / LATENCY)))
