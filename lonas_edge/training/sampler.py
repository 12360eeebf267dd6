"""The order of the examples in an epoch."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """Groups examples of similar length. The order depends on seed and epoch only, so that a resumed training repeats it.

    transformers' LengthGroupedSampler draws from the global generator, which a resumed training cannot repeat.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, files: Sequence[tuple[int, float]] = ()):
        """Set the order.

        Args:
            lengths: Tokens of each example.
            batch: Examples per optimizer step, over all devices.
            seed: The training's seed.
            files: For each data file in turn, its number of examples and its weight: 2 has each example twice per epoch, 0.3 a
                different 30 % of them in every epoch.
        """
        self._lengths, self._batch, self._seed = list(lengths), batch, seed
        self._files = files or [(len(self._lengths), 1.0)]
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Examples per epoch."""
        return sum(per_epoch(count, weight) for count, weight in self._files)

    def __iter__(self) -> Iterator[int]:
        """Return the indices of examples."""
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        chosen = self._chosen(generator)
        lengths = [self._lengths[index] for index in chosen]
        return iter([chosen[i] for i in get_length_grouped_indices(lengths, self._batch, generator=generator)])

    def _chosen(self, generator: torch.Generator) -> list[int]:
        chosen: list[int] = []
        first = 0
        for count, weight in self._files:
            rest = per_epoch(count, weight) - int(weight) * count
            drawn = torch.randperm(count, generator=generator)[:rest].tolist() if rest else []
            chosen += [first + index for index in (*list(range(count)) * int(weight), *drawn)]
            first += count
        return chosen


def per_epoch(count: int, weight: float) -> int:
    """Return the examples per epoch of a file with `count` examples, at least one."""
    return max(1, round(count * weight))
