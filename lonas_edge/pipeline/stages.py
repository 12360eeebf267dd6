"""The steps of `compress`: for each one the command that does the same, and the work, by the code of that command."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lonas_edge.commands import Command
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answer_metrics import identity
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import link, replace_text
from lonas_edge.network.adapters import CONFIG, AdapterConfig
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.super_network import order_channels
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.baselines import compared, compares_gptq, export_baselines, export_gptq
from lonas_edge.pipeline.choice import choose, export_options, recovered_adapter, unpruned_export
from lonas_edge.pipeline.drafts import drafts, train_draft
from lonas_edge.pipeline.measure import ROUNDS
from lonas_edge.pipeline.plan import NEW_RANK, SPACE_FILE, Paths, Plan, Request
from lonas_edge.pipeline.record import COMPRESS
from lonas_edge.pipeline.results import make_record
from lonas_edge.pipeline.steps import (
    BASELINES,
    CHOOSE,
    DRAFT_STEP,
    EXPORT,
    GPTQ,
    LORA,
    MEASURE,
    RECOVER,
    SEARCH,
    SPACE,
    TRIM,
    Step,
)
from lonas_edge.pipeline.targets import MetricBound
from lonas_edge.pipeline.tasks import removed_kinds, width_ratios
from lonas_edge.pipeline.training import train_or_continue
from lonas_edge.progress import Progress
from lonas_edge.search import SEARCH as SEARCH_FILE
from lonas_edge.search.cost import COSTS, COUNTED, counted_cost
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.picks import check_picks
from lonas_edge.search.plan import make_plan
from lonas_edge.search.record import SearchRecord
from lonas_edge.search.run import search
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import generate_space, removable_blocks
from lonas_edge.space.search_space import parse_search_space
from lonas_edge.training.defaults import lora_config
from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import TrainOptions
from lonas_edge.vocabulary.model_vocabulary import trim

FURTHEST = 4.0  # nats from the unpruned network: no recovery from further was measured


def make_steps(plan: Plan, here: Mapping[str, Any]) -> list[Step]:
    """List all steps in order; `here` describes the machine whose latencies are measured."""
    steps = [fine_tune(plan)] if plan.paths.trains_lora else []
    steps += [trim_vocabulary(plan)] if plan.paths.trims else []
    steps += [write_space(plan)] if plan.paths.space else []
    steps.append(search_networks(plan, tuple(step.name for step in steps)))
    steps += [export_baselines(plan), *(choose(plan, target) for target in plan.bounds)]
    for target in plan.picks:
        steps += [recover(plan, target), export_network(plan, target)]
    steps += [export_gptq(plan)] if compares_gptq(plan) else []
    steps += [train_draft(plan)] if drafts(plan) else []
    return [*steps, measure_networks(plan, here)]


def fine_tune(plan: Plan) -> Step:
    """Train a plain LoRA adapter, or continue its training."""
    paths, options = plan.paths, plan.lora_options

    def work(progress: Progress) -> None:
        inputs = open_inputs(paths.base, paths.train, None, elastic=False)
        train_or_continue(with_eval_data(inputs, paths.held_out), Path(paths.unpruned), options, progress)

    files = {"model": paths.base, "data": paths.train, "eval-data": paths.held_out, "output": paths.unpruned}
    command = Command("lonas-edge train --no-elastic", options, files)
    seconds = plan.training_seconds(options, plan.probe.lora_step)
    return Step(LORA, [command], work, ("lora",), inputs=plan.inputs, estimate=seconds)


def trim_vocabulary(plan: Plan) -> Step:
    """Write the base model with a smaller vocabulary."""
    paths, size, prompt = plan.paths, plan.vocabulary, plan.options.template

    def work(progress: Progress) -> None:
        trim(paths.base, paths.train, size, prompt, Path(paths.student), progress)

    files = {"": paths.base, "data": paths.train, "output": paths.student}
    command = Command("lonas-edge trim", None, files, {"vocabulary": size, "template": prompt})
    return Step(TRIM, [command], work, ("base",), inputs=plan.inputs)


def write_space(plan: Plan) -> Step:
    """Write the search space of a model without one: blocks that can be removed, and of language models MLP widths."""
    paths, ratios = plan.paths, width_ratios(plan.source)
    narrows = len(ratios) > 1

    def work(progress: Progress) -> None:
        content = _make_space(plan.unpruned)
        if narrows:
            progress("Sorting channels", None)
            order_channels(plan.unpruned, content, plan.open_data(paths.train), SPACE_FILE)
        replace_text(Path(str(paths.space)), json.dumps(content, indent=2) + "\n")

    files: dict[str, Any] = {"model": paths.base, "output": paths.space, "data": paths.train if narrows else None}
    files |= {"adapter": paths.unpruned} if paths.unpruned_base else {"ranks": NEW_RANK}
    values: dict[str, Any] = {"depth": removed_kinds(plan.source), "ratios": ratios}
    if narrows:
        values |= {"template": plan.options.template, "max-length": plan.options.max_length}
    command = Command("lonas-edge space", None, files, values)
    return Step(SPACE, [command], work, (SPACE_FILE,), (LORA,) if paths.trains_lora else (), plan.inputs)


def _make_space(source: Source) -> dict[str, Any]:
    """As `space --depth KINDS --ratios RATIOS` with `--adapter ADAPTER`, or for a base with `--ranks RANK`."""
    architecture, ranks = source.architecture, source.ranks()
    blocks = removable_blocks(architecture, removed_kinds(source), str(source.base.folder))
    return generate_space(
        architecture, width_ratios(source), None if ranks else (NEW_RANK,), blocks=blocks, adapter=ranks or None, grouped=True
    )


def search_networks(plan: Plan, needs: tuple[str, ...]) -> Step:
    """Search the networks of the targets, or continue a search with other targets."""
    paths, options = plan.paths, plan.search_options
    picks = [pick.expression for pick in plan.search_picks]

    def work(progress: Progress) -> None:
        search(make_plan(plan.start, replace(options, picks=tuple(picks))), progress)
        for target, pick in plan.picks.items():
            if plan.profile.kind.generates and not isinstance(pick, MetricBound):
                _refuse_destroyed(plan, target)

    values: dict[str, Any] = {"weight-format": plan.options.weight_format}
    if COSTS[str(options.cost)].timed:
        values["prompt-len"] = plan.options.prompt_len
    files = {"": paths.start, "model": paths.start_base, "nncf-config": paths.space, "pick": picks}
    command = Command("lonas-edge search", options, files, values)
    outputs = tuple(f"search/subnetworks/{pick.file}.json" for pick in plan.search_picks)
    return Step(SEARCH, [command], work, outputs, needs, plan.inputs, folder="search", estimate=plan.search_seconds)


def _refuse_destroyed(plan: Plan, target: str) -> None:
    """Refuse a network that is too far from the unpruned one, and name the closest one and other means."""
    record = SearchRecord.read(plan.paths.work / "search" / SEARCH_FILE)
    [number] = [each.evaluation for each in record.picks if each.file == plan.picks[target].file]
    distance = record.evaluations[number].quality
    if distance <= FURTHEST:
        return
    closest = min(each.cost for each in record.evaluations if each.quality <= FURTHEST) / record.unpruned_cost
    config, total = plan.start.architecture.config, plan.start.sizes(plan.start.unpruned).bytes[str(plan.options.weight_format)]
    share = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2) / total  # in INT8
    trim = "" if plan.paths.trims else f"a trimmed vocabulary, which has {share:.0%} of the bytes, or "
    raise LonasEdgeError(
        f"target {target}: the network that meets it is at a KL divergence of {distance:.1f} nats from the unpruned one. No "
        f"recovery from more than {FURTHEST:g} nats is known to restore answers. The most pruned network below that has "
        f"{closest:.2f}x the {COSTS[record.cost].title} of the unpruned one. Relax the target. Other means: {trim}a draft."
    )


def recover(plan: Plan, target: str) -> Step:
    """Train the network of a target with the unpruned model as its teacher.

    The network of an earlier target, or of a target in a metric, is trained already. The unpruned model in INT8 needs no
    training, nor does the one by GPTQ: their directory is empty.
    """
    paths, options, pick = plan.paths, plan.recovery_options, plan.picks[target]
    output = paths.recovered(pick)

    def work(progress: Progress) -> None:
        chosen, unpruned = plan.start.sizes(plan.network(pick)), plan.start.sizes(plan.start.unpruned)
        finished = chosen.parameters == unpruned.parameters and not options.weight_format and not paths.trims
        if finished or unpruned_export(plan, pick):
            with OutputDirectory(output).open():
                return
        if plan.profile.kind.generates and not isinstance(pick, MetricBound):
            _refuse_destroyed(plan, target)  # a repeated command, too, for which the search is done
        adapter = recovered_adapter(plan, pick, progress)
        with OutputDirectory(output).open() as folder:
            shutil.copytree(adapter, folder, copy_function=link, dirs_exist_ok=True)

    command = plan.recovery_command(paths.subnetwork(pick), output, options)
    tried = isinstance(pick, MetricBound)
    seconds = 0.0 if tried else plan.training_seconds(options, plan.probe.recovery_step)
    needs, outputs = (CHOOSE + target if tried else SEARCH,), (f"recovered/{pick.file}",)

    def chosen() -> list[Command]:
        return [command] if (output / CONFIG).exists() else []

    return Step(RECOVER + target, [command], work, outputs, needs, estimate=seconds, chosen=chosen)


def export_network(plan: Plan, target: str) -> Step:
    """Export and verify the network of a target."""
    pick, student = plan.picks[target], plan.paths.student
    recovered, output = plan.paths.recovered(pick), plan.paths.model(pick)
    options = ExportOptions(weight_format=str(plan.options.weight_format))

    def work(progress: Progress) -> None:
        source = open_source(str(recovered), student) if (recovered / CONFIG).exists() else plan.unpruned
        export(source, source.select(None), output, export_options(plan, pick), progress)

    command = Command("lonas-edge export", options, {"": recovered, "model": student, "output": output})
    needs, outputs = (RECOVER + target,), (f"models/{pick.file}",)

    def chosen() -> list[Command]:
        files = {"": recovered, "model": student, "output": output}
        if not (recovered / CONFIG).exists():
            files = {"": plan.paths.unpruned, "model": plan.paths.unpruned_base, "subnet": "maximal", "output": output}
        return [Command("lonas-edge export", export_options(plan, pick), files)]

    return Step(EXPORT + target, [command], work, outputs, needs, chosen=chosen)


def measure_networks(plan: Plan, here: Mapping[str, Any]) -> Step:
    """Measure the exported networks and the baselines, and write the record."""

    def work(progress: Progress) -> None:
        make_record(plan, here, progress).write(plan.paths.work / COMPRESS)

    first, *others = [plan.paths.model(pick) for pick in plan.picks.values()]
    variants = ("subnet", *(plan.paths.baseline(each.folder) for each in compared(plan)), *others)
    values = {"prompt-len": plan.options.prompt_len, "new-tokens": plan.options.new_tokens, "rounds": ROUNDS}
    command = Command("lonas-edge bench", None, {"": first, "variants": ",".join(map(str, variants))}, values)
    needs = (*(EXPORT + target for target in plan.picks), GPTQ if compares_gptq(plan) else BASELINES)
    needs += (DRAFT_STEP,) if drafts(plan) else ()
    processor = f"{here['processor']}, {here['processors']} processors"
    inputs = {"processor": processor, "metric": ", ".join(map(identity, plan.metrics))}
    return Step(MEASURE, [command], work, (COMPRESS,), needs, inputs, quick=True)


def check_steps(request: Request, paths: Paths) -> None:
    """Refuse, before the first step, an adapter that `recover` would refuse, and bounds on sizes that no network meets.

    Latencies are measured later, by the search.
    """
    source = request.source
    if source.adapter:
        with_teacher(open_recovery(paths.unpruned, paths.train, None, paths.base), paths.unpruned, paths.base)
    if paths.trims:  # a smaller vocabulary changes the sizes
        return
    source = _start_source(request, paths)
    costs = {name: counted_cost(name, source, str(request.options.weight_format)) for name in COUNTED}
    check_picks(request.picks.values(), find_dimensions(source).named(), costs)


def smallest_share(request: Request, paths: Paths) -> float:
    """MACs of the smallest network, relative to the unpruned one."""
    source = _start_source(request, paths)
    macs, named = counted_cost("macs", source, str(request.options.weight_format)), find_dimensions(source).named()
    return macs(named["minimal"]) / macs(named["maximal"])


def _start_source(request: Request, paths: Paths) -> Source:
    """The model that is searched, with the adapter and the search space that the first steps will make."""
    source = request.source
    if paths.trains_lora:
        config = AdapterConfig(Path("the new adapter"), lora_config(TrainOptions(), source.architecture))
        source = replace(source, adapter_config=config)
    if paths.space:
        space = parse_search_space(_make_space(source), SPACE_FILE)
        source = replace(source, elasticity=bind(source.architecture, space, SPACE_FILE))
    return source
