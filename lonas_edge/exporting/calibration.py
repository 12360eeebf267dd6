"""Read and check the data for INT4 compression (`--calibration`) before anything is computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Calibrated
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.requirements import require_memory, require_tokenizer
from lonas_edge.families import CAUSAL_LM
from lonas_edge.ir import compress
from lonas_edge.ir.calibrated import bytes_needed
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel


@dataclass(frozen=True)
class CalibrationPrompts:
    """Prompts to compress on, one of `METHODS`, the columns that share a scale, and the memory that it takes at most."""

    prompts: HeldOut
    method: str
    group_size: int
    bytes_needed: float

    def encoded(self, tokenizer: Any) -> list[np.ndarray]:
        """Return the token ids of each prompt with its answer, [1, tokens]; fail if too few are short enough."""
        batches = self.prompts.batches(tokenizer)
        rows = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        return [ids[mask.bool()].numpy()[None] for ids, mask in rows]

    def record(self, tokens: int) -> Calibrated:
        """Return the manifest's record."""
        return Calibrated(self.method, self.prompts.path.name, self.prompts.sha256, self.prompts.prompts, tokens)


def read_calibration(model: MaterializedModel, tokenizer: Any, options: ExportOptions) -> CalibrationPrompts | None:
    """Read the data and check group size and memory; return None for a format that does not use data."""
    source, weight_format = model.source, options.stored_as
    if options.calibration is None or not weight_format.group_sizes:
        return None
    source.architecture.require(CAUSAL_LM, "--calibration")
    require_tokenizer("--calibration", source, tokenizer)
    if source.architecture.eight_bits:
        raise LonasEdgeError(
            f"{source.folder}: --calibration would store {len(source.architecture.eight_bits)} matrices in four bits "
            "that have to stay INT8, such as those of state-space layers. Export without it."
        )
    group_size = weight_format.group_size(shape[1] for shape in compress.grouped_matrices(model).values())
    if group_size is None:
        raise LonasEdgeError(
            f"{source.folder}: no group size of {weight_format.name} divides the input width of every layer of the "
            f"{model.subnetwork.name} sub-network. Pass --group-size -1 (one scale per row)."
        )
    needed = bytes_needed(source.sizes(model.subnetwork).parameters)
    require_memory("--calibration", needed)
    chosen = read_held_out(source, options.calibration, options.num_prompts, 0, option="--num-prompts")
    prompts = CalibrationPrompts(chosen, options.int4_method, group_size, needed)
    prompts.encoded(tokenizer)  # fails now if prompts are too long
    return prompts
