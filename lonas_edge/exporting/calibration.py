"""Read and check the data for INT4 compression (`--calibration`) before anything is computed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Calibrated
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.requirements import require_memory, require_tokenizer
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import PER_CHANNEL, WeightFormat
from lonas_edge.ir import compress
from lonas_edge.ir.calibrated import bytes_needed
from lonas_edge.ir.compress import Scheme
from lonas_edge.network.heldout import HeldOut, read_held_out
from lonas_edge.network.materialize import MaterializedModel


@dataclass(frozen=True)
class CalibrationPrompts:
    """Prompts, and what is compressed on them.

    Attributes:
        method: One of `METHODS`, for the layers; None if their adapter was trained for the format. The head has GPTQ.
        group_size: Columns of a layer that share a scale.
        head: Storage of a head in four bits; None for another.
        bytes_needed: Memory that it takes at most.
    """

    prompts: HeldOut
    method: str | None
    group_size: int
    head: Scheme | None
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
    head = _head(model, weight_format)
    if options.head_format and head is None:
        raise LonasEdgeError(
            f"{source.folder}: with --calibration the head is in int8, or in int4 or int4_sym where a group size divides the "
            f"hidden size, {source.architecture.config.hidden_size}. Leave out --head-format {options.head_format}."
        )
    layers = not (head and as_trained(source.trained_as, options))
    if layers and source.architecture.eight_bits:
        raise LonasEdgeError(
            f"{source.folder}: --calibration would store {len(source.architecture.eight_bits)} matrices in four bits "
            "that have to stay INT8, such as those of state-space layers. Export without it."
        )
    group_size = weight_format.group_size(shape[1] for shape in compress.grouped_matrices(model).values())
    if group_size is None and layers:
        raise LonasEdgeError(
            f"{source.folder}: no group size of {weight_format.name} divides the input width of every layer of the "
            f"{model.subnetwork.name} sub-network. Pass --group-size -1 (one scale per row)."
        )
    parameters, of_head = source.sizes(model.subnetwork).parameters, math.prod(model.shapes[compress.head_matrix(model)])
    needed = bytes_needed(parameters) if layers else bytes_needed(of_head) + parameters
    require_memory("--calibration", needed)
    chosen = read_held_out(source, options.calibration, options.num_prompts, 0, option="--num-prompts")
    prompts = CalibrationPrompts(chosen, options.int4_method if layers else None, group_size or PER_CHANNEL, head, needed)
    prompts.encoded(tokenizer)  # fails now if prompts are too long
    return prompts


def as_trained(trained: str | None, options: ExportOptions) -> bool:
    """Return whether layers are stored as quantization-aware training assumed; `trained` is its format."""
    return trained == options.weight_format and options.group_size is None and options.ratio == 1


def _head(model: MaterializedModel, weight_format: WeightFormat) -> Scheme | None:
    """Return the storage of a head in four bits."""
    scheme = Scheme(*weight_format.of_head(model.shapes[compress.head_matrix(model)][1]))
    return scheme if scheme.group_size else None
