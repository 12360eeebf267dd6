"""Data for INT4 compression (`--calibration`): read and checked before anything is computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Calibrated
from lonas_edge.exporting.memory import require_memory
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.families import CAUSAL_LM
from lonas_edge.ir import compress
from lonas_edge.ir.calibrated import bytes_needed
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel


@dataclass(frozen=True)
class CalibrationPrompts:
    """Prompts to compress on.

    Attributes:
        prompts: The prompts, in the template of the super-adapter's training.
        method: Compression method, one of `METHODS`.
        group_size: Columns that share a scale.
        bytes_needed: Memory that the compression takes at most.
    """

    prompts: HeldOut
    method: str
    group_size: int
    bytes_needed: float

    def encoded(self, tokenizer: Any) -> list[np.ndarray]:
        """Return the token ids of each prompt with its answer, [1, tokens]; fail where too few are short enough."""
        batches = self.prompts.batches(tokenizer)
        rows = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [ids[mask.bool()].numpy()[None] for ids, mask in rows]

    def record(self, tokens: int) -> Calibrated:
        """Return the manifest's record."""
        return Calibrated(self.method, self.prompts.path.name, self.prompts.sha256, self.prompts.prompts, tokens)


def read_calibration(model: MaterializedModel, tokenizer: Any, options: ExportOptions) -> CalibrationPrompts | None:
    """Read the data and check the memory.

    Returns:
        The prompts; None where the format does not use data.

    Raises:
        LonasEdgeError: If there is no tokenizer, too little data, no group size that fits, or too little memory.
    """
    source, weight_format = model.source, options.stored_as
    if options.calibration is None or not weight_format.group_sizes:
        return None
    source.architecture.require(CAUSAL_LM, "--calibration")
    if tokenizer is None:
        raise LonasEdgeError(
            f"{source.base.folder}: no tokenizer, which --calibration needs. Save the model's tokenizer there."
        )
    group_size = weight_format.group_size(shape[1] for shape in compress.inner_matrices(model).values())
    if group_size is None:
        raise LonasEdgeError(
            f"{source.folder}: no group size of {weight_format.name} divides the input width of every layer of the "
            f"{model.subnetwork.name} sub-network. Pass --group-size -1 (one scale per row)."
        )
    needed = bytes_needed(source.sizes(model.subnetwork).parameters)
    require_memory("--calibration", needed)
    chosen = read_held_out(source, options.calibration, options.calibration_prompts, 0, option="--num-prompts")
    prompts = CalibrationPrompts(chosen, options.int4_method, group_size, needed)
    prompts.encoded(tokenizer)  # fails now where prompts are too long
    return prompts
