"""Plan a run: its files, the options of its trainings and its search, and the time and disk that it will take."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from lonas_edge.files import json_sha256, sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network.location import fingerprint
from lonas_edge.network.source import Source, open_source
from lonas_edge.pipeline.defaults import Defaults, cost_settings
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.probe import Probe
from lonas_edge.pipeline.targets import OWN, MetricBound, cost_of
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick
from lonas_edge.training.options import AUTO, TrainOptions
from lonas_edge.training.schedule import Plateau

NEW_RANK = TrainOptions().rank  # of the adapter that the recovery of a base trains
SPACE = "space.json"
_EVALS_PER_BLOCK, _LEAST_EVALS = 4, 60  # a greedy removal evaluates three to six networks for each block it removes
_EVAL_STEPS, _EVALS = 8, 3  # steps at least between evaluations of the held-out loss, and how many of these at most
_SAVE_SECONDS = 120  # between checkpoints: what a kill may cost
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip


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
        self.space = None if source.space.groups else work / SPACE  # None for the one in the adapter's directory

    def baseline(self, name: str) -> Path:
        """The unpruned network in a format, or `merged` as a checkpoint."""
        return self.work / "baselines" / name

    def subnetwork(self, pick: Pick) -> Path:
        """The sub-network of a target."""
        if isinstance(pick, MetricBound):
            return self.choice(pick) / "subnetwork.json"
        return self.work / "search" / "subnetworks" / f"{pick.file}.json"

    def choice(self, bound: MetricBound) -> Path:
        """The directory of the networks that are tried for a target in a metric."""
        return self.work / "choice" / bound.file

    def recovered(self, pick: Pick) -> Path:
        """The recovered adapter of a target."""
        return self.work / "recovered" / pick.file

    def model(self, pick: Pick) -> Path:
        """The exported network of a target."""
        return self.work / "models" / pick.file


@dataclass(frozen=True)
class Plan:
    """A run."""

    source: Source  # what is compressed, as it was given
    defaults: Defaults
    options: CompressOptions  # resolved
    picks: Mapping[str, Pick]  # by target
    paths: Paths
    hashes: Mapping[str, str]  # of the source's files, see `source_hashes`
    counts: Mapping[str, int]  # examples by part: train, held_out
    fitting: int  # held-out examples that the search can use
    probe: Probe
    vocabulary: int | None = None  # tokens to keep, where the vocabulary is trimmed; None for those of the data alone

    @cached_property
    def unpruned(self) -> Source:
        """The finished model."""
        return open_source(self.paths.unpruned, self.paths.unpruned_base, elastic=False)

    @cached_property
    def start(self) -> Source:
        """The model that is searched, with the search space."""
        return open_source(self.paths.start, self.paths.start_base, self.paths.space)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of what the first steps read: the source's files, those that options name, and the split."""
        named = {"--data": self.options.data, "--eval-data": self.options.eval_data}
        files = {name: sha256(path) for name, path in named.items() if path and path.is_file()}
        split = {path.name: sha256(path) for path in (self.paths.train, self.paths.held_out)}
        return {**self.hashes, **files, "split": json_sha256(split)}

    @property
    def lora_options(self) -> TrainOptions:
        """Options of the fine-tuning."""
        epochs, options = self.options.epochs or AUTO, self._train_options(self.lora_steps, self.probe.lora_step, None)
        return replace(options, steps=None, epochs=epochs, eval_steps=None if epochs == AUTO else options.eval_steps)

    @property
    def lora_steps(self) -> int:
        """Steps of the fine-tuning; with `--epochs auto` at most."""
        epochs = self.options.epochs or AUTO
        return Plateau(self.steps_per_epoch).end if epochs == AUTO else max(1, round(epochs * self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the training examples."""
        return math.ceil(self.counts["train"] / self.defaults.batch)

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
        """Options of the search."""
        blocks = self.source.architecture.blocks.values()
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

    def training_seconds(self, options: TrainOptions, step: float) -> float:
        """Estimate the seconds of a training with its evaluations; `step` has those of one step."""
        steps = options.steps or self.lora_steps
        evaluations = 1 + math.ceil(
            steps / (options.eval_steps or Plateau(self.steps_per_epoch).every)
        )  # also before the first step
        return round(steps * step + evaluations * self.counts["held_out"] * self.probe.evaluation, 1)

    @property
    def search_seconds(self) -> float:
        """Estimate the seconds of the search."""
        return round(self.search_options.evals * self.search_options.num_prompts * self.probe.evaluation, 1)

    @property
    def default_seconds(self) -> float:
        """Estimate the seconds of a run with the default epochs and steps, and one target."""
        steps = math.ceil(self.defaults.recovery_tokens / self.defaults.batch / self.probe.tokens)
        tuning = Plateau(self.steps_per_epoch).end * self.probe.lora_step if self.paths.trains_lora else 0.0
        return tuning + self.search_seconds + steps * self.probe.recovery_step

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of answers: that of --metric or, without one, those that targets bound; then the other bounded ones."""
        given, bounded = self.options.metric, [each.measure for each in self.bounds.values() if each.measure != OWN]
        return tuple(dict.fromkeys([given, *bounded] if given else bounded or [AUTO]))

    @property
    def bounds(self) -> dict[str, MetricBound]:
        """The targets in a metric."""
        return {target: pick for target, pick in self.picks.items() if isinstance(pick, MetricBound)}

    def metric_of(self, bound: MetricBound) -> str:
        """The metric of a bound, as --metric has it."""
        return str(self.options.metric) if bound.measure == OWN else bound.measure


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
