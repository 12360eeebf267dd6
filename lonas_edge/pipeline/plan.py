"""Plan a run: its files, the options of its trainings and its search, and the time and disk that it will take."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from lonas_edge.commands import Command
from lonas_edge.data.task import MAX_LENGTH, Task
from lonas_edge.files import json_sha256, sha256
from lonas_edge.formats import FORMATS
from lonas_edge.network.location import fingerprint
from lonas_edge.network.source import Source, open_source
from lonas_edge.pipeline.options import KEEP, OWN, CompressOptions
from lonas_edge.pipeline.targets import MetricBound, candidate_picks
from lonas_edge.pipeline.tasks import Profile, cost_settings, removed_kinds, width_ratios
from lonas_edge.pipeline.training import Probe
from lonas_edge.search.options import SearchOptions
from lonas_edge.search.picks import Pick
from lonas_edge.space.selection import select
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.training.inputs import Inputs, open_recovery, with_eval_data, with_teacher
from lonas_edge.training.options import AUTO, TrainOptions
from lonas_edge.training.schedule import Plateau

NEW_RANK = TrainOptions().rank  # of the adapter that the recovery of a base trains
SPACE_FILE, ADAPTERS = "space.json", "adapters"
_EVALS_PER_STEP, _LEAST_EVALS = 4, 60  # a greedy removal evaluates three to six networks for each of its steps
_BLOCKS_SHARE, _WIDTHS_SHARE = 0.25, 0.7  # of the time of all evaluations: what a greedy search takes
_EVAL_STEPS, _EVALS = 8, 3  # steps at least between evaluations of the held-out loss, and how many of these at most
_SAVE_SECONDS = 120  # between checkpoints: what a kill may cost
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is to be compressed, and how: checked, before data are read."""

    source: Source  # as it was given
    profile: Profile
    options: CompressOptions  # resolved
    picks: Mapping[str, Pick]  # by target
    hashes: Mapping[str, str]  # of the source's files, see `source_hashes`
    cost: str  # that the search minimizes
    earlier: Mapping[str, str]  # the directories of targets of earlier runs, which are kept

    @property
    def folders(self) -> dict[str, str]:
        """The directory in the output of each target."""
        alone = len(self.picks) == len(self.earlier) + 1
        return {target: self.earlier.get(target, "model" if alone else pick.file) for target, pick in self.picks.items()}

    @property
    def trained_for(self) -> str | None:
        """The weight format that the recovery trains for; None where rounding costs too little for it (8 bits)."""
        weight_format = str(self.options.weight_format)
        return weight_format if FORMATS[weight_format].bits < 8 else None

    @property
    def disk_bytes(self) -> int:
        """Estimate the bytes of a run: networks, and adapters with their checkpoints."""
        sizes, linears = self.source.sizes(self.source.unpruned).bytes, self.source.architecture.linears.values()
        network = sizes[str(self.options.weight_format)]
        adapter = 10 * 4 * NEW_RANK * sum(linear.in_features + linear.out_features for linear in linears)
        baselines = sizes["fp32"] + sum(sizes[name] for name in self.profile.baselines)  # also the merged model
        return round(adapter + 2 * network + len(self.picks) * (adapter + network) + baselines)


class Paths:
    """Where the steps find and keep their files. A model is a directory or a hub id."""

    def __init__(self, request: Request, work: Path):
        """Place the files of a run in its working directory."""
        source, adapter = request.source, request.options.source if request.source.adapter else None
        self.work, self.trims = work, request.options.vocabulary != KEEP
        self.trains_lora = request.profile.adapts and adapter is None and request.options.epochs != 0
        self.train, self.held_out = work / "data" / "train.jsonl", work / "data" / "held_out.jsonl"
        located, lora = source.base, str(work / "lora") if self.trains_lora else adapter
        self.base = f"{located.name}@{located.revision}" if located.revision else str(located.folder)
        self.student = str(work / "base") if self.trims else self.base  # the base of the compressed networks
        # the finished model and, of an adapter, its base: the baseline, and the teacher
        self.unpruned, self.unpruned_base = lora or self.base, self.base if lora else None
        # the model that is searched and recovered: the finished one, with the tokens that are kept
        self.start, self.start_base = lora or self.student, self.student if lora else None
        self.space = None if source.space.groups else work / SPACE_FILE  # None for the one in the adapter's directory

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

    @property
    def draft(self) -> Path:
        """The draft of the first target's network."""
        return self.work / "draft"

    def model(self, pick: Pick) -> Path:
        """The exported network of a target."""
        return self.work / "models" / pick.file


@dataclass(frozen=True)
class Plan(Request):
    """A run: its files, its data and how long its steps take."""

    paths: Paths
    counts: Mapping[str, int]  # examples by part: train, held_out
    fitting: int  # held-out examples that the search can use
    probe: Probe
    smallest: float  # share of the MACs that the smallest network has; of encoders with a target in a metric
    vocabulary: int | None = None  # tokens to keep, where the vocabulary is trimmed; None for those of the data alone

    @cached_property
    def unpruned(self) -> Source:
        """The finished model."""
        return open_source(self.paths.unpruned, self.paths.unpruned_base, elastic=False)

    @cached_property
    def start(self) -> Source:
        """The model that is searched, with the search space."""
        return open_source(self.paths.start, self.paths.start_base, self.paths.space)

    def open_data(self, path: Path) -> Task:
        """Open training or held-out examples for the finished model."""
        return self.unpruned.open_data(path, self.options.template, labels=True, max_length=self.options.max_length)

    def network(self, pick: Pick) -> Subnetwork:
        """The sub-network of a target, which the search has found."""
        return select(self.start.elasticity, str(self.paths.subnetwork(pick)))

    @property
    def candidates(self) -> list[Pick]:
        """The picks whose networks a target in a metric chooses from; none without such a target."""
        return candidate_picks(self.profile, self.smallest) if self.bounds else []

    @property
    def tries_unpruned(self) -> bool:
        """Whether a target in a metric tries the unpruned network, too: where it is not the baseline itself."""
        return bool(self.trained_for or self.paths.trims)

    @property
    def most_trials(self) -> int:
        """Trials of a bisection of the candidates, at most."""
        return (len(self.candidates) + self.tries_unpruned).bit_length()

    @property
    def search_picks(self) -> list[Pick]:
        """The picks of the search: those of the targets, and the candidates of targets in a metric."""
        own = [pick for pick in self.picks.values() if not isinstance(pick, MetricBound)]
        known = {pick.file for pick in own}
        return [*own, *(pick for pick in self.candidates if pick.file not in known)]

    def adapter(self, network: Subnetwork) -> Path:
        """The recovered adapter of a network, trained from these inputs with the options of this run."""
        used = [self.recovery_options, *([self.lora_options] if self.paths.trains_lora else [])]
        settings = [Command("lonas-edge train", options).settings for options in used]
        return self.paths.work / ADAPTERS / json_sha256([network.canonical, settings, self.vocabulary, self.inputs])[:16]

    def open_recovery(self, pick: Pick) -> Inputs:
        """Open the inputs of the recovery of a target's network; the unpruned model is the teacher."""
        paths, network = self.paths, str(self.paths.subnetwork(pick))
        inputs = open_recovery(paths.start, paths.train, network, paths.start_base, paths.space)
        return with_teacher(with_eval_data(inputs, paths.held_out), paths.unpruned, paths.unpruned_base)

    def recovery_command(self, network: Path | str, output: Path, options: TrainOptions) -> Command:
        """The command that trains a network with the inputs of `open_recovery`."""
        paths = self.paths
        files = {"from": paths.start, "model": paths.start_base, "nncf-config": paths.space, "subnet": network}
        files |= {"teacher": paths.unpruned, "data": paths.train, "eval-data": paths.held_out, "output": output}
        return Command("lonas-edge train", options, files)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of what the first steps read: the source's files, those that options name, and the split."""
        named = {"--data": self.options.data, "--eval-data": self.options.eval_data}
        files = {name: sha256(path) for name, path in named.items() if path and path.is_file()}
        split = {path.name: sha256(path) for path in (self.paths.train, self.paths.held_out)}
        longest = {} if self.options.max_length in (None, MAX_LENGTH) else {"--max-length": str(self.options.max_length)}
        return {**self.hashes, **files, **longest, "split": json_sha256(split)}

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
        return math.ceil(self.counts["train"] / self.profile.batch)

    @property
    def default_recovery_steps(self) -> int:
        """Steps of the recovery without --recovery-steps."""
        examples = self.profile.recovery_tokens / self.probe.tokens
        if self.profile.recovery_answers and self.probe.learned:
            tokens, most = self.profile.recovery_answers
            examples = max(examples, min(tokens / self.probe.learned, most))
        return math.ceil(examples / self.probe.batch)

    @property
    def recovery_options(self) -> TrainOptions:
        """Options of the recovery, with quantization-aware training for formats of less than 8 bits."""
        steps = self.options.recovery_steps or self.default_recovery_steps
        options = self._train_options(steps, self.probe.recovery_step, self.trained_for)
        return replace(options, batch_size=self.probe.batch, micro_batch_size=self.probe.micro_batch)

    def _train_options(self, steps: int, seconds: float, weight_format: str | None) -> TrainOptions:
        between = max(1, round(_SAVE_SECONDS / max(seconds, 0.01)))  # checkpoints
        log = min(10, max(1, steps // 10), between)  # steps of the log: a checkpoint splits none
        return TrainOptions(
            steps=steps,
            template=self.options.template,
            max_length=self.options.max_length,
            seed=self.options.seed,
            dtype=self.probe.precision,
            save_steps=min(200, log * max(1, round(between / log))),
            log_steps=log,
            eval_steps=min(steps, max(_EVAL_STEPS, math.ceil(steps / _EVALS))),
            batch_size=self.profile.batch,
            micro_batch_size=min(self.profile.batch, self.probe.micro_batch),
            weight_format=weight_format,
        )

    @property
    def search_options(self) -> SearchOptions:
        """Options of the search."""
        architecture = self.source.architecture
        steps = sum(block.kind in removed_kinds(self.source) for block in architecture.blocks.values())
        steps += (len(width_ratios(self.source)) - 1) * len(architecture.layers) if self.paths.space else 0
        least, most = self.profile.prompts
        prompts = max(least, min(most, round(self.profile.search_tokens / self.probe.tokens)))
        return SearchOptions(
            data=self.paths.held_out,
            output=self.paths.work / "search",
            cost=self.cost,
            evals=max(_LEAST_EVALS, _EVALS_PER_STEP * steps),
            num_samples=min(self.fitting, prompts),
            template=self.options.template,
            max_length=self.options.max_length,
            seed=self.options.seed,
            cost_settings=cost_settings(self.options),
        )

    def training_seconds(self, options: TrainOptions, step: float) -> float:
        """Estimate the seconds of a training with its evaluations; `step` has those of one step."""
        steps, every = options.steps or self.lora_steps, options.eval_steps or Plateau(self.steps_per_epoch).every
        evaluations = 1 + math.ceil(steps / every)  # also before the first step
        return round(steps * step + evaluations * self.counts["held_out"] * self.probe.evaluation, 1)

    @property
    def search_seconds(self) -> float:
        """Estimate the seconds of the search.

        A greedy removal ends early, and reuses what its networks have in common: of blocks it made 22 of 240 evaluations
        (results/decoder_compress.json). With widths, it took 0.65 and 0.72 of the time of all evaluations, the latency table
        included (results/orders_half_billion.json, snips_widths_half_billion.json).
        """
        share = 1.0
        if self.paths.space:
            share = _WIDTHS_SHARE if len(width_ratios(self.source)) > 1 else _BLOCKS_SHARE
        return round(share * self.search_options.evals * self.search_options.num_samples * self.probe.evaluation, 1)

    @property
    def default_seconds(self) -> float:
        """Estimate the seconds of a run with the default epochs and steps, and one target."""
        tuning = Plateau(self.steps_per_epoch).end * self.probe.lora_step if self.paths.trains_lora else 0.0
        recoveries = self.most_trials if self.bounds else 1
        return tuning + self.search_seconds + recoveries * self.default_recovery_steps * self.probe.recovery_step

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of answers: that of --metric or, without one, those that targets bound; then the other bounded ones."""
        given = None if self.options.metric == AUTO else self.options.metric
        bounded = [each.measure for each in self.bounds.values() if each.measure != OWN]
        return tuple(dict.fromkeys([given, *bounded] if given else bounded or [AUTO]))

    @property
    def bounds(self) -> dict[str, MetricBound]:
        """The targets in a metric."""
        return {target: pick for target, pick in self.picks.items() if isinstance(pick, MetricBound)}

    def metric_of(self, bound: MetricBound) -> str:
        """The metric of a bound, as --metric has it."""
        return str(self.options.metric) if bound.measure == OWN else bound.measure


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
