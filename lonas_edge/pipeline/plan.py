"""Plan a run: its steps with the options of their commands, and what they will take."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import json_sha256, sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network.location import fingerprint
from lonas_edge.network.source import Source
from lonas_edge.pipeline.defaults import Defaults, cost_of, cost_settings
from lonas_edge.pipeline.measure import ROUNDS
from lonas_edge.pipeline.options import EPOCHS, CompressOptions
from lonas_edge.pipeline.probe import Probe
from lonas_edge.pipeline.stages import NEW_RANK, Paths, Stages, optimum_options
from lonas_edge.pipeline.steps import Command, Step
from lonas_edge.progress import Progress
from lonas_edge.search.cost import COSTS
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick
from lonas_edge.training.options import TrainOptions

LORA, TRIM, SPACE, SEARCH, BASELINES, MEASURE = "fine-tune", "trim", "space", "search", "baselines", "measure"
RECOVER, EXPORT = "recover ", "export "  # and the target
COMPARED = {"unpruned INT8 (optimum-cli)": "int8", "unpruned INT4 (optimum-cli)": "int4"}  # formats by name in reports
_EVALS_PER_BLOCK, _LEAST_EVALS = 4, 60  # a greedy removal evaluates three to six networks for each block it removes
_EVAL_STEPS, _EVALS = 8, 3  # steps at least between evaluations of the held-out loss, and how many of these at most
_SAVE_SECONDS = 120  # between checkpoints: what a kill may cost
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A run."""

    stages: Stages
    options: CompressOptions  # resolved
    picks: Mapping[str, Pick]  # by target
    hashes: Mapping[str, str]  # of the source's files, see `source_hashes`
    inputs: Mapping[str, str]  # hashes of all inputs by name: those, `data` and `eval_data`
    counts: Mapping[str, int]  # examples by part: train, held_out
    fitting: int  # held-out examples that the search can use
    probe: Probe
    vocabulary: int | None = None  # tokens to keep, where the vocabulary is trimmed; None for those of the data alone

    @property
    def paths(self) -> Paths:
        """Files of the steps."""
        return self.stages.paths

    @property
    def defaults(self) -> Defaults:
        """Defaults of the model's task."""
        return self.stages.defaults

    @property
    def lora_options(self) -> TrainOptions:
        """Options of the fine-tuning."""
        steps = (self.options.epochs or EPOCHS) * math.ceil(self.counts["train"] / self.defaults.batch)
        return self._train_options(max(1, round(steps)), self.probe.lora_step, None)

    @property
    def recovery_options(self) -> TrainOptions:
        """Options of the recovery, with quantization-aware training for formats of less than 8 bits."""
        assert self.options.recovery_steps
        return self._train_options(self.options.recovery_steps, self.probe.recovery_step, trained_for(self.options))

    def _train_options(self, steps: int, seconds: float, weight_format: str | None) -> TrainOptions:
        log = min(10, max(1, steps // 10))  # steps of the log: a checkpoint splits none
        return TrainOptions(
            steps=steps,
            prompt=self.options.prompt,
            seed=self.options.seed,
            precision=self.probe.precision,
            save_steps=min(200, log * max(1, round(_SAVE_SECONDS / max(seconds, 0.01) / log))),
            eval_steps=min(steps, max(_EVAL_STEPS, math.ceil(steps / _EVALS))),
            batch_size=self.defaults.batch,
            micro_batch_size=self.defaults.micro_batch,
            weight_format=weight_format,
        )

    @property
    def search_options(self) -> SearchOptions:
        """Options of the search but for the picks."""
        blocks = self.stages.source.architecture.blocks.values()
        removable = sum(block.kind == self.defaults.block for block in blocks)
        least, most = self.defaults.prompts
        prompts = max(least, min(most, round(self.defaults.search_tokens / self.probe.tokens)))
        return SearchOptions(
            data=self.paths.held_out,
            output=self.paths.work / "search",
            cost=cost_of(self.picks, self.defaults),
            evals=max(_LEAST_EVALS, _EVALS_PER_BLOCK * removable),
            num_prompts=min(self.fitting, prompts),
            prompt=self.options.prompt,
            seed=self.options.seed,
            cost_settings=cost_settings(self.options),
        )

    def estimate(self) -> dict[str, float]:
        """Estimate the seconds of trainings and search; exports and measurements take minutes."""
        seconds = {}
        lora, recovery, search = self.lora_options, self.recovery_options, self.search_options
        trainings = {RECOVER + target: (recovery, self.probe.recovery_step) for target in self.picks}
        for name, (options, step) in {LORA: (lora, self.probe.lora_step), **trainings}.items():
            assert options.steps and options.eval_steps
            evaluations = 1 + math.ceil(options.steps / options.eval_steps)  # also before the first step
            held_out = evaluations * self.counts["held_out"] * self.probe.evaluation
            seconds[name] = round(options.steps * step + held_out, 1)
        seconds[SEARCH] = round(search.evals * search.num_prompts * self.probe.evaluation, 1)
        return seconds

    # --- the steps

    def steps(self, measure: Callable[[Step, Progress], None], processor: str) -> list[Step]:
        """List all steps in order; the last calls `measure`. `processor` is the one whose latency is measured."""
        paths = self.paths
        steps = [self._fine_tune()] if paths.trains_lora else []
        steps += [self._trim()] if paths.trims else []
        steps += [self._space()] if paths.writes_space else []
        before_search = tuple(step.name for step in steps)
        steps.append(self._search(before_search))
        for target, pick in self.picks.items():
            steps += [self._recover(target, pick), self._export(target, pick)]
        steps.append(self._baselines())
        exports = tuple(EXPORT + target for target in self.picks)
        steps.append(self._measure(exports, measure, processor))
        return steps

    @cached_property
    def _hashes(self) -> dict[str, str]:
        """Hashes of what the first steps read, by option or file."""
        split = {path.name: sha256(path) for path in (self.paths.train, self.paths.held_out)}
        named = {"data": "--data", "eval_data": "--eval-data"}
        return {**{named.get(name, name): value for name, value in self.inputs.items()}, "split": json_sha256(split)}

    @property
    def _adapter(self) -> tuple[str, ...]:
        return (LORA,) if self.paths.trains_lora else ()

    def _fine_tune(self) -> Step:
        paths = self.paths
        files = {"model": paths.base, "data": paths.train, "eval-data": paths.held_out, "output": paths.unpruned}
        command = Command("lonas-edge train --no-elastic", self.lora_options, files)
        return Step(LORA, [command], self.stages.fine_tune, ("lora",), inputs=self._hashes)

    def _trim(self) -> Step:
        files = {"": self.paths.base, "data": self.paths.train, "output": self.paths.student}
        values = {"size": self.vocabulary, "prompt": self.options.prompt}
        return Step(TRIM, [Command("lonas-edge trim", None, files, values)], self.stages.trim, ("base",), inputs=self._hashes)

    def _space(self) -> Step:
        paths = self.paths
        files: dict[str, Any] = {"model": paths.base, "output": paths.space}
        if paths.unpruned_base:
            files["adapter"] = paths.unpruned
        else:
            files["ranks"] = NEW_RANK
        if not (paths.unpruned_base and self.defaults.adapts):
            files |= {"depth": self.defaults.block, "ratios": 1}
        command = Command("lonas-edge space", None, files)
        return Step(SPACE, [command], self.stages.write_space, ("space.json",), self._adapter, self._hashes)

    def _search(self, needs: tuple[str, ...]) -> Step:
        paths, options = self.paths, self.search_options
        values: dict[str, Any] = {"weight-format": self.options.weight_format}
        if COSTS[str(options.cost)].timed:
            values |= {"prompt-len": self.options.prompt_len, "new-tokens": self.options.new_tokens}
        files = {
            "": paths.start,
            "model": paths.start_base,
            "nncf-config": paths.space,
            "pick": [pick.expression for pick in self.picks.values()],
        }
        outputs = tuple(f"search/subnetworks/{pick.file}.json" for pick in self.picks.values())
        command = Command("lonas-edge search", options, files, values)
        return Step(SEARCH, [command], self.stages.search, outputs, needs, self._hashes, folder="search")

    def _recover(self, target: str, pick: Pick) -> Step:
        paths = self.paths
        files = {
            "from": paths.start,
            "model": paths.start_base,
            "nncf-config": paths.space,
            "subnet": paths.subnetwork(pick),
            "teacher": paths.unpruned,
            "data": paths.train,
            "eval-data": paths.held_out,
            "output": paths.recovered(pick),
        }
        command = Command("lonas-edge train", self.recovery_options, files)
        return Step(RECOVER + target, [command], self.stages.recover, (f"recovered/{pick.file}",), (SEARCH,))

    def _export(self, target: str, pick: Pick) -> Step:
        paths, options = self.paths, ExportOptions(weight_format=str(self.options.weight_format))
        files = {"": paths.recovered(pick), "model": paths.student, "output": paths.model(pick)}
        command = Command("lonas-edge export", options, files)
        return Step(EXPORT + target, [command], self.stages.export, (f"models/{pick.file}",), (RECOVER + target,))

    def _baselines(self) -> Step:
        paths, merged = self.paths, self.paths.baseline("merged")
        files = {"": paths.unpruned, "model": paths.unpruned_base, "subnet": "maximal", "output": merged}
        commands = [Command("lonas-edge export", ExportOptions(stage="checkpoint", verify=False), files)]
        for name in self.defaults.baselines:
            values = optimum_options(self.stages.source.architecture, self.defaults.library, name)
            files = {"model": merged, "": paths.baseline(name)}
            commands.append(Command("optimum-cli export openvino", None, files, values))
        outputs = tuple(f"baselines/{name}" for name in self.defaults.baselines)
        return Step(BASELINES, commands, self.stages.export_baselines, outputs, self._adapter, self._hashes, folder="baselines")

    def _measure(self, exports: tuple[str, ...], function: Callable[[Step, Progress], None], processor: str) -> Step:
        first, *others = [self.paths.model(pick) for pick in self.picks.values()]
        arms = ("subnet", *(self.paths.baseline(name) for name in COMPARED.values()), *others)
        values = {"prompt-len": self.options.prompt_len, "new-tokens": self.options.new_tokens, "rounds": ROUNDS}
        command = Command("lonas-edge bench", None, {"": first, "arms": ",".join(map(str, arms))}, values)
        inputs = {"processor": processor}
        return Step(MEASURE, [command], function, ("compress.json",), (*exports, BASELINES), inputs, quick=True)


def trained_for(options: CompressOptions) -> str | None:
    """The weight format that the recovery trains for; None where rounding costs too little for it (8 bits)."""
    return options.weight_format if FORMATS[str(options.weight_format)].bits < 8 else None


def source_hashes(source: Source) -> dict[str, str]:
    """Hashes that identify what is compressed."""
    folder = source.base.folder
    tokenizer = {name: sha256(folder / name) for name in _TOKENIZER if (folder / name).is_file()}
    hashes = {"base": json_sha256(fingerprint(folder) | tokenizer)}
    if source.adapter:
        hashes["adapter"] = json_sha256(fingerprint(source.adapter.folder))
    if source.pooling:
        hashes["pooling"] = json_sha256(asdict(source.pooling))
    return hashes


def disk_bytes(source: Source, defaults: Defaults, options: CompressOptions, networks: int) -> int:
    """Estimate the bytes of a run: networks, and adapters with their checkpoints."""
    sizes = source.sizes(source.unpruned).bytes
    network, linears = sizes[str(options.weight_format)], source.architecture.linears.values()
    adapter = 10 * 4 * NEW_RANK * sum(linear.in_features + linear.out_features for linear in linears)
    baselines = sizes["fp32"] + sum(sizes[name] for name in defaults.baselines)  # also the merged model
    return round(adapter + 2 * network + networks * (adapter + network) + baselines)
