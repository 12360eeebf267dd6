"""Export a sub-network: the steps from a super-adapter to a directory that every OpenVINO client runs."""

import ctypes
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from lonas_edge.data.encoding import check_padding, renders_pairs
from lonas_edge.exporting import clients
from lonas_edge.exporting.job import Job, Outcome, Steps
from lonas_edge.exporting.manifest import CARD, MANIFEST, BothSizes, Chosen, Manifest, Origin
from lonas_edge.exporting.model_card import model_card
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.stage_checkpoint import export_checkpoint
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import replace_text
from lonas_edge.formats import DTYPES, dtype_of
from lonas_edge.network.configuration import GENERATION, read_generation_config
from lonas_edge.network.location import fingerprint
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import Source, check_base
from lonas_edge.network.tokenizer import check_vocabulary, load_tokenizer, require_tokenizer
from lonas_edge.network.vocabulary_record import VOCABULARY, vocabulary_of
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import peak_memory_of_children
from lonas_edge.progress import Progress, silent
from lonas_edge.space.picture import picture_of
from lonas_edge.space.selection import FILE as SUBNETWORK
from lonas_edge.space.selection import SubnetworkRecord
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.versions import versions

__all__ = ["ExportOptions", "export"]

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optimum-intel", "nncf", "openvino", "openvino-tokenizers")
_M_MMAP_THRESHOLD = -3  # malloc.h
_OTHER_FILES = 50_000_000  # bytes of tokenizers and temporary files


def export(source: Source, subnetwork: Subnetwork, output: Path, options: ExportOptions, report: Progress = silent) -> Manifest:
    """Write a sub-network to the directory `output`, which appears complete or not at all; return its manifest.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output cannot be written, or verification fails.
    """
    _return_freed_memory()
    steps, stored = Steps(report), options.weight_format
    if options.stage == "checkpoint":
        stored = options.dtype or dtype_of(source.architecture.config.dtype).name
    read = (source.base.folder, source.adapter.folder if source.adapter else None, options.calibration)
    directory = OutputDirectory(output, options.overwrite, read)
    directory.check(_bytes_needed(source, subnetwork, stored))
    with directory.open() as folder, ThreadPoolExecutor(1, "hash") as background:
        with steps.step("validate", "Checking base and adapter"):
            model = MaterializedModel(source, subnetwork)
            tokenizer = _open_tokenizer(source, options)
            pooling = source.pooling
            if pooling and tokenizer:
                tokenizer.model_max_length = pooling.max_length  # at which it cuts, as all clients do
            generation = read_generation_config(source.base.folder, source.architecture.config.vocab_size)
        hashes = background.submit(_hash_inputs, source)
        SubnetworkRecord.of(subnetwork).write(folder / SUBNETWORK)
        if trimmed := vocabulary_of(source.base.folder):
            trimmed.exported().write(folder / VOCABULARY)
        dtype = DTYPES[stored] if options.stage == "checkpoint" else DTYPES["fp32" if stored == "fp32" else "fp16"]
        replace_text(folder / "config.json", json.dumps(model.config(dtype.torch_name), indent=2) + "\n")
        if generation is not None:
            replace_text(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
        if pooling:
            pooling.write(folder, source.architecture.config.hidden_size)
        if options.stage == "ir" and tokenizer is not None and source.architecture.family.kind.generates:
            replace_text(folder / clients.GRAPH_FILE, clients.GRAPH)  # other clients ignore it
        job = Job(model, tokenizer, pooling, folder, options, stored, steps, background)
        if options.stage == "checkpoint":
            outcome = export_checkpoint(job)
        else:
            from lonas_edge.exporting.stage_ir import export_ir  # imports NNCF and optimum-intel

            outcome = export_ir(job)
        if options.verify:
            hint = "Pass the right base with --model, or export anyway with --no-verify."
            check_base(source.training, hashes.result()["base"], source.base.folder, hint)
        manifest = _manifest(job, outcome, hashes.result())
        manifest.write(folder / MANIFEST)
        replace_text(folder / CARD, model_card(manifest))
    return manifest


def _return_freed_memory() -> None:
    """Make glibc return tensors of over 1 MB when they are freed: it keeps up to 32 MB each otherwise, 0.3 GB in all."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


def _bytes_needed(source: Source, subnetwork: Subnetwork, stored: str) -> int:
    """Estimate the room on the disk that the output and its temporary files need."""
    return source.sizes(subnetwork).bytes["fp16" if stored == "bf16" else stored] + _OTHER_FILES


def _open_tokenizer(source: Source, options: ExportOptions) -> Any:
    """Open the tokenizer, and refuse options that do not fit it or the model."""
    folder, architecture = source.base.folder, source.architecture
    tokenizer = load_tokenizer(folder, source.prompt_record.chat)
    if tokenizer is not None:
        check_vocabulary(tokenizer, architecture.config.vocab_size, folder)
        check_padding(tokenizer, architecture.padding)
        if not architecture.family.kind.generates and not renders_pairs(tokenizer):
            tokenizer.chat_template = None  # sentence-transformers 6 would render texts with it
    if options.calibration or options.head_format:
        architecture.require(CAUSAL_LM, "--calibration" if options.calibration else "--head-format")
    return tokenizer or (require_tokenizer(folder, "--calibration") if options.calibration else None)


def _hash_inputs(source: Source) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the files of `base` and `adapter`, by file name."""
    hashes = {"base": fingerprint(source.base.folder)}
    if source.adapter:
        hashes["adapter"] = fingerprint(source.adapter.folder)
    return hashes


def _manifest(job: Job, outcome: Outcome, hashes: Mapping[str, dict[str, str]]) -> Manifest:
    options, source, subnetwork = job.options, job.model.source, job.model.subnetwork
    base, adapter, training, searched = source.base, source.adapter, source.training, subnetwork.origin
    if searched and searched.super_adapter != hashes.get("adapter"):
        searched = None  # a search of another adapter with the same search space
    return Manifest(
        stage=options.stage,
        weight_format=job.stored,
        compression=outcome.compression,
        head=outcome.head,
        group_size=options.group_size,
        calibrated=outcome.calibrated,
        subnetwork=Chosen(subnetwork.name, source.space.hash if subnetwork.widths else None, searched),
        base=Origin(base.name, base.revision, hashes["base"]),
        adapter=Origin(adapter.name, adapter.revision, hashes["adapter"]) if adapter else None,
        pipeline=source.architecture.family.kind.pipeline_tag,
        task=training.task if training else None,
        prompt=training.prompt.name if training and training.prompt else options.prompt,
        sizes=BothSizes(source.sizes(source.unpruned), source.sizes(subnetwork)),
        layers=picture_of(subnetwork),
        renumbered=len(subnetwork.numbers) < len(subnetwork.architecture.layers),
        fused=outcome.fused,
        verified=options.verify,
        parity=outcome.parity,
        steps=job.steps.taken,
        graph_process_peak_rss_bytes=peak_memory_of_children() if options.stage == "ir" else None,
        versions=versions(_PACKAGES),
        files=outcome.files.result(),
        pooling=job.pooling,
    )
