"""The length of a training that ends when its held-out loss no longer falls (`--epochs auto`). No torch.

The learning rate stays constant after the warm-up, so that it need not know the end. When an epoch lowers the held-out loss by
less than a twentieth, the rate falls linearly to 0 in a third of the steps so far, and the training ends there. The schedule is
called warm-up, stable, decay (Hu et al., arXiv 2404.06395; Hägele et al., 2405.18392).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lonas_edge.training.options import EVAL_LOSS

MOST_EPOCHS = 5
_CHECKS = 3  # evaluations per epoch
_LEAST_GAIN = 0.05  # share by which an epoch must lower the held-out loss for another one
_DECAY = 1 / 3  # steps of the decay, relative to those before it


class Plateau:
    """Decides when a training ends. Equal losses give equal decisions, so a resumed training repeats them.

    Attributes:
        every: Steps between two evaluations.
        decay: The step at which the learning rate begins to fall; None while that is open.
        end: The last step; the latest possible one while that is open.
    """

    def __init__(self, epoch: int, most_epochs: float = MOST_EPOCHS):
        """Set up a training with `epoch` steps per epoch."""
        self.every = max(1, round(epoch / _CHECKS))
        self.end = max(1, round(most_epochs * epoch))
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
        if stalled or step + self.every > self._latest:
            self.decay = step if stalled else max(step, self._latest)
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
