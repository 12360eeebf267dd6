"""The steps of `compress`, each by the code of the command that does the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import replace_text
from lonas_edge.network.adapters import CONFIG, AdapterConfig
from lonas_edge.network.source import Source, open_source
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.defaults import Defaults
from lonas_edge.pipeline.steps import Command, Step, to_argv
from lonas_edge.progress import Progress
from lonas_edge.search.cost import COUNTED, CostSettings, counted_cost
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.picks import Pick, check_picks
from lonas_edge.search.plan import make_plan
from lonas_edge.search.run import search
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import generate_space, removable_blocks
from lonas_edge.space.search_space import parse_search_space
from lonas_edge.space.selection import select
from lonas_edge.training.defaults import lora_config, with_targets
from lonas_edge.training.inputs import Inputs, open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.train import train
from lonas_edge.vocabulary.model_vocabulary import trim

NEW_RANK = TrainOptions().rank  # of the adapter that the recovery of a base trains
SPACE = "space.json"
_GROUP_SIZES = (128, 64, 32)  # of optimum-cli's INT4: the first that divides all widths


class Paths:
    """Where the steps find and keep their files. A model is a directory or a hub id."""

    def __init__(self, work: Path, source: Source, adapter: str | None, adapts: bool, trims: bool):
        """Place the files of a run that compresses `adapter`, or without one the base of `source`."""
        self.work, self.trims, self.trains_lora = work, trims, adapts and adapter is None
        self.train, self.held_out = work / "data" / "train.jsonl", work / "data" / "held_out.jsonl"
        located, lora = source.base, str(work / "lora") if self.trains_lora else adapter
        self.base = f"{located.name}@{located.revision}" if located.revision else str(located.folder)
        self.student = str(work / "base") if trims else self.base  # the base of the compressed networks
        # the finished model and, of an adapter, its base: the baseline, and the teacher
        self.unpruned, self.unpruned_base = lora or self.base, self.base if lora else None
        # the model that is searched and recovered: the finished one, with the tokens that are kept
        self.start, self.start_base = lora or self.student, self.student if lora else None
        self.writes_space = not source.space.groups
        self.space = work / SPACE if self.writes_space else None  # None for the one in the adapter's directory

    def baseline(self, name: str) -> Path:
        """The unpruned network in a format, or `merged` as a checkpoint."""
        return self.work / "baselines" / name

    def subnetwork(self, pick: Pick) -> Path:
        """The sub-network of a target."""
        return self.work / "search" / "subnetworks" / f"{pick.file}.json"

    def recovered(self, pick: Pick) -> Path:
        """The recovered adapter of a target."""
        return self.work / "recovered" / pick.file

    def model(self, pick: Pick) -> Path:
        """The exported network of a target."""
        return self.work / "models" / pick.file


def optimum_options(architecture: Architecture, library: str | None, weight_format: str) -> dict[str, Any]:
    """Options of `optimum-cli` that store a model; INT4 in the largest groups that divide all widths of such layers."""
    options = {"task": architecture.family.kind.conversion, "library": library, "weight-format": weight_format}
    if weight_format != "int4":
        return options
    linears = architecture.linears.values()
    widths = {linear.in_features for linear in linears if linear.four_bits}
    group = next((size for size in _GROUP_SIZES if not any(width % size for width in widths)), None)
    others = any(linear.in_features % group for linear in linears if not linear.four_bits) if group else False
    return {**options, "group-size": group, "group-size-fallback": "ignore" if others else None}


@dataclass(frozen=True)
class Stages:
    """The functions of the steps, and their models, each opened once."""

    paths: Paths
    defaults: Defaults
    source: Source  # what is compressed, as it was given
    picks: Sequence[Pick]  # of all targets, in order

    @cached_property
    def unpruned(self) -> Source:
        """The finished model."""
        return open_source(self.paths.unpruned, self.paths.unpruned_base, elastic=False)

    @cached_property
    def start(self) -> Source:
        """The model that is searched, with the search space."""
        return open_source(self.paths.start, self.paths.start_base, self.paths.space)

    def fine_tune(self, step: Step, progress: Progress) -> None:
        """Train a plain LoRA adapter, or continue its training."""
        [command] = step.commands
        inputs = open_inputs(self.paths.base, self.paths.train, None, elastic=False)
        _train(with_eval_data(inputs, self.paths.held_out), command, progress)

    def trim(self, step: Step, progress: Progress) -> None:
        """Write the base model with a smaller vocabulary."""
        paths, values = self.paths, step.commands[0].values
        trim(paths.base, paths.train, values["size"], values["prompt"], Path(paths.student), progress)

    def write_space(self, step: Step, progress: Progress) -> None:
        """Write the search space of a model without one: blocks that can be removed."""
        content = self._generate_space(self.unpruned)
        replace_text(Path(str(self.paths.space)), json.dumps(content, indent=2) + "\n")

    def _generate_space(self, source: Source) -> dict[str, Any]:
        """As `space --depth KIND --ratios 1` with `--adapter ADAPTER`, or for a base with `--ranks RANK`."""
        architecture = source.architecture
        blocks, ranks = removable_blocks(architecture, (self.defaults.block,), str(source.base.folder)), source.ranks()
        return generate_space(architecture, (1.0,), None if ranks else (NEW_RANK,), blocks=blocks, adapter=ranks or None)

    def search(self, step: Step, progress: Progress) -> None:
        """Search the networks of the targets, or continue a search with other targets."""
        [command] = step.commands
        search(make_plan(self.start, replace(command.options, picks=tuple(command.paths["pick"]))), progress)

    def recover(self, step: Step, progress: Progress) -> None:
        """Train the network of a target with the unpruned model as its teacher.

        The network of an earlier target is trained already. An unpruned one in INT8 needs no training: its directory is empty.
        """
        [command] = step.commands
        paths, source, output, network = self.paths, self.start, command.paths["output"], command.paths["subnet"]
        chosen = select(source.elasticity, str(network))
        for pick in self.picks:
            if paths.recovered(pick) == output:
                break
            if select(source.elasticity, str(paths.subnetwork(pick))).canonical == chosen.canonical:
                with OutputDirectory(output).open() as folder:
                    shutil.copytree(paths.recovered(pick), folder, dirs_exist_ok=True)
                return
        unpruned = source.sizes(chosen).parameters == source.sizes(source.unpruned).parameters
        if unpruned and not command.options.weight_format and not paths.trims:
            with OutputDirectory(output).open():
                return
        inputs = open_recovery(paths.start, paths.train, str(network), paths.start_base, paths.space)
        inputs = with_teacher(with_eval_data(inputs, paths.held_out), paths.unpruned, paths.unpruned_base)
        _train(inputs, command, progress)

    def export(self, step: Step, progress: Progress) -> None:
        """Export and verify the network of a target."""
        [command] = step.commands
        recovered = command.paths[""]
        source = open_source(str(recovered), self.paths.student) if (recovered / CONFIG).exists() else self.unpruned
        export(source, source.select(None), command.paths["output"], command.options, progress)

    def export_baselines(self, step: Step, progress: Progress) -> None:
        """Store the unpruned model with `optimum-cli`, an adapter merged, once for each weight format."""
        merging, *commands = step.commands
        merged = merging.paths["output"]
        if not merged.exists():
            self.merge(merged, progress)
        for command in commands:
            output = command.paths[""]
            if not output.exists():
                progress(f"optimum-cli, {output.name}", None)
                run_optimum(command, self.source.architecture.family.raised_guards)
        shutil.rmtree(merged)

    def merge(self, output: Path, progress: Progress) -> None:
        """Write the unpruned model as a checkpoint, an adapter merged."""
        options = ExportOptions(stage="checkpoint", verify=False)
        export(self.unpruned, self.unpruned.select("maximal"), output, options, progress)

    def check(self, settings: CostSettings) -> None:
        """Refuse, before the first step, an adapter that `recover` would refuse, and sizes that no network has."""
        paths = self.paths
        if self.source.adapter:
            with_teacher(open_recovery(paths.unpruned, paths.train, None, paths.base), paths.unpruned, paths.base)
        if not paths.trims:  # a smaller vocabulary changes the sizes
            self._check_sizes(settings)

    def _check_sizes(self, settings: CostSettings) -> None:
        """Refuse bounds on sizes that not even the smallest network meets; latencies are measured later, by the search.

        A base model gets the adapter that `fine_tune` will train: sizes count it.
        """
        source = self.source
        if self.paths.trains_lora:
            options = with_targets(TrainOptions(), source.architecture)
            config = AdapterConfig(Path("--target-modules"), lora_config(options, source.architecture))
            source = replace(source, adapter_config=config)
        if self.paths.writes_space:
            space = parse_search_space(self._generate_space(source), SPACE)
            source = replace(source, elasticity=bind(source.architecture, space, SPACE))
        networks = find_dimensions(source).named()
        costs = {name: counted_cost(name, source, settings.weight_format) for name in COUNTED}
        check_picks(self.picks, networks["minimal"], networks["maximal"], costs)


def _train(inputs: Inputs, command: Command, progress: Progress) -> None:
    """Train with the options of a command, or continue; held-out losses stay on the terminal."""
    output, shown = Path(command.paths["output"]), set[int]()

    def report(step: int, steps: int, log: Mapping[str, float]) -> None:
        line = f"step {step}/{steps}"
        if EVAL_LOSS in log and step not in shown:  # the Trainer logs the last one twice
            shown.add(step)
            line = f"{line}  held-out loss {log[EVAL_LOSS]:.3f}\n{line}"
        progress(line, step / steps)

    resume = OutputDirectory(output).partial.exists()
    train(inputs, output, command.options, resume, False, report, lambda line: progress(f"{line}\nLoading", None))


_UNGUARDED = """
import sys
from lonas_edge.processes import end_with_parent
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    end_with_parent(parent)
from optimum.exporters.openvino import model_configs
for guarded in sys.argv.pop(1).split():
    getattr(model_configs, guarded).MAX_TRANSFORMERS_VERSION = "5.99"
from optimum.commands.optimum_cli import main
main()
"""  # optimum-cli, which ends with this process, without its checks of transformers' version for models that it converts right


def run_optimum(command: Command, guards: tuple[str, ...]) -> None:
    """Run `optimum-cli` in a process that ends with this one; `guards` names configurations whose checks are skipped."""
    with OutputDirectory(command.paths[""]).open() as folder:
        _, *argv = to_argv(replace(command, paths={**command.paths, "": folder}))
        done = subprocess.run(
            [sys.executable, "-c", _UNGUARDED, str(os.getpid()), " ".join(guards), *argv],
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise LonasEdgeError(f"optimum-cli export of the unpruned model failed: {last}")
