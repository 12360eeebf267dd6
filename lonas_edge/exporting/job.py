"""State of an export in progress, and the steps that all stages share."""

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lonas_edge.data.calibration import compared_inputs
from lonas_edge.data.pooling import Pooling
from lonas_edge.exporting import ovms, verify
from lonas_edge.exporting.calibration import CalibrationPrompts
from lonas_edge.exporting.manifest import Calibrated, Compression, Written
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.steps import Steps
from lonas_edge.files import replace_text
from lonas_edge.network.configuration import GENERATION
from lonas_edge.network.divergence import Parity, compare, compare_embeddings
from lonas_edge.network.materialize import MaterializedModel


@dataclass(frozen=True)
class Job:
    """An export whose inputs are read and checked.

    Attributes:
        tokenizer: The base's, with the chat template of the training; or None.
        generation: Content of the base's generation_config.json, or None.
        folder: The output while it is written.
        stored: The IR's format or the checkpoint's dtype.
        hash_files: Starts to hash the files of the complete output, while they are verified.
        pooling: Pooling of an embedding model, with the longest text; or None.
    """

    model: MaterializedModel
    tokenizer: Any
    generation: dict[str, Any] | None
    folder: Path
    options: ExportOptions
    stored: str
    steps: Steps
    hash_files: Callable[[], Future[dict[str, Written]]]
    calibration: CalibrationPrompts | None = None
    pooling: Pooling | None = None

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return the inputs of compared networks by name, each [prompts, tokens]."""
        architecture = self.model.source.architecture
        return compared_inputs(architecture.family.kind, self.tokenizer, architecture.config)

    def compare(self, reference: torch.Tensor, outputs: torch.Tensor) -> Parity:
        """Compare the outputs of a network for `inputs` with those of a reference."""
        if self.pooling is None:
            return compare(reference, outputs)
        return compare_embeddings(reference, outputs, self.inputs()["attention_mask"], self.pooling)


@dataclass(frozen=True)
class Outcome:
    """Results of a stage, for the manifest; `fused` is the number of the IR's matrices that are part of others."""

    files: Future[dict[str, Written]]
    parity: dict[str, Parity] = field(default_factory=dict)
    compression: tuple[Compression, ...] = ()
    head: Compression | None = None
    fused: int = 0
    calibrated: Calibrated | None = None


def verify_weights(job: Job) -> tuple[torch.Tensor, Parity]:
    """Compare the materialized model with the activated super-network, and fail if they differ.

    Returns:
        The materialized model's logits in float64, and the comparison.
    """
    with job.steps.step("verify_weights", "Comparing with the activated super-network"):
        inputs = job.inputs()
        reference = verify.super_network_logits(job.model, inputs)
        materialized = verify.materialized_logits(job.model, inputs)
        parity = job.compare(reference, materialized)
        verify.check_materialized(job.model.source.folder, parity, reference)
    return materialized, parity


def write_configs(job: Job, dtype: str) -> None:
    """Write config.json, generation_config.json, and the files for sentence-transformers or for a server."""
    replace_text(job.folder / "config.json", json.dumps(job.model.config(dtype), indent=2) + "\n")
    if job.pooling:
        job.pooling.write(job.folder, job.model.source.architecture.config.hidden_size)
    if job.options.server:
        replace_text(job.folder / ovms.GRAPH_FILE, ovms.GRAPH)
    if job.generation is not None:
        replace_text(job.folder / GENERATION, json.dumps(job.generation, indent=2) + "\n")


def scratch(folder: Path, prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """Return a temporary directory next to the output. Errors of its removal are ignored: Windows keeps mapped files."""
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True)
