"""The data that an export's compression looks at: read and checked before anything is computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Calibrated
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import WeightFormat
from lonas_edge.ir import compress
from lonas_edge.ir.calibrated import bytes_needed
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel

CALIBRATION_PROMPTS = 64


@dataclass(frozen=True)
class Calibration:
    """What an export is asked to compress on.

    Attributes:
        data: Instruction data, as of training.
        method: Name of the method, one of `METHODS`.
        prompts: How many prompts of it.
    """

    data: Path
    method: str
    prompts: int = CALIBRATION_PROMPTS


@dataclass(frozen=True)
class Texts:
    """What the compression looks at.

    Attributes:
        asked: What was asked for.
        prompts: The prompts, in the template that the super-adapter was trained with.
        group_size: Columns that share a scale.
        bytes_needed: Memory that it takes, at most.
    """

    asked: Calibration
    prompts: HeldOut
    group_size: int
    bytes_needed: float

    def encoded(self, tokenizer: Any) -> list[np.ndarray]:
        """Token ids of each prompt with its answer, [1, tokens]; an error where too few are short enough."""
        batches = self.prompts.batches(tokenizer)
        rows = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [ids[mask.bool()].numpy()[None] for ids, mask in rows]

    def record(self, tokens: int) -> Calibrated:
        """For the manifest."""
        return Calibrated(self.asked.method, self.prompts.path.name, self.prompts.sha256, self.prompts.prompts, tokens)


def read_calibration(model: MaterializedModel, tokenizer: Any, asked: Calibration, weight_format: WeightFormat) -> Texts:
    """Read the data, and see that there is room.

    Args:
        model: The materialized sub-network.
        tokenizer: The base's, or None.
        asked: What was asked for.
        weight_format: The IR's, with its group size.

    Returns:
        What the compression looks at.

    Raises:
        LonasEdgeError: If there is no tokenizer, too little data, no group size that fits, or too little memory.
    """
    source = model.source
    source.architecture.require(CAUSAL_LM, "--calibration")
    if tokenizer is None:
        raise LonasEdgeError(f"{source.base.folder}: has no tokenizer, which --calibration needs to read {asked.data}")
    group_size = weight_format.group_size(shape[1] for shape in compress.inner_matrices(model).values())
    if group_size is None:
        raise LonasEdgeError(
            f"{source.folder}: no group size of {weight_format.name} divides the input width of every layer of the "
            f"{model.subnetwork.name} sub-network. Pass --group-size -1 (one scale per row)."
        )
    needed = bytes_needed(source.sizes(model.subnetwork).parameters)
    available = psutil.virtual_memory().available
    if needed > available:
        raise LonasEdgeError(
            f"--calibration compresses the whole network at once and needs about {needed / 1e9:.1f} GB; "
            f"{available / 1e9:.1f} GB are free. Without it, weights are compressed as they are made."
        )
    texts = Texts(
        asked, read_held_out(source, asked.data, asked.prompts, 0, option="--calibration-prompts"), group_size, needed
    )
    texts.encoded(tokenizer)  # too long ones are told now
    return texts
