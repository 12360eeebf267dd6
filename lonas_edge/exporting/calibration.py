"""Compress an IR's layers and head on data (`--calibration`); the data are read and checked before anything is computed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from lonas_edge.data.task import Task
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.manifest import Calibrated, Manifest
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.files import sha256
from lonas_edge.formats import FORMATS, METHOD, PER_CHANNEL
from lonas_edge.ir.calibrated import bytes_needed, compress_head_on_data, compress_on_data
from lonas_edge.ir.schemes import Scheme, grouped_matrices, head_matrix, head_scheme
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import Source

_PROMPTS, _FEWEST = 64, 8  # that are used, and that the data must have


@dataclass(frozen=True)
class Calibration:
    """Prompts, and what is compressed on them.

    Attributes:
        data: The data.
        prompts: Number of prompts.
        texts: Token ids of each prompt with its answer, [1, tokens].
        layers: Whether the layers are; not if their adapter was trained for the format.
        group_size: Columns of a layer that share a scale.
        head: Storage of a head in four bits, which is compressed, too; None for another.
        bytes_needed: Memory that it takes at most.
    """

    data: Task
    prompts: int
    texts: list[np.ndarray]
    layers: bool
    group_size: int
    head: Scheme | None
    bytes_needed: float

    def compress(self, ir: Any, model: MaterializedModel, options: ExportOptions) -> Any:
        """Compress what is fp32 in an IR, and return it."""
        matrix = head_matrix(model)
        if self.layers:
            kept = matrix if self.head else None
            ir = compress_on_data(ir, options.stored_as, self.group_size, self.texts, kept)
        return compress_head_on_data(ir, matrix, self.head, self.texts) if self.head else ir

    @property
    def record(self) -> Calibrated:
        """The manifest's record."""
        path, tokens = self.data.path, sum(ids.size for ids in self.texts)
        return Calibrated(METHOD if self.layers else None, path.name, sha256(path), self.prompts, tokens)


def read_calibration(model: MaterializedModel, tokenizer: Any, options: ExportOptions) -> Calibration | None:
    """Read the data and check group size and memory; return None without data.

    Raises:
        LonasEdgeError: If the model cannot be stored so, the data have too few short prompts, or memory is short.
    """
    source, weight_format = model.source, options.stored_as
    if options.calibration is None:
        return None
    scheme = head_scheme(model, weight_format)
    head = scheme if scheme.group_size else None
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
    group_size = weight_format.group_size(shape[1] for shape in grouped_matrices(model).values())
    if group_size is None and layers:
        raise LonasEdgeError(
            f"{source.folder}: no group size of {weight_format.name} divides the input width of every layer of the "
            f"{model.subnetwork.name} sub-network. Pass --group-size -1 (one scale per row)."
        )
    parameters, of_head = source.sizes(model.subnetwork).parameters, math.prod(model.shapes[head_matrix(model)])
    needed, available = bytes_needed(parameters), psutil.virtual_memory().available
    if not layers:
        needed = bytes_needed(of_head) + parameters
    if needed > available:
        raise LonasEdgeError(
            f"--calibration holds the uncompressed sub-network in memory: it needs about {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are available. Without --calibration, each weight is compressed on its own."
        )
    data = source.open_data(options.calibration, options.prompt)
    data.check_count(_FEWEST)
    prompts = min(_PROMPTS, len(data.inputs))
    return Calibration(data, prompts, _encode(data, prompts, tokenizer), layers, group_size or PER_CHANNEL, head, needed)


def _encode(data: Task, prompts: int, tokenizer: Any) -> list[np.ndarray]:
    """Return the token ids of each prompt with its answer, [1, tokens]; fail if too few are short enough."""
    texts = []
    for batch in data.batches(tokenizer, prompts, 0):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            texts.append(ids[mask.bool()].numpy()[None])
    return texts


def as_trained(trained: str | None, options: ExportOptions) -> bool:
    """Return whether layers are stored as quantization-aware training assumed; `trained` is its format."""
    return trained == options.weight_format and options.group_size is None


def loss_warnings(source: Source, options: ExportOptions, manifest: Manifest) -> Iterator[str]:
    """Warn of quantization-aware training for another format, and of an INT4 head that is rounded without data."""
    of_head, trained = manifest.head and FORMATS[manifest.head.weight_format].bits == 4, source.trained_as
    if trained and not (as_trained(trained, options) and (options.calibration is None or of_head)):
        yield (
            f"{source.folder} was trained for --weight-format {trained} (quantization-aware); this export stores it "
            f"differently. Pass --weight-format {trained}, without --group-size, and with --calibration for an INT4 head only."
        )
    if of_head and manifest.calibrated is None:
        yield (
            "the INT4 head was rounded without data, which costs much accuracy. Pass --calibration DATA; it needs INT4 layers."
        )
