"""What a training does at which step: options, stages, learning rate, and which sub-networks are trained. No torch.

Stages are NNCF's (`list_stage_descriptions`, progressive shrinking): a learning rate that falls as a cosine and restarts with
each stage, and the widths that may be drawn in it. A flag wins over the file.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.network.solved import SOLVE_PROMPTS
from lonas_edge.space.search_space import Group, SearchSpace, Stage

Sampling = Literal["random", "sandwich"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DEVICES: tuple[Device, ...] = get_args(Device)

DEFAULT_LR = 3e-4  # where neither the command line nor the search space says it
DEFAULT_EPOCHS = 3.0


@dataclass(frozen=True)
class Solve:
    """What a sub-network is solved on before it is trained further: a file of data, and how many prompts of it."""

    data: str
    prompts: int = SOLVE_PROMPTS


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        rank: Rank of the LoRA adapters.
        alpha: Their alpha; the scale is alpha / rank, for every elastic rank.
        dropout: Dropout in front of the adapters.
        target_modules: Names of the linear layers that get one; those of the model's family when None.
        steps: Optimizer steps in all; from `epochs` when None.
        epochs: Passes over the data in all; the sum of the stages' when None.
        batch_size: Examples an optimizer step, over all devices.
        micro_batch_size: Examples a device computes at once; all of its share when None.
        lr: Initial learning rate of every stage; the stage's own `init_lr` when None.
        warmup_steps: Steps of linear warm-up; 100, or 5 % of all when that is less, when None.
        weight_decay: AdamW's, on the active part of the adapters.
        max_grad_norm: Gradients are scaled down to this norm.
        width_indicator: How many values of each group may be drawn, widest first; the stage's own when None.
        sample_rate: Optimizer steps between two draws; the stage's own when None.
        depth_rate: Chance that a group of blocks is left out of a drawn sub-network, where the stage trains depth.
        subnetworks: The sub-networks that are drawn from, one width a group each; all of the search space where there is none.
        sampling: `random` trains one drawn sub-network a step; `sandwich` the maximal, the minimal and a drawn one.
        distill: Share of the loss that is the KL divergence from the teacher's answers, 0 to 1; when None, 0.5 where a teacher
            is named, and else 0. Where none is named, the maximal network is the teacher.
        temperature: What logits of teacher and network are divided by before they are compared.
        reorder: Whether channels are put in order of importance before training.
        calibration_prompts: How many training prompts the importance is taken from.
        prompt: Name of the prompt template; `alpaca` when None, or that of the super-adapter which is specialized.
        train_on_prompt: Whether the prompt's tokens are learned too; the template's own rule when None.
        max_length: Tokens of the longest example; 256, and 128 of a classifier, when None.
        group_by_length: Whether examples of similar length share a batch.
        seed: Seed of everything that is random.
        device: cpu, cuda, or auto.
        precision: fp32, bf16, fp16; auto is fp32 on a CPU, and on CUDA bf16 where the card has it, or else fp16.
        weight_format: The weight format that the network is trained to be stored in: it computes with weights as they are after
            that compression. None trains them as they are.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        save_steps: Steps between two checkpoints; 200, or a tenth of all when that is less, when None.
        log_steps: Steps between two records of the loss.
        report_to: Logging integration of the Trainer: none, tensorboard, wandb, …
    """

    rank: int = 32
    alpha: float = 64
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    lr: float | None = None
    warmup_steps: int | None = None
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    width_indicator: int | None = None
    sample_rate: int | None = None
    depth_rate: float = 0.1
    subnetworks: tuple[tuple[int, ...], ...] = ()
    sampling: Sampling = "random"
    distill: float | None = None
    temperature: float = 1.0
    reorder: bool = True
    calibration_prompts: int = 64
    prompt: str | None = None
    train_on_prompt: bool | None = None
    max_length: int | None = None
    group_by_length: bool = True
    seed: int = 42
    device: Device = "auto"
    precision: Precision = "auto"
    weight_format: str | None = None
    gradient_checkpointing: bool = False
    save_steps: int | None = None
    log_steps: int = 10
    report_to: str = "none"

    def accumulation(self, devices: int) -> int:
        """Micro-batches of one device in an optimizer step.

        Args:
            devices: How many compute in parallel.

        Returns:
            Their number.

        Raises:
            LonasEdgeError: If the batch cannot be divided so.
        """
        share = self.micro_batch_size or self.batch_size // devices
        if share < 1 or self.batch_size % (share * devices):
            raise LonasEdgeError(
                f"--batch-size {self.batch_size} cannot be divided over {devices} device(s) in micro-batches of {share}. "
                "Choose a multiple."
            )
        return self.batch_size // (share * devices)


@dataclass(frozen=True)
class PlannedStage:
    """A stage in optimizer steps.

    Attributes:
        first: Its first step.
        steps: How many it has.
        lr: Learning rate at its start.
        lr_steps: Steps over which the cosine falls to 0; it stays there.
        width_indicator: How many values of each group may be drawn, widest first; all when None.
        sample_rate: Steps between two draws.
        depth_rate: Chance that a group of blocks is left out; 0 where depth is held back.
    """

    first: int
    steps: int
    lr: float
    lr_steps: int
    width_indicator: int | None
    sample_rate: int
    depth_rate: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The stages, and what follows from them for every step. The draw of a step depends on the seed and the step alone.

    So every process of a data-parallel training trains the same sub-network, and a resumed training the one it would have.

    Attributes:
        space: The search space; without groups for plain LoRA.
        stages: What is trained when.
        warmup_steps: Steps of the linear warm-up.
        seed: Of the draws.
        sampling: Which sub-networks a step trains.
        given: The sub-networks that are drawn from, one width a group each; all of the search space where there is none.
    """

    space: SearchSpace
    stages: tuple[PlannedStage, ...]
    warmup_steps: int
    seed: int
    sampling: Sampling
    given: tuple[tuple[int, ...], ...] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> PlannedStage:
        """The stage that a step belongs to."""
        return next((stage for stage in reversed(self.stages) if step >= stage.first), self.stages[0])

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: lr / 2 · (1 + cos(π t / T)) within its stage, times the linear warm-up."""
        stage = self.stage(step)
        progress = min(1.0, (step - stage.first) / stage.lr_steps)
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return stage.lr * 0.5 * (1 + math.cos(math.pi * progress)) * warmup

    def drawn(self, step: int) -> tuple[int, ...]:
        """The sub-network drawn for a step: one of the given ones where there are some.

        Otherwise each group for itself: a width uniformly among the stage's, blocks by its rate.
        """
        stage = self.stage(step)
        draw = random.Random(f"{self.seed}/{stage.first}/{(step - stage.first) // stage.sample_rate}")
        if self.given:
            return draw.choice(self.given)

        def width(group: Group) -> int:
            if group.kind == "block":
                return int(draw.random() >= stage.depth_rate)
            return draw.choice(group.widths[: stage.width_indicator])

        return tuple(map(width, self.space.groups))

    def trained(self, step: int) -> list[tuple[int, ...]]:
        """The sub-networks trained in a step, one width a group each.

        `sandwich` (Yu & Huang, "Universally Slimmable Networks", ICCV 2019): the widest, the narrowest of the stage, and the
        drawn one, on the same batch. The narrowest keeps its blocks: without all that may be left out, no network is left.
        """
        if self.sampling == "random" or not self.space.groups:
            return [self.drawn(step)]
        narrow = self.stage(step).width_indicator
        widths = [group.widths[: 1 if group.kind == "block" else narrow] for group in self.space.groups]
        return [tuple(w[0] for w in widths), tuple(w[-1] for w in widths), self.drawn(step)]


def make_plan(
    space: SearchSpace,
    options: TrainOptions,
    examples: int,
    where: str = "The search space",
    given: tuple[tuple[int, ...], ...] = (),
) -> Plan:
    """Turn the search space's stages into steps, with the command line's overrides.

    Args:
        space: The search space; without groups for plain LoRA.
        options: The overrides.
        examples: How many there are.
        where: What to call the search space in an error.
        given: The sub-networks that are drawn from; all of the search space where there is none.

    Returns:
        The plan.

    Raises:
        LonasEdgeError: If there would be nothing to do, or a stage is senseless or asks for what is not done.
    """
    stages = space.stages or (Stage(epochs=DEFAULT_EPOCHS, train_dims=("width", "depth") if space.has_blocks else ("width",)),)
    checks = (_stage_faults, _elastic_faults) if space.groups else (_stage_faults,)  # plain LoRA takes epochs and rates only
    problems = [f"stage {i}: {fault}" for i, stage in enumerate(stages) for check in checks for fault in check(stage, space)]
    raise_all(f"{where}: the training stages cannot be used:", problems, "Mend them, or write a new search space.")
    if options.epochs is not None and not (0 < options.epochs < math.inf):
        raise LonasEdgeError(f"--epochs {options.epochs}: must be positive")
    total_epochs = sum(stage.epochs for stage in stages)
    epoch = math.ceil(examples / options.batch_size)
    steps = options.steps or max(1, round((total_epochs if options.epochs is None else options.epochs) * epoch))
    planned = _planned(stages, options, steps / total_epochs)
    warmup = options.warmup_steps if options.warmup_steps is not None else min(100, steps // 20)
    return Plan(space, planned, warmup, options.seed, options.sampling, given)


def _stage_faults(stage: Stage, _space: SearchSpace) -> list[str]:
    numbers = {"epochs": stage.epochs, "epochs_lr": stage.epochs_lr, "init_lr": stage.init_lr}
    counts = {"width_indicator": stage.width_indicator, "sample_rate": stage.sample_rate}
    faults = [f"{n} = {v!r}; must be positive" for n, v in numbers.items() if v is not None and not 0 < v < math.inf]
    return faults + [
        f"{name} = {value!r}; must be a whole number, 1 or more"
        for name, value in counts.items()
        if value is not None and (not isinstance(value, int) or value < 1)
    ]


def _elastic_faults(stage: Stage, space: SearchSpace) -> list[str]:
    """What NNCF does in a stage and this training does not."""
    faults = []
    allowed = [("width",), ("width", "depth")] if space.has_blocks else [("width",)]
    if tuple(sorted(stage.train_dims, reverse=True)) not in allowed:
        wanted = " or ".join(json.dumps(dims) for dims in allowed)
        faults.append(f"train_dims = {stage.train_dims!r}; expected {wanted}, which is what this search space has")
    if stage.reorg_weights:
        faults.append("reorg_weights: channels are put in order once, before the first stage (--reorder); take it out")
    return faults


def _planned(stages: Sequence[Stage], options: TrainOptions, steps_an_epoch: float) -> tuple[PlannedStage, ...]:
    planned: list[PlannedStage] = []
    epochs, first = 0.0, 0
    for stage in stages:
        epochs += stage.epochs
        end = round(epochs * steps_an_epoch)
        if end > first:
            lr = options.lr if options.lr is not None else stage.init_lr or DEFAULT_LR
            lr_steps = max(1, round((stage.epochs_lr or stage.epochs) * steps_an_epoch))
            indicator = options.width_indicator or stage.width_indicator
            rate = options.sample_rate or stage.sample_rate
            depth = options.depth_rate if "depth" in stage.train_dims else 0.0
            planned.append(PlannedStage(first, end - first, lr, lr_steps, indicator, rate, depth))
        first = end
    return tuple(planned)
