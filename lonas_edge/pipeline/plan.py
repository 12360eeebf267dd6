"""Plan the steps of a run: their settings, what they depend on, and the commands that do the same."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256 as digest
from typing import Any

from lonas_edge.files import json_sha256, sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network.adapters import CONFIG, adapter_file
from lonas_edge.network.location import fingerprint
from lonas_edge.network.source import Source
from lonas_edge.pipeline import stages
from lonas_edge.pipeline.estimate import Probe
from lonas_edge.pipeline.measure import ROUNDS
from lonas_edge.pipeline.options import EPOCHS, CompressOptions
from lonas_edge.pipeline.stages import Places, command_line
from lonas_edge.pipeline.steps import PlannedStep
from lonas_edge.pipeline.tasks import PipelineTask
from lonas_edge.progress import Progress
from lonas_edge.search.cost import COSTS, CostSettings
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick
from lonas_edge.training.options import TrainOptions
from lonas_edge.vocabulary.model_vocabulary import trim

LORA, TRIM, SPACE, SEARCH, BASELINES, MEASURE = (
    "fine-tune", "trim", "space", "search", "baselines", "measure",
)  # fmt: skip
RECOVER, EXPORT = "recover ", "export "  # and the target
BASELINES_BY_NAME = {"unpruned INT8 (optimum-cli)": "int8", "unpruned INT4 (optimum-cli)": "int4"}
_EVALS_PER_BLOCK, _LEAST_EVALS = 4, 60  # a greedy removal evaluates three to six networks for each block it removes
_EVAL_STEPS, _EVALS = 8, 3  # steps at least between evaluations of the held-out loss, and how many of these at most
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip
_SAVE_SECONDS = 120  # between checkpoints: what a kill may cost


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        source: The opened source.
        task: Its task.
        hashes: Hashes of its files, see `source_hashes`.
        inputs: Hashes of all inputs: those, and `data`, `eval_data`, `nncf_config`.
        options: The options.
        places: Files of the steps.
        counts: Examples by part.
        fitting: Held-out examples that the search can use.
        probe: Timed training steps.
        picks: The picks by target.
        vocabulary: Number of tokens to keep, where the vocabulary is trimmed; None for those of the data alone.
    """

    source: Source
    task: PipelineTask
    hashes: Mapping[str, str]
    inputs: Mapping[str, str]
    options: CompressOptions
    places: Places
    counts: Mapping[str, int]
    fitting: int
    probe: Probe
    picks: Mapping[str, Pick]
    vocabulary: int | None = None

    @property
    def trains_lora(self) -> bool:
        """Whether a LoRA adapter is trained first."""
        return self.places.adapter is None and self.places.adapts

    @property
    def trims(self) -> bool:
        """Whether the vocabulary is trimmed."""
        return self.places.trims

    @property
    def epochs(self) -> float:
        """Passes over the data of the fine-tuning."""
        return self.options.epochs or EPOCHS

    @property
    def lora_steps(self) -> int:
        """Steps of the fine-tuning."""
        return max(1, round(self.epochs * -(-self.counts["train"] // self.task.batch)))

    @property
    def recovery_steps(self) -> int:
        """Steps of the recovery, by default those of the task's tokens."""
        return self.options.recovery_steps or math.ceil(self.task.recovery_tokens / self.task.batch / self.probe.tokens)

    @property
    def lora_options(self) -> TrainOptions:
        """Options of the fine-tuning."""
        return self._train_options(self.lora_steps, self.probe.lora_step)

    @property
    def recovery_options(self) -> TrainOptions:
        """Options of the recovery."""
        qat = trained_for(self.cost_settings.weight_format)
        return self._train_options(self.recovery_steps, self.probe.recovery_step, qat)

    def _train_options(self, steps: int, seconds: float, weight_format: str | None = None) -> TrainOptions:
        options = self.options
        interval = min(10, max(1, steps // 10))  # of the log: a checkpoint splits none
        save = interval * max(1, round(_SAVE_SECONDS / max(seconds, 0.01) / interval))
        return TrainOptions(
            steps=steps,
            prompt=options.prompt,
            seed=options.seed,
            precision=self.probe.precision,
            save_steps=min(save, 200),
            eval_steps=min(steps, max(_EVAL_STEPS, math.ceil(steps / _EVALS))),
            batch_size=self.task.batch,
            micro_batch_size=self.task.micro_batch,
            weight_format=weight_format,
        )

    @cached_property
    def cost_settings(self) -> CostSettings:
        """The weight format, and how the search measures latency."""
        return self.task.settings(self.options)

    @property
    def search_options(self) -> SearchOptions:
        """Options of the search."""
        return SearchOptions(
            data=self.places.held_out,
            output=self.places.work / "search",
            cost=stages.cost_of(self.picks, self.task),
            evals=self.evals,
            picks=tuple(pick.expression for pick in self.picks.values()),
            num_prompts=self.prompts,
            prompt=self.options.prompt,
            measure=False,
            seed=self.options.seed,
            cost_settings=self.cost_settings,
        )

    @property
    def prompts(self) -> int:
        """Prompts that the search evaluates networks on."""
        least, most = self.task.prompts
        return min(self.fitting, max(least, min(most, round(self.task.search_tokens / self.probe.tokens))))

    @property
    def evals(self) -> int:
        """Networks that the search evaluates."""
        blocks = sum(block.kind == self.task.block for block in self.source.architecture.blocks.values())
        return max(_LEAST_EVALS, _EVALS_PER_BLOCK * blocks)

    def steps(self, measure: Callable[[Progress], None], machine: str) -> list[PlannedStep]:
        """List all steps in order; the last calls `measure`. `machine` is the processor whose latency is measured."""
        steps = [self._fine_tune()] if self.trains_lora else []
        steps += [self._trim()] if self.trims else []
        steps += [] if self.places.has_space else [self._space()]
        steps.append(self._search(machine))
        for index, (target, pick) in enumerate(self.picks.items()):
            earlier = list(self.picks.values())[:index]
            steps += [self._recover(target, pick, earlier), self._export(target, pick)]
        exports = tuple(step.name for step in steps if step.name.startswith(EXPORT))
        settings = self.cost_settings
        models = [self.places.model(pick) for pick in self.picks.values()]
        baselines = [self.places.baseline(name) for name in BASELINES_BY_NAME.values()]
        arms = ",".join(map(str, ["subnet", *baselines, *models[1:]]))
        shown = command_line("bench", models[0], "--arms", arms, "--prompt-len", settings.prompt_len,
                             "--new-tokens", settings.new_tokens or None, "--rounds", ROUNDS)  # fmt: skip
        last = PlannedStep(MEASURE, shown, self._lengths, (*exports, BASELINES), ("compress.json",), measure, machine,
                           short=True)  # fmt: skip
        return [*steps, self._baselines(), last]

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        """Hashes of what the first steps read, by option or file."""
        options = {"--data": self.inputs["data"], "--eval-data": self.inputs.get("eval_data")}
        split = [sha256(path) for path in (self.places.train, self.places.held_out)]
        return {**self.hashes, **options, "split": digest("".join(split).encode()).hexdigest()}

    @property
    def _lengths(self) -> dict[str, int]:
        return {"--prompt-len": self.cost_settings.prompt_len, "--new-tokens": self.cost_settings.new_tokens}

    @property
    def _adapter(self) -> tuple[str, ...]:
        return (LORA,) if self.trains_lora else ()

    @property
    def _student(self) -> tuple[str, ...]:
        return (TRIM,) if self.trims else ()

    def _fine_tune(self) -> PlannedStep:
        options, places = self.lora_options, self.places
        command = command_line(
            "train", "--model", places.base, "--data", places.train, "--eval-data", places.held_out, "--no-elastic",
            *_training(options), "--output", places.lora,
        )  # fmt: skip
        settings = {**self._inputs, **_settings(options, "--epochs (steps)")}
        return PlannedStep(LORA, command, settings, (), ("lora",), lambda progress: stages.fine_tune(places, options, progress))

    def _trim(self) -> PlannedStep:
        options, places = self.options, self.places
        command = command_line(
            "trim", places.base, "--data", places.train, "--size", self.vocabulary, "--prompt", options.prompt,
            "--output", places.trimmed,
        )  # fmt: skip
        settings = {**self._inputs, "--vocabulary": options.vocabulary, "--prompt": options.prompt}

        def run(progress: Progress) -> None:
            trim(places.base, places.train, self.vocabulary, options.prompt, places.trimmed, progress)

        return PlannedStep(TRIM, command, settings, (), ("base",), run)

    def _space(self) -> PlannedStep:
        places = self.places
        blocks = () if places.adapted and self.task.adapts else ("--depth", self.task.block, "--ratios", 1)
        ranks = ("--adapter", places.unpruned) if places.adapted else ("--ranks", stages.NEW_RANK)
        command = command_line("space", *ranks, *blocks, "--model", places.base, "--output", places.space)
        step = (SPACE, command, self._inputs, self._adapter, ("space.json",))
        return PlannedStep(*step, lambda _: stages.write_space(places, self.task))

    def _search(self, machine: str) -> PlannedStep:
        options, places, settings = self.search_options, self.places, self.cost_settings
        picked = [part for pick in self.picks.values() for part in ("--pick", pick.expression)]
        timed = COSTS[str(options.cost)].timed
        lengths = ["--prompt-len", settings.prompt_len, "--new-tokens", settings.new_tokens or None] if timed else []
        command = command_line(
            "search", places.start, "--model", places.start_base, "--nncf-config", places.space, "--data", options.data,
            "--cost", options.cost, "--evals", options.evals, "--num-prompts", options.num_prompts,
            "--prompt", options.prompt, "--weight-format", settings.weight_format, *lengths, "--seed", options.seed, *picked,
            "--no-measure", "--output", options.output,
        )  # fmt: skip
        known = {"--target (cost)": options.cost, "evaluations": options.evals, "prompts": options.num_prompts}
        known |= {"--seed": options.seed, "--weight-format": settings.weight_format, "--prompt": options.prompt}
        known |= self._lengths if timed else {}
        known |= {"--nncf-config": self.source.space.hash if places.has_space else None}
        needs = (*self._adapter, *self._student, *(() if places.has_space else (SPACE,)))
        outputs = tuple(f"search/subnetworks/{pick.file}.json" for pick in self.picks.values())
        return PlannedStep(
            SEARCH,
            command,
            {**self._inputs, **known},
            needs,
            outputs,
            lambda progress: stages.find_networks(places, options, progress),
            machine if timed else "",
            folder="search",
        )

    def _recover(self, target: str, pick: Pick, earlier: Sequence[Pick]) -> PlannedStep:
        options, places = self.recovery_options, self.places
        command = command_line(
            "train", "--from", places.start, "--model", places.start_base, "--nncf-config", places.space,
            "--subnet", places.subnetwork(pick), "--teacher", places.unpruned,
            "--data", places.train, "--eval-data", places.held_out, *_training(options), "--output", places.recovered(pick),
        )  # fmt: skip
        return PlannedStep(
            f"{RECOVER}{target}",
            command,
            _settings(options, "--recovery-steps"),
            (SEARCH,),
            (f"recovered/{pick.file}",),
            lambda progress: stages.recover(places, pick, options, progress, earlier),
        )

    def _export(self, target: str, pick: Pick) -> PlannedStep:
        places, weight_format = self.places, self.cost_settings.weight_format
        command = command_line(
            "export", places.recovered(pick), "--model", places.student, "--weight-format", weight_format,
            "--output", places.model(pick),
        )  # fmt: skip
        return PlannedStep(
            f"{EXPORT}{target}",
            command,
            {"--weight-format": weight_format},
            (f"{RECOVER}{target}",),
            (f"models/{pick.file}",),
            lambda progress: stages.export_network(places, pick, weight_format, progress),
        )

    def _baselines(self) -> PlannedStep:
        places, merged = self.places, self.places.baseline("merged")
        merge = ("--subnet", "maximal", "--stage", "checkpoint", "--output", merged)
        commands = [command_line("export", places.unpruned, "--model", places.unpruned_base, *merge)]
        formats, shapes = (*BASELINES_BY_NAME.values(), *self.task.references), self.source.architecture
        stored = [stages.optimum_export(merged, places.baseline(name), name, self.task, shapes) for name in formats]
        commands += [shlex.join(["optimum-cli", *words]) for words in stored]
        outputs = tuple(f"baselines/{name}" for name in formats)
        return PlannedStep(
            BASELINES,
            "\n".join(commands),
            self._inputs,
            self._adapter,
            outputs,
            lambda progress: stages.export_baselines(places, self.task, formats, progress),
            folder="baselines",
        )


def trained_for(weight_format: str) -> str | None:
    """The weight format that the recovery trains for; None where rounding costs too little for it (8 bits)."""
    return weight_format if FORMATS[weight_format].bits < 8 else None


def source_hashes(source: Source) -> dict[str, str]:
    """Hashes that identify what is compressed."""
    folder = source.base.folder
    tokenizer = {name: sha256(folder / name) for name in _TOKENIZER if (folder / name).is_file()}
    base = json_sha256(fingerprint(folder) | tokenizer)
    adapter = source.adapter and {
        "adapter": sha256(adapter_file(source.adapter.folder)),
        "adapter_config": sha256(source.adapter.folder / CONFIG),
    }
    pooling = source.pooling and {"pooling": json_sha256(asdict(source.pooling))}
    return {"base": base, **(adapter or {}), **(pooling or {})}


def _settings(options: TrainOptions, steps: str) -> dict[str, Any]:
    """What a training's result depends on, beyond its inputs, by the options that set it; `steps` sets the number of steps."""
    return {
        steps: options.steps,
        "--prompt": options.prompt,
        "--seed": options.seed,
        "--precision": options.precision,
        "quantization-aware training": options.weight_format,
        "ratio": options.ratio,
        "micro-batch": options.micro_batch_size,
    }


def _training(options: TrainOptions) -> list[str]:
    """Options of `train`."""
    given = {
        "--steps": options.steps,
        "--batch-size": options.batch_size,
        "--prompt": options.prompt,
        "--seed": options.seed,
        "--precision": options.precision,
    }
    given |= {"--weight-format": options.weight_format, "--micro-batch-size": options.micro_batch_size}
    return [part for name, value in given.items() if value is not None for part in (name, str(value))]
