"""What the result is compared with: the unpruned model as optimum-intel stores it, with and without an activation group."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lonas_edge.bench.machine import instructions
from lonas_edge.commands import Command
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import export
from lonas_edge.exporting.optimum import gptq_options, optimum_options, run_optimum
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import link, replace_text
from lonas_edge.formats import PER_CHANNEL, activation_group
from lonas_edge.ir import WEIGHTS
from lonas_edge.ir.write import ACTIVATION_GROUP, set_property
from lonas_edge.network.source import Source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.steps import BASELINES, GPTQ, LORA, Step
from lonas_edge.progress import Progress

NAMES = {"int8": "unpruned INT8 (optimum-cli)", "int4": "unpruned INT4 (optimum-intel, GPTQ)"}  # in reports, by directory
GROUPED = ", activation group"
_TEXTS = 96  # training examples that GPTQ reads
_TEXT_TIMES = 30.0  # time of GPTQ for a text, relative to the evaluation of an example: some four minutes at 135M
_SHARE = 1 / 6  # of a run that GPTQ may take


@dataclass(frozen=True)
class Baseline:
    """A network that the result is compared with."""

    name: str  # in reports
    stored: str  # directory among the baselines, and weight format
    activation_group: int | None = None  # that it is given; stock files have none

    @property
    def folder(self) -> str:
        """Its directory among the baselines."""
        return f"{self.stored}-group" if self.activation_group else self.stored


def compared(plan: Plan) -> list[Baseline]:
    """The baselines in the order of reports: each as stored, then with the activation group that our exports have.

    AMX computes in bf16 and rounds no activations, so a group changes nothing there.
    """
    found, rounds_activations = list[Baseline](), "amx_bf16" not in instructions()
    for stored, rows in (("int8", PER_CHANNEL), ("int4", gptq_options(plan.source.architecture)["group-size"] or PER_CHANNEL)):
        if stored == "int8" or compares_gptq(plan):
            group = activation_group([each.in_features for each in plan.source.architecture.linears.values()], rows)
            found.append(Baseline(NAMES[stored], stored))
            found += [Baseline(NAMES[stored] + GROUPED, stored, group)] if group and rounds_activations else []
    return found


def gptq_seconds(plan: Plan) -> float:
    """Estimate the time of optimum-intel's GPTQ."""
    return _TEXTS * _TEXT_TIMES * plan.probe.evaluation


def compares_gptq(plan: Plan) -> bool:
    """Whether GPTQ is fast enough to compare with; otherwise the report has its command."""
    return plan.profile.kind.generates and gptq_seconds(plan) <= _SHARE * plan.default_seconds


def export_baselines(plan: Plan) -> Step:
    """Store the unpruned model, an adapter merged, with `optimum-cli`."""
    paths, profile, architecture = plan.paths, plan.profile, plan.source.architecture
    merged, commands = paths.baseline("merged"), [_merging(plan)]
    for name in profile.baselines:
        values = optimum_options(architecture, name)
        commands.append(Command("optimum-cli export openvino", None, {"model": merged, "": paths.baseline(name)}, values))

    def work(progress: Progress) -> None:
        merge(plan.unpruned, plan.paths.baseline("merged"), progress)
        for command in commands[1:]:
            output = command.paths[""]
            if not output.exists():
                progress(f"optimum-cli, {output.name}", None)
                run_optimum(command, architecture.family.raised_guards)
        shutil.rmtree(merged)

    outputs, needs = tuple(f"baselines/{name}" for name in profile.baselines), (LORA,) if paths.trains_lora else ()
    return Step(BASELINES, commands, work, outputs, needs, plan.inputs, folder="baselines")


def gptq_command(plan: Plan) -> Command:
    """The call of optimum-intel's GPTQ on training examples."""
    paths = plan.paths
    files = {"model": paths.baseline("merged"), "texts": paths.work / "data" / "texts.json", "": paths.baseline("int4")}
    return Command("python -m lonas_edge.exporting.gptq", None, files, gptq_options(plan.source.architecture))


def export_gptq(plan: Plan) -> Step:
    """Store the unpruned model in INT4 by GPTQ. A failure costs this comparison, not the run."""
    paths, command = plan.paths, gptq_command(plan)
    output, message = command.paths[""], paths.baseline("gptq.txt")

    def work(progress: Progress) -> None:
        failure = ""
        if not output.exists():
            merge(plan.unpruned, plan.paths.baseline("merged"), progress)
            _write_texts(plan, command.paths["texts"])
            progress("optimum-intel, GPTQ", None)
            try:
                run_optimum(command, plan.source.architecture.family.raised_guards)
            except LonasEdgeError as error:
                failure = str(error)
            shutil.rmtree(paths.baseline("merged"))
        replace_text(message, failure)

    outputs, seconds = ("baselines/gptq.txt",), gptq_seconds(plan)
    return Step(GPTQ, [_merging(plan), command], work, outputs, (BASELINES,), plan.inputs, estimate=seconds)


def merge(unpruned: Source, output: Path, progress: Progress) -> None:
    """Write the unpruned model as a checkpoint, an adapter merged, unless it exists."""
    if not output.exists():
        export(unpruned, unpruned.select("maximal"), output, ExportOptions(stage="checkpoint", verify=False), progress)


def _merging(plan: Plan) -> Command:
    files = {"": plan.paths.unpruned, "model": plan.paths.unpruned_base, "subnet": "maximal"}
    files["output"] = str(plan.paths.baseline("merged"))
    return Command("lonas-edge export", ExportOptions(stage="checkpoint", verify=False), files)


def _write_texts(plan: Plan, path: Path) -> None:
    """Write training examples as texts, spread over the data; the tokenizer adds BOS when they are read."""
    data = plan.open_data(plan.paths.train)
    tokenizer = require_tokenizer(plan.unpruned.base.folder, "GPTQ")
    [encoded] = data.encode(tokenizer, data.context)
    chosen = encoded[:: max(1, len(encoded) // _TEXTS)][:_TEXTS]
    texts = [tokenizer.decode(example["input_ids"]).removeprefix(tokenizer.bos_token or "") for example in chosen]
    replace_text(path, json.dumps(texts))


def add_activation_groups(plan: Plan) -> None:
    """Copy the stored IRs, whose weights are linked, and write an activation group into the copies."""
    for each in compared(plan):
        stored, output = plan.paths.baseline(each.stored), plan.paths.baseline(each.folder)
        if each.activation_group and stored.exists() and not output.exists():
            temporary = output.with_name(f"{output.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(stored, temporary, ignore=shutil.ignore_patterns(WEIGHTS))
            link(str(stored / WEIGHTS), str(temporary / WEIGHTS))
            set_property(temporary, ACTIVATION_GROUP, str(each.activation_group))
            temporary.rename(output)
