"""`compress`: from a model or adapter to a smaller model that runs, in one resumable run.

The output DIR holds an exported directory for each target (`model` where there is one), the report, `recipe.yaml`, and in
`steps` the results of the steps, from which a run with other targets continues.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lonas_edge.bench import machine
from lonas_edge.data.task import MAX_LENGTH
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import update_card
from lonas_edge.exporting.model_card import COMPARISON
from lonas_edge.files import replace_text, sha256
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline import stages
from lonas_edge.pipeline.data import split
from lonas_edge.pipeline.estimate import PROBE, Estimate, Probe, estimate, least_disk_bytes, probe
from lonas_edge.pipeline.options import KEEP, CompressOptions
from lonas_edge.pipeline.plan import RECOVER, Plan, source_hashes, trained_for
from lonas_edge.pipeline.recipe import RECIPE, recipe_text
from lonas_edge.pipeline.record import COMPRESS, CompressRecord, Step
from lonas_edge.pipeline.report import HTML, MARKDOWN, PLOT, comparison, write_report
from lonas_edge.pipeline.results import measured
from lonas_edge.pipeline.stages import Places
from lonas_edge.pipeline.steps import STEPS as STATES
from lonas_edge.pipeline.steps import PlannedStep, Steps, StepsRecord
from lonas_edge.pipeline.tasks import PipelineTask, options_of, task_of
from lonas_edge.progress import Progress, silent
from lonas_edge.search.picks import Pick
from lonas_edge.vocabulary.model_vocabulary import choose_size

STEPS = "steps"
LEAST_FITTING = 8  # held-out examples
Announce = Callable[[list[PlannedStep], Estimate], None]


@dataclass(frozen=True)
class Reference:
    """What is compressed, as the user names it: SOURCE, --model and --nncf-config."""

    source: str
    model: str | None = None
    nncf_config: Path | None = None


def compress_model(
    reference: Reference,
    options: CompressOptions,
    progress: Progress = silent,
    announce: Announce = lambda _steps, _estimate: None,
    recorded: Mapping[str, str] | None = None,
) -> CompressRecord | None:
    """Compress a model and write the output directory; an earlier run there continues.

    Args:
        reference: The model or adapter.
        options: The options.
        progress: Reports what is being done.
        announce: Called with the pending steps and the estimate before the first step.
        recorded: Hashes of the inputs of a recipe that is repeated; inputs that differ are reported.

    Returns:
        The record, or None for --dry-run.

    Raises:
        LonasEdgeError: If inputs do not fit, or a step fails; finished steps are kept.
    """
    progress("Checking the inputs", None)
    source = open_source(reference.source, reference.model, reference.nncf_config)
    if source.architecture.unequal:
        raise LonasEdgeError(
            f"{source.base.folder}: its layers are unequal, and optimum-cli, which compress compares with, cannot export such "
            "models. Use `space`, `train`, `search` and `export`."
        )
    task = task_of(source)
    task.check(options, source)
    picks = stages.picks_of(options, task, _earlier_targets(options.output))
    stages.cost_of(picks, task)
    run = _Run(reference, source, task, options, picks, progress, recorded or {})
    if options.dry_run:
        with TemporaryDirectory(prefix="lonas-edge-") as folder:
            run.planned(Path(folder), announce)
        return None
    return run.lead(announce)


def _earlier_targets(output: Path) -> list[str]:
    """The targets of earlier runs with this output, from the names of their steps."""
    files = [folder / STEPS / STATES for folder in (OutputDirectory(output).partial, output)]
    with suppress(LonasEdgeError):  # it is read again where a run continues
        names = next((StepsRecord.read(file).states for file in files if file.is_file()), {})
        return [name.removeprefix(RECOVER) for name in names if name.startswith(RECOVER)]
    return []


@dataclass(frozen=True)
class _Run:
    """A running compression."""

    reference: Reference
    source: Source
    task: PipelineTask
    options: CompressOptions
    picks: Mapping[str, Pick]
    progress: Progress
    recorded: Mapping[str, str]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Hashes of the source's files."""
        return source_hashes(self.source)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of all inputs; the files that options name are valid."""
        files = {"data": self.options.data, "eval_data": self.options.eval_data, "nncf_config": self.reference.nncf_config}
        return self.hashes | {name: sha256(path) for name, path in files.items() if path and path.is_file()}

    def _compare_with_recipe(self) -> None:
        """Name the inputs that are not those of a recipe."""
        for name, value in self.inputs.items():
            if self.recorded.get(name, value) != value:
                self.progress(f"{name}: not the one that the recipe was written for (SHA-256)\nPlanning", None)

    def lead(self, announce: Announce) -> CompressRecord:
        """Run the pending steps, and publish the results."""
        output, options, hashes = self.options.output, self.options, self.hashes
        finished = CompressRecord.read(output / COMPRESS) if (output / COMPRESS).is_file() else None
        if finished and finished.sha256 != hashes and not options.overwrite:
            raise LonasEdgeError(
                f"{output}: holds {finished.source}, compressed; the files of this SOURCE are others (SHA-256). Choose another "
                "--output, or pass --overwrite."
            )
        kept = finished if finished and finished.sha256 == hashes else None
        reference = self.reference
        inputs = [self.source.base.folder, options.data, options.eval_data, reference.source, reference.nncf_config]
        directory = OutputDirectory(output, options.overwrite or finished is not None, inputs)
        directory.check(0, resumable=True)
        identity = {"source": hashes}
        restart = options.overwrite and directory.identity() not in ({}, identity)
        with directory.resume("compress", identity, restart=restart) as resumed:
            if kept and (output / STEPS).is_dir() and not (directory.partial / STEPS).exists():
                self._restore(directory.partial, kept)
            try:
                steps = self.planned(directory.partial / STEPS, announce)
            except LonasEdgeError:
                if not resumed:  # nothing to continue from
                    shutil.rmtree(directory.partial / STEPS, ignore_errors=True)
                raise
            steps.run(self.progress)
            return self._publish(directory, steps, finished)

    def planned(self, folder: Path, announce: Announce) -> Steps:
        """Split the data, time training steps if no earlier run did, and plan the steps."""
        options, places = self.options, self._places(folder)
        data = self.source.open_data(options.data, labels=True)
        eval_data = self.source.open_data(options.eval_data, labels=True) if options.eval_data else None
        counts = split(data, eval_data, self.task.most, options.seed, folder / "data")
        self._compare_with_recipe()
        if options.eval_data and self.source.architecture.family.kind.generates:
            stages.check_held_out(places, self.source, options.eval_data, options.prompt)
        if places.adapter:
            stages.check_adapter(places)
        if not places.trims:  # a trimmed vocabulary changes the sizes
            stages.check_sizes(self.source, self.task, self.picks, self.task.settings(options))
        fitting = self._fitting(places)
        trim = (places.base, places.train, options.vocabulary, options.prompt)
        size = choose_size(*trim) if places.trims else None
        timed = self._probe(places)
        plan = Plan(self.source, self.task, self.hashes, self.inputs, options, places, counts, fitting, timed, self.picks, size)
        here = machine.describe("CPU")
        processor = f"{here['processor']}, {here['processors']} processors"

        def measure(progress: Progress) -> None:
            measured(plan, self._names, here, progress).write(folder / COMPRESS)

        steps = Steps(folder, plan.steps(measure, processor))
        steps.prepare(options.overwrite, lambda line: self.progress(f"{line}\nPlanning", None))
        timed.write(folder / PROBE)
        pending = {name: name.split()[0] for name in steps.pending()}
        estimated = estimate(plan, pending)
        steps.expect(estimated.seconds)
        announce([steps.planned[name] for name in pending], estimated)
        if pending:
            OutputDirectory(options.output).check_space(estimated.disk_bytes)
        return steps

    def _places(self, folder: Path) -> Places:
        reference = self.reference
        located = self.source.base
        base = f"{located.name}@{located.revision}" if located.revision else str(located.folder)
        adapter = reference.source if self.source.adapter else None
        own_space = bool(self.source.space.groups)
        trims = self.options.vocabulary != KEEP
        return Places(folder, base, adapter, reference.nncf_config, own_space, trims, self.task.adapts)

    def _fitting(self, places: Places) -> int:
        """Number of held-out examples that the search can use.

        Raises:
            LonasEdgeError: If they are too few.
        """
        held = self.source.open_data(places.held_out, self.options.prompt)
        fitting = held.fitting(require_tokenizer(self.source.base.folder, "compress"))
        if fitting < LEAST_FITTING:
            raise LonasEdgeError(
                f"{self.options.eval_data or self.options.data}: {fitting} of {len(held.inputs)} held-out examples have an "
                f"answer within {MAX_LENGTH} tokens; expected at least {LEAST_FITTING}. Shorten the examples, or add others."
            )
        return fitting

    def _probe(self, places: Places) -> Probe:
        """Time training steps, or read what an earlier run with the same data timed; its choice of the precision stays."""
        file, options, weight_format = places.work / PROBE, self.options, self.task.settings(self.options).weight_format
        qat = trained_for(weight_format)
        inputs = {"train": sha256(places.train), "prompt": str(options.prompt), "qat": str(qat)}
        earlier = Probe.read(file) if file.exists() else None
        kept = earlier if earlier and options.precision in (earlier.requested, earlier.precision) else None
        if kept and kept.inputs == inputs:
            return kept
        requested, precision = (kept.requested, kept.precision) if kept else (options.precision, options.precision)
        if not earlier and not options.dry_run:
            OutputDirectory(options.output).check_space(
                least_disk_bytes(self.task, self.source, weight_format, len(self.picks))
            )
        with TemporaryDirectory(prefix="lonas-edge-") as folder:
            base = places.base
            if places.adapter and not self.task.adapts:  # an encoder's base may have another task, or lack the head
                base = str(Path(folder) / "merged")
                stages.merge(places, Path(base), self.progress)
            timed = probe(self.task, base, places.train, options.prompt, qat, precision, self.progress)
        return replace(timed, inputs=inputs, requested=requested)

    @property
    def _names(self) -> dict[str, str]:
        """The directory in the output of each target."""
        return {target: "model" if len(self.picks) == 1 else pick.file for target, pick in self.picks.items()}

    def _restore(self, work: Path, finished: CompressRecord) -> None:
        """Link the results of a finished run into the working directory."""
        output, temporary = self.options.output, work / f"{STEPS}.copy"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(output / STEPS, temporary, copy_function=_link)
        for pick_file, folder in finished.options["folders"].items():
            if (output / folder).is_dir():
                shutil.copytree(output / folder, temporary / "models" / pick_file, copy_function=_link)
        temporary.rename(work / STEPS)

    def _publish(self, directory: OutputDirectory, steps: Steps, earlier: CompressRecord | None) -> CompressRecord:
        folder = directory.partial / STEPS
        record = replace(CompressRecord.read(folder / COMPRESS), steps=self._steps(steps, folder))
        with directory.publish() as new:
            ignored = shutil.ignore_patterns("baselines", "models")
            shutil.copytree(folder, new / STEPS, copy_function=_link, ignore=ignored)
            for target, pick in self.picks.items():
                model = new / self._names[target]
                shutil.copytree(folder / "models" / pick.file, model, copy_function=_link)
                update_card(model, COMPARISON, comparison(record))
            record.write(new / COMPRESS)
            replace_text(new / RECIPE, recipe_text(self._recipe(record), self.inputs, record.versions))
            write_report(record, new)
            if earlier:
                self._carry_over(new, earlier)
        return record

    def _carry_over(self, new: Path, earlier: CompressRecord) -> None:
        """Link what others put into the output directory of an earlier run."""
        ours = {STEPS, RECIPE, COMPRESS, MARKDOWN, PLOT, HTML, *earlier.options["folders"].values()}
        for path in self.options.output.iterdir():
            if path.name not in ours and not (new / path.name).exists():
                if path.is_dir() and not path.is_symlink():
                    shutil.copytree(path, new / path.name, copy_function=_link, symlinks=True)
                else:
                    shutil.copy2(path, new / path.name, follow_symlinks=False)

    def _steps(self, steps: Steps, folder: Path) -> tuple[Step, ...]:
        """The finished steps, with commands on the published files."""
        output, models = self.options.output, folder / "models"
        moved = {str(models / pick.file): str(output / self._names[target]) for target, pick in self.picks.items()}
        moved[str(folder)] = str(output / STEPS)

        def published(command: str) -> str:
            for before in sorted(moved, key=len, reverse=True):  # kl-0.15 before kl-0.1
                command = command.replace(before, moved[before])
            return command

        return tuple(
            Step(name, published(step.command), steps.states[name].seconds, steps.estimates.get(name))
            for name, step in steps.planned.items()
            if name in steps.states
        )

    def _recipe(self, record: CompressRecord) -> dict[str, Any]:
        """All options as YAML has them."""
        names = ("epochs", "recovery_steps", "precision", *options_of(self.task.settings(self.options)))
        resolved = {name: record.options[name] for name in names}
        values = {**vars(self.reference), **vars(self.options), **resolved}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
        return {**plain, "target": list(self.options.target), "dry_run": None, "overwrite": None}


def _link(source: str, target: str) -> str:
    """Link a file, or copy it where links are impossible; no step changes a file in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
