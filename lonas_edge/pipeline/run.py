"""`compress`: from a model or adapter to a smaller model that runs, in one resumable run.

The output DIR holds an exported directory for each target (`model` where there is one), the report, and in
`steps` the results of the steps, from which a run with other targets continues.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from lonas_edge.bench import machine
from lonas_edge.data.classes import names_class
from lonas_edge.data.language import LanguageTask
from lonas_edge.drafting.card import DRAFT_SECTION, draft_section
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answers import FILE
from lonas_edge.exporting.exported import update_card
from lonas_edge.exporting.manifest import DRAFT
from lonas_edge.exporting.model_card import COMPARISON
from lonas_edge.families import CLASSIFICATION
from lonas_edge.files import link, sha256
from lonas_edge.network.source import open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.baselines import merge
from lonas_edge.pipeline.drafts import paying_draft
from lonas_edge.pipeline.options import OWN, CompressOptions
from lonas_edge.pipeline.plan import Paths, Plan, Request, source_hashes
from lonas_edge.pipeline.record import COMPRESS, CompressRecord, StepTime
from lonas_edge.pipeline.report import HTML, MARKDOWN, PLOT, comparison, write_report
from lonas_edge.pipeline.stages import check_steps, make_steps, smallest_share
from lonas_edge.pipeline.steps import DRAFT_STEP, Step, Steps
from lonas_edge.pipeline.targets import MetricBound, auto_target, check_labels, check_metrics, cost_of, parse_targets
from lonas_edge.pipeline.tasks import check_head, profile_of, resolve_options
from lonas_edge.pipeline.training import PROBE, Probe, batches, time_steps
from lonas_edge.progress import Progress, silent
from lonas_edge.search.cost import COSTS
from lonas_edge.training.defaults import device_of
from lonas_edge.training.options import AUTO, TrainOptions
from lonas_edge.vocabulary.model_vocabulary import choose_size

STEPS = "steps"
LEAST_FITTING = 8  # held-out examples
_PEAK = 1.5  # memory of a run, relative to the timed steps, which are of short examples: docs/benchmarks/larger.md
_LIBRARIES, _WEIGHT = 10**9, 2  # bytes of memory at least: of the libraries, and of a weight in 16 bits
Announce = Callable[[list[Step], dict[str, int]], None]


def compress_model(
    options: CompressOptions, progress: Progress = silent, announce: Announce = lambda _steps, _needed: None
) -> CompressRecord | None:
    """Compress a model and write the output directory; an earlier run there continues.

    Args:
        options: The options.
        progress: Reports what is being done.
        announce: Called before the first step with the pending ones and the estimated bytes of memory and disk.

    Returns:
        The record, or None for --dry-run.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    progress("Checking the inputs", None)
    source = open_source(options.source, options.model)
    if source.architecture.unequal:
        raise LonasEdgeError(
            f"{source.base.folder}: its layers are unequal, and optimum-cli, which compress compares with, cannot export such "
            "models. Use `space`, `train`, `search` and `export`."
        )
    profile = profile_of(source)
    if profile.kind is CLASSIFICATION:
        check_head(source)
    targets = options.target
    if AUTO in targets:
        auto = auto_target(profile, options.data, options.eval_data, options.metric)
        targets = tuple(auto if target == AUTO else target for target in targets)
    picks = parse_targets(targets, profile, options.metric)
    cost = cost_of(picks, profile)
    finished = CompressRecord.read(options.output / COMPRESS) if (options.output / COMPRESS).is_file() else None
    request = Request(source, profile, resolve_options(profile, options, source), picks, source_hashes(source), cost, {})
    if finished and not options.overwrite:
        request = _keep_networks(request, finished)
    if finished:
        _check_folders(request, finished)
    used = [source.base.folder, options.data, options.eval_data, options.source]
    directory = OutputDirectory(options.output, options.overwrite or finished is not None, used)
    directory.check(0, resumable=True)
    if not options.dry_run:
        return _run(request, directory, finished, announce, progress)
    with TemporaryDirectory(prefix="lonas-edge-") as temporary:
        folder = Path(temporary) / STEPS
        if (directory.partial / STEPS).is_dir():
            shutil.copytree(directory.partial / STEPS, folder, copy_function=_name_only)
        elif finished and finished.sha256 == request.hashes and (options.output / STEPS).is_dir():
            _restore(options.output, finished, folder, _name_only)
        _prepare(request, folder, announce, progress)
    return None


def _keep_networks(request: Request, finished: CompressRecord) -> Request:
    """Add the targets of an earlier run of the same model in this output, whose networks stay.

    Raises:
        LonasEdgeError: If it compressed another model, or one search cannot find all networks.
    """
    options, profile, metric = request.options, request.profile, request.options.metric
    if finished.sha256 != request.hashes:
        raise LonasEdgeError(
            f"{options.output}: holds {finished.source}, compressed; the files of this SOURCE are others (SHA-256). Choose "
            "another --output, or pass --overwrite."
        )
    known = {each.target: each.folder for each in finished.networks if each.target}
    found = {target: folder for target, folder in known.items() if target not in request.picks}
    if any(target.startswith(OWN) for target in found):
        metric = metric or finished.options["metric"]
    picks = {**request.picks, **parse_targets(list(found), profile, metric)}
    timed = {pick.measure for pick in picks.values() if pick.measure in COSTS and COSTS[pick.measure].timed}
    if timed - {finished.cost}:
        raise LonasEdgeError(
            f"{options.output}: keeps the networks of {', '.join(known)}, which a search by {finished.cost} found. Bound "
            f"{' and '.join(sorted(timed - {finished.cost}))} in another --output, or pass --overwrite to replace them."
        )
    folders = {target: f"model-{picks[target].file}" if name == "model" else str(name) for target, name in found.items()}
    return replace(request, options=replace(options, metric=metric), picks=picks, cost=finished.cost, earlier=folders)


def _check_folders(request: Request, finished: CompressRecord) -> None:
    """Refuse files of others where this run would write its networks."""
    output, ours = request.options.output, finished.options["folders"].values()
    if others := [name for name in request.folders.values() if name not in ours and (output / name).exists()]:
        raise LonasEdgeError(f"{output / others[0]}: exists, and this run would write it. Rename it.")


def _run(
    request: Request, directory: OutputDirectory, finished: CompressRecord | None, announce: Announce, progress: Progress
) -> CompressRecord:
    """Run the pending steps, and publish the results."""
    output, options = request.options.output, request.options
    with directory.resume("compress", {"source": dict(request.hashes)}, restart=options.overwrite) as resumed:
        folder = directory.partial / STEPS
        same = finished is not None and finished.sha256 == request.hashes
        if finished and same and (output / STEPS).is_dir() and not folder.exists():
            _restore(output, finished, folder, link)
        try:
            steps = _prepare(request, folder, announce, progress)
        except LonasEdgeError:
            if not resumed:  # nothing to continue from
                shutil.rmtree(folder, ignore_errors=True)
            raise
        steps.run(progress)
        record = replace(CompressRecord.read(folder / COMPRESS), steps=_step_times(request, steps))
        with directory.publish() as new:
            _write_results(request, record, folder, new)
            if finished:
                _carry_over(output, new, finished)
    return record


def _prepare(request: Request, folder: Path, announce: Announce, progress: Progress) -> Steps:
    """Split the data, time training steps if no earlier run did, and plan the steps."""
    options, paths = request.options, Paths(request, folder)
    counts, fitting = _split(request, paths)
    if request.profile.kind.generates:
        check_metrics(paths.held_out, options.metric, request.picks.values())
    check_steps(request, paths)
    size = choose_size(paths.base, paths.train, options.vocabulary, options.template) if paths.trims else None
    probe = _probe(request, paths, progress)
    bounded = any(isinstance(pick, MetricBound) for pick in request.picks.values())
    smallest = smallest_share(request, paths) if bounded and not request.profile.kind.generates else 0.0
    plan = Plan(**vars(request), paths=paths, counts=counts, fitting=fitting, probe=probe, smallest=smallest, vocabulary=size)
    steps = Steps(folder, make_steps(plan, machine.describe("CPU")))
    steps.prepare(options.overwrite)
    probe.write(folder / PROBE)
    pending = [steps.planned[name] for name in steps.pending()]
    announce(pending, {"memory_bytes": round(_PEAK * probe.peak_bytes), "disk_bytes": request.disk_bytes})
    return steps


def _split(request: Request, paths: Paths) -> tuple[dict[str, int], int]:
    """Write the training and the held-out examples; return their numbers, and that of prompts that the search can use.

    Raises:
        LonasEdgeError: If these are too few.
    """
    options, source = request.options, request.source
    if request.profile.kind.generates and names_class(options.data):
        raise LonasEdgeError(
            f"{options.data}: texts with labels, which a language model does not learn. Make a classifier first: lonas-edge "
            f"train --no-elastic --model {source.base.reference} --data {options.data} --output CLASSIFIER. Then compress it. "
            "For a language model, remove the labels."
        )
    how: dict[str, Any] = {"prompt": options.template, "labels": True, "max_length": options.max_length}
    data = source.open_data(options.data, **how)
    held_out = source.open_data(options.eval_data, **how) if options.eval_data else None
    held_out = held_out and held_out.with_prompt(data.description)
    train, held_out = data.split(request.profile.held_out, options.seed, held_out)
    if not request.profile.kind.generates:
        check_labels(held_out, request.picks.values())
    paths.train.parent.mkdir(parents=True, exist_ok=True)
    train.write(paths.train)
    held_out.write(paths.held_out)
    tokenizer = require_tokenizer(source.base.folder, "compress")
    fitting = min(len(held_out.inputs), len(held_out.lengths(tokenizer)))
    if fitting < LEAST_FITTING:
        raise LonasEdgeError(
            f"{held_out.path}: {fitting} of {len(held_out.inputs)} held-out examples have an answer within {data.context:,} "
            f"tokens; expected at least {LEAST_FITTING}. Raise --max-length, shorten the examples, or add others."
        )
    return {"train": len(train.examples), "held_out": len(held_out.examples)}, fitting


def _probe(request: Request, paths: Paths, progress: Progress) -> Probe:
    """Time training steps, or read what an earlier run with the same data timed; its choice of the precision stays."""
    options, qat = request.options, request.trained_for
    given = {"prompt": options.template, "max_length": options.max_length, "qat": qat}
    inputs = {"train": sha256(paths.train), **{name: str(value) for name, value in given.items()}}
    earlier = None
    if (paths.work / PROBE).exists():
        with suppress(LonasEdgeError):  # of another version
            earlier = Probe.read(paths.work / PROBE)
    if earlier and earlier.inputs == inputs:
        return earlier
    if not earlier and not options.dry_run:
        OutputDirectory(options.output).check_space(request.disk_bytes)
    _check_memory(request)
    precision = earlier.precision if earlier else None
    with TemporaryDirectory(prefix="lonas-edge-") as folder:
        base = paths.base
        if paths.unpruned_base and not request.profile.adapts:  # an encoder's base may have another task, or lack the head
            base = str(Path(folder) / "merged")
            merge(open_source(paths.unpruned, paths.unpruned_base, elastic=False), Path(base), progress)
        data = request.source.open_data(paths.train, options.template, labels=True, max_length=options.max_length)
        tokenizer = require_tokenizer(request.source.base.folder, "compress")
        lengths = data.lengths(tokenizer) or [1]  # the training refuses none
        learned = data.learned_tokens(tokenizer) if isinstance(data, LanguageTask) else []
        sizes = batches(request.profile, lengths, [span for _, span in learned], request.source.architecture.config.vocab_size)
        recovery = TrainOptions(template=options.template, max_length=options.max_length, weight_format=qat)
        timed = time_steps(request.profile, base, paths.train, sizes, recovery, precision, progress)
    return replace(timed, inputs=inputs, learned=round(sum(count for count, _ in learned) / len(lengths), 1))


def _check_memory(request: Request) -> None:
    """Refuse a model whose weights do not fit, before timed steps that the system would kill without a message.

    A GPU holds the model and its teacher; they are loaded one after the other. Rounded weights are a third copy.
    """
    parameters, available = request.source.sizes(request.source.unpruned).parameters, psutil.virtual_memory().available
    models = 2 + bool(request.trained_for) if device_of(TrainOptions()) == "cpu" else 1
    needed = _LIBRARIES + models * _WEIGHT * parameters
    if needed > available:
        raise LonasEdgeError(
            f"{request.source.base.folder}: training takes at least {needed / 1e9:.1f} GB of memory for "
            f"{parameters // 10**6:,} million parameters and a teacher of this size; {available / 1e9:.1f} GB are available. "
            "Close other programs, take a machine with more memory, or a smaller model."
        )


def _name_only(source: str, destination: str) -> None:
    """Stand for a file in a dry run, which reads the states of the steps and whether their results exist."""
    Path(destination).symlink_to(Path(source).absolute())


def _restore(output: Path, finished: CompressRecord, folder: Path, link: Callable[[str, str], object]) -> None:
    """Link the results of a finished run into the working directory."""
    temporary = folder.with_name(f"{STEPS}.copy")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(output / STEPS, temporary, copy_function=link)
    for pick_file, name in finished.options["folders"].items():
        if (output / name).is_dir():
            shutil.copytree(output / name, temporary / "models" / pick_file, copy_function=link)
    if (output / DRAFT_STEP / DRAFT).is_file():
        shutil.copytree(output / DRAFT_STEP, temporary / DRAFT_STEP, copy_function=link)
    temporary.rename(folder)


def _write_results(request: Request, record: CompressRecord, folder: Path, new: Path) -> None:
    """Link the networks and the results of the steps into a new output directory, and write the report."""
    ignored = shutil.ignore_patterns("baselines", "models", DRAFT_STEP, f"{DRAFT_STEP}.partial", FILE)
    shutil.copytree(folder, new / STEPS, copy_function=link, ignore=ignored)
    draft, drafted = paying_draft(folder), False
    for target, pick in request.picks.items():
        model = new / request.folders[target]
        shutil.copytree(folder / "models" / pick.file, model, copy_function=link)
        update_card(model, COMPARISON, comparison(record))
        learned = draft and draft.model == {name: sha256(model / name) for name in draft.model}
        update_card(model, DRAFT_SECTION, draft_section(model.name, DRAFT_STEP, draft) if draft and learned else "")
        drafted |= bool(learned)
    if drafted:  # else it is that of an earlier model
        shutil.copytree(folder / DRAFT_STEP, new / DRAFT_STEP, copy_function=link)
    record.write(new / COMPRESS)
    write_report(record, new)


def _carry_over(output: Path, new: Path, earlier: CompressRecord) -> None:
    """Link what others put into the output directory of an earlier run."""
    ours = {STEPS, COMPRESS, MARKDOWN, PLOT, HTML, DRAFT_STEP, *earlier.options["folders"].values()}
    for path in output.iterdir():
        if path.name not in ours and not (new / path.name).exists():
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, copy_function=link, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)


def _step_times(request: Request, steps: Steps) -> tuple[StepTime, ...]:
    """The finished steps, with commands on the published files."""
    output, times = request.options.output, []
    moved = {str(steps.folder / "models" / pick.file): output / request.folders[each] for each, pick in request.picks.items()}
    moved[str(steps.folder / DRAFT_STEP)] = output / DRAFT_STEP
    moved[str(steps.folder)] = output / STEPS
    for name, step in steps.planned.items():
        if state := steps.states.get(name):
            command = step.finished_command
            for before in sorted(moved, key=len, reverse=True):  # kl-0.15 before kl-0.1
                command = command.replace(before, str(moved[before]))
            times.append(StepTime(name, command, state.seconds, state.estimate))
    return tuple(times)
