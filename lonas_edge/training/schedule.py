"""The schedule of a training: stages in optimizer steps, the learning rate and the sub-network of every step. No torch.

Stages are NNCF's (`list_stage_descriptions`, progressive shrinking): each restarts a cosine learning rate and limits the
drawn widths.
"""

import math
import random
from dataclasses import dataclass

from lonas_edge.space.search_space import Group, SearchSpace, TrainingStage
from lonas_edge.training.options import AUTO, DEPTH_RATE, TrainOptions
from lonas_edge.training.plateau import Plateau

DEFAULT_LR = 1e-3
DEFAULT_EPOCHS = 3.0


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
        """All optimizer steps; with --epochs auto at most."""
        return sum(stage.steps for stage in self.stages)

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
    plateau = Plateau(per_epoch) if options.epochs == AUTO else None
    epochs = total_epochs if options.epochs in (None, AUTO) else float(options.epochs)
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
