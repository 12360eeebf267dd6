"""The schedule of a training: stages in optimizer steps, the learning rate and the sub-network of every step. No torch.

Stages are NNCF's (`list_stage_descriptions`, progressive shrinking): each restarts a cosine learning rate and limits the
drawn widths.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lonas_edge.space.search_space import Group, SearchSpace, TrainingStage
from lonas_edge.training.options import AUTO, DEPTH_RATE, EVAL_LOSS, TrainOptions

DEFAULT_LR = 1e-3
DEFAULT_EPOCHS = 3.0
MOST_EPOCHS = 5
_CHECKS = 3  # evaluations per epoch
_LEAST_GAIN = 0.05  # share by which an epoch must lower the held-out loss for another one
_LEARNED = 0.001  # share of the first held-out loss at which nothing is left to learn
_DECAY = 1 / 3  # steps of the decay, relative to those before it


class Plateau:
    """Decides when a training with `--epochs auto` ends. Equal losses give equal decisions, so a resumed training repeats them.

    The learning rate stays constant after the warm-up, so that it need not know the end. When an epoch lowers the held-out loss
    by less than a twentieth, or the loss is a thousandth of that before the first step, the rate falls linearly to 0 in a third
    of the steps so far, and the training ends there. The schedule is called warm-up, stable, decay (Hu et al., arXiv
    2404.06395; Hägele et al., 2405.18392).

    Attributes:
        every: Steps between two evaluations.
        decay: The step at which the learning rate begins to fall; None while that is open.
        end: The last step; the latest possible one while that is open.
    """

    def __init__(self, epoch: int, most: int | None = None):
        """Set up a training with `epoch` steps per epoch, and `most` steps at most."""
        self.end = most or max(1, MOST_EPOCHS * epoch)
        self.every = max(1, round(min(epoch, self.end) / _CHECKS))
        self.decay: int | None = None
        self._latest = int(self.end / (1 + _DECAY))  # where the decay must begin
        self._losses: dict[int, float] = {}

    def add(self, step: int, loss: float) -> None:
        """Take the held-out loss after a step; losses of other steps than each `every`-th do not count."""
        if self.decay is not None or step % self.every or step in self._losses:
            return
        self._losses[step] = loss
        before = [value for at, value in self._losses.items() if at <= step - _CHECKS * self.every]
        epoch = [value for at, value in self._losses.items() if at > step - _CHECKS * self.every]
        stalled = bool(before) and not min(epoch) < (1 - _LEAST_GAIN) * min(before)
        learned = len(self._losses) > 1 and loss <= _LEARNED * next(iter(self._losses.values()))
        if stalled or learned or step + self.every > self._latest:
            self.decay = step if stalled or learned else max(step, self._latest)
            self.end = min(self.end, self.decay + max(1, math.ceil(_DECAY * self.decay)))

    def read(self, log: Iterable[Mapping[str, Any]]) -> None:
        """Take the losses of the Trainer's log."""
        for entry in log:
            if EVAL_LOSS in entry:
                self.add(entry["step"], entry[EVAL_LOSS])

    def factor(self, step: int) -> float:
        """The learning rate of a step, relative to the constant one."""
        if self.decay is None or step < self.decay:
            return 1.0
        return max(0.0, (self.end - step) / (self.end - self.decay))


@dataclass(frozen=True)
class ScheduledStage:
    """A stage in optimizer steps."""

    first: int  # its first step
    steps: int  # number of steps
    lr: float  # learning rate at its start
    lr_steps: int  # steps until the cosine reaches 0, where it stays
    width_indicator: int | None  # number of values of each group that may be drawn, widest first; all when None
    sample_rate: int  # steps between two draws
    depth_rate: float = 0.0  # chance that a block is removed from a drawn sub-network


@dataclass(frozen=True)
class Schedule:
    """The sub-network and learning rate of every step. A draw depends on seed and step only.

    Therefore all processes of a data-parallel training draw the same sub-network, and so does a resumed training.
    """

    space: SearchSpace  # the search space; without groups for plain LoRA
    stages: tuple[ScheduledStage, ...]
    warmup_steps: int  # steps of the linear warm-up
    seed: int  # seed of the draws
    fixed: tuple[int, ...] | None = None  # widths of the one sub-network that is trained; all are drawn from if None
    plateau: Plateau | None = None  # finds the end of a training with --epochs auto

    @property
    def steps(self) -> int:
        """All optimizer steps; with --epochs auto at most, until the end is known."""
        return self.plateau.end if self.plateau else sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> ScheduledStage:
        """Return the stage of a step."""
        return next((stage for stage in reversed(self.stages) if step >= stage.first), self.stages[0])

    def learning_rate(self, step: int) -> float:
        """Compute lr / 2 · (1 + cos(π t / T)) within the step's stage, times the linear warm-up; see `Plateau` for auto."""
        stage = self.stage(step)
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.plateau:
            return stage.lr * self.plateau.factor(step) * warmup
        progress = min(1.0, (step - stage.first) / stage.lr_steps)
        return stage.lr * 0.5 * (1 + math.cos(math.pi * progress)) * warmup

    def subnetwork(self, step: int) -> tuple[int, ...]:
        """Draw the sub-network of a step: every width uniformly among the stage's, blocks by the stage's rate."""
        if self.fixed is not None:
            return self.fixed
        stage = self.stage(step)
        draw = random.Random(f"{self.seed}/{stage.first}/{(step - stage.first) // stage.sample_rate}")

        def width(group: Group) -> int:
            if group.kind == "block":
                return int(draw.random() >= stage.depth_rate)
            return draw.choice(group.widths[: stage.width_indicator])

        return tuple(map(width, self.space.groups))


def make_schedule(
    space: SearchSpace,
    options: TrainOptions,
    examples: int,
    fixed: tuple[int, ...] | None = None,
    default_lr: float = DEFAULT_LR,
) -> Schedule:
    """Turn the search space's stages into steps; options win over the file."""
    default = TrainingStage(epochs=DEFAULT_EPOCHS, train_dims=("width", "depth") if space.has_blocks else ("width",))
    stages = space.stages or (default,)
    total_epochs = sum(stage.epochs for stage in stages)
    per_epoch = math.ceil(examples / options.batch_size)
    auto = options.epochs == AUTO
    plateau = Plateau(per_epoch, options.steps) if auto else None
    epochs = MOST_EPOCHS if auto else float(options.epochs or total_epochs)
    steps = plateau.end if plateau else options.steps or max(1, round(epochs * per_epoch))
    steps_per_epoch = steps / total_epochs
    scheduled: list[ScheduledStage] = []
    epochs, first = 0.0, 0
    for stage in stages:
        epochs += stage.epochs
        end = round(epochs * steps_per_epoch)
        if end > first:
            rate = options.lr if options.lr is not None else stage.init_lr or default_lr
            lr_steps = max(1, round((stage.epochs_lr or stage.epochs) * steps_per_epoch))
            depth_rate = DEPTH_RATE if "depth" in stage.train_dims else 0.0
            scheduled.append(
                ScheduledStage(first, end - first, rate, lr_steps, stage.width_indicator, stage.sample_rate, depth_rate)
            )
        first = end
    warmup = options.warmup_steps if options.warmup_steps is not None else min(100, steps // 20)
    return Schedule(space, tuple(scheduled), warmup, options.seed, fixed, plateau)
