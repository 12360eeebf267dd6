"""The steps of `compress`, each by the code of the command that does the same."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.export import export
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import replace_text
from lonas_edge.network.adapters import CONFIG, AdapterConfig, adapter_file
from lonas_edge.network.channel_order import FILE as ORDER
from lonas_edge.network.location import TRAINING
from lonas_edge.network.source import Source, open_source
from lonas_edge.output import OutputDirectory
from lonas_edge.pipeline.options import AUTO, CompressOptions
from lonas_edge.pipeline.tasks import PipelineTask
from lonas_edge.progress import Progress
from lonas_edge.search.cost import COSTS, COUNTED, CostSettings, cost_function, default_cost
from lonas_edge.search.dimensions import find_dimensions
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick, parse_picks
from lonas_edge.search.plan import check_picks, make_plan
from lonas_edge.search.run import search
from lonas_edge.search.warm_start import named
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import bind
from lonas_edge.space.generate import generate_space, removable_blocks
from lonas_edge.space.search_space import read_search_space
from lonas_edge.space.selection import select
from lonas_edge.training.checks import check_conversations
from lonas_edge.training.defaults import lora_config, with_targets
from lonas_edge.training.inputs import Inputs, open_inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import EVAL_LOSS, TrainOptions
from lonas_edge.training.train import train

NEW_RANK = TrainOptions().rank  # of the adapter that the recovery of a base trains
_GROUP_SIZES = (128, 64, 32)  # of optimum-cli's INT4: the first that divides all widths


@dataclass(frozen=True)
class Places:
    """Where the steps find and keep their files.

    Attributes:
        work: The working directory.
        base: The base model: a directory or hub id.
        adapter: The adapter to compress, if any.
        own_space: The search space that --nncf-config names.
        has_space: Whether the adapter has a search space; the steps write one for any other.
        trims: Whether the vocabulary is trimmed.
        adapts: Whether the steps train an adapter where there is none; otherwise the base itself is compressed.
    """

    work: Path
    base: str
    adapter: str | None
    own_space: Path | None = None
    has_space: bool = False
    trims: bool = False
    adapts: bool = True

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter, or will be."""
        return self.adapts or self.adapter is not None

    @property
    def lora(self) -> str:
        """The adapter that the steps train."""
        return str(self.work / "lora")

    @property
    def unpruned(self) -> str:
        """The finished model: an adapter or a base. It is the baseline, and the teacher."""
        return (self.adapter or self.lora) if self.adapted else self.base

    @property
    def start(self) -> str:
        """The model that is searched and recovered: that one, with the tokens that are kept."""
        return self.unpruned if self.adapted else self.student

    @property
    def start_base(self) -> str | None:
        """The base of `start`, where it is an adapter."""
        return self.student if self.adapted else None

    @property
    def unpruned_base(self) -> str | None:
        """The base of `unpruned`, where it is an adapter."""
        return self.base if self.adapted else None

    @property
    def train(self) -> Path:
        """The training examples."""
        return self.work / "data" / "train.jsonl"

    @property
    def held_out(self) -> Path:
        """The held-out examples."""
        return self.work / "data" / "held_out.jsonl"

    @property
    def trimmed(self) -> Path:
        """The base model with fewer tokens."""
        return self.work / "base"

    @property
    def student(self) -> str:
        """The base model of the compressed network."""
        return str(self.trimmed) if self.trims else self.base

    @property
    def space(self) -> Path | None:
        """The search space; None for the one in the adapter's directory."""
        return self.own_space if self.has_space else self.work / "space.json"

    def baseline(self, name: str) -> Path:
        """An unpruned network that `optimum-cli` wrote."""
        return self.work / "baselines" / name

    def model(self, pick: Pick) -> Path:
        """The exported network of a target."""
        return self.work / "models" / pick.file

    def recovered(self, pick: Pick) -> Path:
        """The recovered adapter of a target."""
        return self.work / "recovered" / pick.file

    def subnetwork(self, pick: Pick) -> Path:
        """The sub-network of a target."""
        return self.work / "search" / "subnetworks" / f"{pick.file}.json"

    def open_start(self) -> Source:
        """Open the model that is searched, with the search space."""
        return open_source(self.start, self.start_base, self.space)

    def open_unpruned(self) -> Source:
        """Open the finished model."""
        return open_source(self.unpruned, self.unpruned_base, elastic=False)


def fine_tune(places: Places, options: TrainOptions, progress: Progress) -> None:
    """Train a plain LoRA adapter, or continue its training."""
    inputs = open_inputs(places.base, places.train, None, elastic=False)
    _trained(with_eval_data(inputs, places.held_out), Path(places.lora), options, progress)


def write_space(places: Places, task: PipelineTask) -> None:
    """Write the search space of a model without one: blocks that can be removed."""
    content = _generated_space(places.open_unpruned(), task)
    replace_text(Path(str(places.space)), json.dumps(content, indent=2) + "\n")


def _generated_space(source: Source, task: PipelineTask) -> dict[str, Any]:
    """As `space --depth KIND --ratios 1` with `--adapter ADAPTER`, or for a base with `--ranks RANK`."""
    architecture = source.architecture
    blocks, ranks = removable_blocks(architecture, (task.block,), str(source.base.folder)), source.ranks()
    return generate_space(architecture, (1.0,), None if ranks else (NEW_RANK,), blocks=blocks, adapter=ranks or None)


def check_sizes(source: Source, task: PipelineTask, picks: Mapping[str, Pick], settings: CostSettings) -> None:
    """Refuse bounds on sizes that not even the smallest network meets, before the first step.

    A base model gets the adapter that `fine_tune` will train: sizes count it. Latencies are measured later, by the search.
    """
    if not source.adapter and task.adapts:
        options = with_targets(TrainOptions(), source.architecture)
        config = AdapterConfig(Path("--target-modules"), lora_config(options, source.architecture))
        source = replace(source, adapter_config=config)
    if not source.space.groups:
        with TemporaryDirectory(prefix="lonas-edge-") as folder:
            path = Path(folder) / "space.json"
            replace_text(path, json.dumps(_generated_space(source, task)))
            source = replace(source, elasticity=bind(source.architecture, read_search_space(path), str(path)))
    networks = named(find_dimensions(source))
    costs = {name: cost_function(name, source, settings) for name in COUNTED}
    check_picks(picks.values(), networks["minimal"], networks["maximal"], costs)


def find_networks(places: Places, options: SearchOptions, progress: Progress) -> None:
    """Search the networks of the targets, or continue a search with other targets."""
    search(make_plan(places.open_start(), options), progress)


def recover(places: Places, pick: Pick, options: TrainOptions, progress: Progress, earlier: Sequence[Pick] = ()) -> None:
    """Train the network of a target with the unpruned model as its teacher.

    An unpruned one in INT8 needs no training, and the network of an `earlier` target is trained already. Of a base that needs
    none, the directory is empty; of an adapter, it has that adapter without its search space.
    """
    output, network = places.recovered(pick), places.subnetwork(pick)
    source = places.open_start()
    chosen = select(source.elasticity, str(network))
    same = [each for each in earlier if select(source.elasticity, str(places.subnetwork(each))).canonical == chosen.canonical]
    unpruned = source.sizes(chosen).parameters == source.sizes(source.unpruned).parameters
    if same or (unpruned and not options.weight_format and places.student == places.base):
        with OutputDirectory(output).open() as folder:
            if same:
                shutil.copytree(places.recovered(same[0]), folder, dirs_exist_ok=True)
            elif source.adapter:
                copy_plain(source, folder)
        return
    inputs = open_recovery(places.start, places.train, str(network), places.start_base, places.space)
    inputs = with_teacher(with_eval_data(inputs, places.held_out), places.unpruned, places.unpruned_base)
    _trained(inputs, output, options, progress)


def copy_plain(source: Source, folder: Path) -> None:
    """Copy the files of an adapter that `open_source` reads, without the search space: it has the unpruned network only."""
    assert source.adapter
    adapter = source.adapter.folder
    for path in (adapter / CONFIG, adapter_file(adapter), adapter / ORDER):
        if path.exists():
            shutil.copy(path, folder)
    if source.training:
        replace(source.training, search_space=None, recovered=None).write(folder / TRAINING)
    if source.pooling and source.pooling.stated:
        source.pooling.write(folder, source.architecture.config.hidden_size)


def check_held_out(places: Places, source: Source, eval_data: Path, prompt: str | None) -> None:
    """Refuse held-out data, which were read from `eval_data`, that the trainings would refuse after the search."""
    train = source.open_data(places.train, prompt)
    check_conversations(source.open_data(places.held_out), eval_data, train.described)


def check_adapter(places: Places) -> None:
    """Refuse an adapter that `recover` would refuse; no weights are read."""
    inputs = open_recovery(places.unpruned, places.train, None, places.base, places.own_space)
    with_teacher(inputs, places.unpruned, places.base)


def _trained(inputs: Inputs, output: Path, options: TrainOptions, progress: Progress) -> None:
    resume = OutputDirectory(output).partial.exists()
    train(inputs, output, options, resume, False, training_steps(progress), lambda line: progress(f"{line}\nLoading", None))


def training_steps(progress: Progress) -> Callable[[int, int, Mapping[str, float]], None]:
    """Show each training step in the progress bar; held-out losses stay on the terminal."""

    shown = -1

    def show(step: int, steps: int, log: Mapping[str, float]) -> None:
        nonlocal shown
        line = f"step {step}/{steps}"
        if EVAL_LOSS in log and step != shown:  # the Trainer logs the last one twice
            shown, line = step, f"step {step}/{steps}  held-out loss {float(log[EVAL_LOSS]):.3f}\n{line}"
        progress(line, step / steps)

    return show


def export_network(places: Places, pick: Pick, weight_format: str, progress: Progress) -> None:
    """Export and verify the network of a target."""
    recovered = places.recovered(pick)
    source = open_source(str(recovered), places.student) if (recovered / CONFIG).exists() else open_source(places.start)
    export(source, source.select(None), places.model(pick), ExportOptions(weight_format=weight_format), progress)


def export_baselines(places: Places, task: PipelineTask, formats: Sequence[str], progress: Progress) -> None:
    """Store the unpruned model with `optimum-cli`, an adapter merged, once for each weight format."""
    source, merged = places.open_unpruned(), places.baseline("merged")
    if not merged.exists():
        merge(places, merged, progress)
    for weight_format in formats:
        if not places.baseline(weight_format).exists():
            progress(f"optimum-cli, {weight_format}", None)
            _optimum(merged, places.baseline(weight_format), weight_format, task, source.architecture)
    shutil.rmtree(merged)


def merge(places: Places, output: Path, progress: Progress) -> None:
    """Write the unpruned model as a checkpoint, an adapter merged."""
    source = places.open_unpruned()
    export(source, source.select("maximal"), output, ExportOptions(stage="checkpoint", verify=False), progress)


def optimum_export(merged: Path, output: Path, weight_format: str, task: PipelineTask, architecture: Architecture) -> list[str]:
    """Arguments of `optimum-cli` that store a checkpoint; INT4 in the largest groups that divide all widths of such layers."""
    command = ["export", "openvino", "--model", str(merged), *task.optimum, "--weight-format", weight_format]
    if weight_format == "int4":
        linears = architecture.linears.values()
        widths, others = ({each.in_features for each in linears if each.four_bits == four} for four in (True, False))
        group = next((size for size in _GROUP_SIZES if not any(width % size for width in widths)), None)
        command += ["--group-size", str(group)] if group else []
        command += ["--group-size-fallback", "ignore"] if group and any(width % group for width in others) else []
    return [*command, str(output)]


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


def _optimum(merged: Path, output: Path, weight_format: str, task: PipelineTask, architecture: Architecture) -> None:
    with OutputDirectory(output).open() as folder:
        command = optimum_export(merged, folder, weight_format, task, architecture)
        done = subprocess.run(
            [sys.executable, "-c", _UNGUARDED, str(os.getpid()), " ".join(architecture.family.raised_guards), *command],
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
            raise LonasEdgeError(f"optimum-cli export of the unpruned model failed: {last}")


def picks_of(options: CompressOptions, task: PipelineTask, earlier: Iterable[str] = ()) -> dict[str, Pick]:
    """The picks by target; one of the `earlier` targets in another spelling keeps that of the earlier run."""
    picks = _parse(options.target, task)
    by_file: dict[str, list[str]] = {}
    for target, pick in zip(options.target, picks, strict=True):
        by_file.setdefault(pick.file, []).append(target)
    raise_all(
        "--target:", [f"{' and '.join(same)} are the same bound" for same in by_file.values() if len(same) > 1], "Name it once."
    )
    known: dict[str, tuple[str, Pick]] = {}
    for target in earlier:
        with suppress(LonasEdgeError):  # a target of another task
            [pick] = _parse([target], task)
            known.setdefault(pick.file, (target, pick))
    return dict(known.get(pick.file, (target, pick)) for target, pick in zip(options.target, picks, strict=True))


def _parse(targets: Sequence[str], task: PipelineTask) -> list[Pick]:
    expressions = [task.auto if target == AUTO else target for target in targets]
    return parse_picks(expressions, ["kl", *task.costs], "--target")


def cost_of(picks: Mapping[str, Pick], task: PipelineTask) -> str:
    """The cost that the search minimizes: the latency that a target bounds, else the size, else the default.

    Raises:
        LonasEdgeError: If targets bound several latencies.
    """
    bounded = [pick.measure for pick in picks.values() if pick.measure in COSTS]
    timed = sorted({measure for measure in bounded if COSTS[measure].timed})
    if len(timed) > 1:
        raise LonasEdgeError(f"--target bounds {' and '.join(timed)}; one run searches for one of them. Run compress twice.")
    return next(iter([*timed, *bounded]), default_cost(task.kind))


def command_line(*parts: Any) -> str:
    """A command of lonas-edge, quoted for a shell; without options whose value is None."""
    words = [str(part) for part in parts]
    kept = [word for index, word in enumerate(words) if word != "None" and words[index + 1 : index + 2] != ["None"]]
    return shlex.join(["lonas-edge", *kept])
