"""Export a sub-network: the steps from a super-adapter to a directory that every OpenVINO client runs."""

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from lonas_edge.data.pooling import Pooling
from lonas_edge.exporting.calibration import read_calibration
from lonas_edge.exporting.job import Job, Outcome
from lonas_edge.exporting.manifest import CARD, MANIFEST, BothSizes, Chosen, Manifest, Origin, written_files
from lonas_edge.exporting.model_card import model_card
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.requirements import require_tokenizer
from lonas_edge.exporting.steps import Steps
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import replace_text
from lonas_edge.formats import FORMATS, dtype_of
from lonas_edge.ir import compress
from lonas_edge.network.configuration import read_generation_config
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import Located, Source, check_base, fingerprint
from lonas_edge.network.tokenizer import check_vocabulary, load_tokenizer
from lonas_edge.network.vocabulary_record import VOCABULARY, vocabulary_of
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import peak_memory_of_children
from lonas_edge.progress import Progress, silent
from lonas_edge.space.picture import picture_of
from lonas_edge.space.subnetwork import FILE as SUBNETWORK
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.versions import versions

__all__ = ["ExportOptions", "export"]

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optimum-intel", "nncf", "openvino", "openvino-tokenizers")

_M_MMAP_THRESHOLD = -3  # malloc.h
_OTHER_FILES = 50_000_000  # bytes of tokenizers and temporary files

Hashes = dict[str, dict[str, str]]  # SHA-256 by file, of `base` and `adapter`


def export(
    source: Source,
    subnetwork: Subnetwork,
    output: Path,
    options: ExportOptions,
    report: Progress = silent,
) -> Manifest:
    """Write a sub-network to the directory `output`, which appears complete or not at all; return its manifest.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output cannot be written, or verification fails.
    """
    _return_freed_memory()
    steps, stored = Steps(report), _stored(source, options)
    directory = OutputDirectory(output, options.overwrite, _inputs(source, options))
    directory.check(_bytes(source, subnetwork, options, stored))
    with directory.open() as folder, ThreadPoolExecutor(1, "hash") as background:
        with steps.step("validate", "Checking base and adapter"):
            model = MaterializedModel(source, subnetwork)
            tokenizer = _checked_tokenizer(model, options)
            pooling = _limited(source, tokenizer)
            job = Job(
                model,
                tokenizer,
                read_generation_config(source.base.folder, source.architecture.config.vocab_size),
                folder,
                options,
                stored,
                steps,
                hash_files=lambda: background.submit(written_files, folder),
                calibration=read_calibration(model, tokenizer, options) if options.stage == "ir" else None,
                pooling=pooling,
            )
        hashes = background.submit(_input_hashes, source)
        model.subnetwork.record().write(folder / SUBNETWORK)
        if trimmed := vocabulary_of(source.base.folder):
            trimmed.exported().write(folder / VOCABULARY)
        outcome = _stage(options.stage)(job)
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


def _stored(source: Source, options: ExportOptions) -> str:
    """Return the IR's format, or the checkpoint's dtype: by default the base's."""
    if options.stage == "checkpoint":
        return options.dtype or dtype_of(source.architecture.config.dtype).name
    return options.weight_format


def _inputs(source: Source, options: ExportOptions) -> tuple[Path | None, ...]:
    """Return the files and directories that the export reads, which it must not replace."""
    return source.base.folder, source.adapter.folder if source.adapter else None, options.calibration


def _bytes(source: Source, subnetwork: Subnetwork, options: ExportOptions, stored: str) -> int:
    """Estimate the room on the disk that the output and its temporary files need."""
    largest = FORMATS[stored].outer or stored if options.ratio < 1 else stored
    return source.sizes(subnetwork).bytes["fp16" if largest == "bf16" else largest] + _OTHER_FILES


def _checked_tokenizer(model: MaterializedModel, options: ExportOptions) -> Any:
    """Open the tokenizer, and check that it and the model fit each other and the options."""
    source = model.source
    folder, architecture = source.base.folder, source.architecture
    tokenizer = load_tokenizer(folder, source.chat_template)
    if tokenizer is not None:
        check_vocabulary(tokenizer, architecture.config.vocab_size, folder)
    if options.server:
        architecture.require(CAUSAL_LM, f"--server {options.server}")
        require_tokenizer(f"--server {options.server}", source, tokenizer)
    if options.head_format:
        architecture.require(CAUSAL_LM, "--head-format")
    if options.stage == "ir":
        compress.check_group_size(model, options.stored_as, options.group_size)
    return tokenizer


def _limited(source: Source, tokenizer: Any) -> Pooling | None:
    """Return the pooling with the longest text, at which the tokenizer cuts from now on, as all clients do."""
    if source.pooling is None:
        return None
    context = source.architecture.context
    assert context  # encoders have a table of positions
    pooling = source.pooling.limited(tokenizer.model_max_length if tokenizer else context, context)
    if tokenizer:
        tokenizer.model_max_length = pooling.max_length
    return pooling


def _stage(name: str) -> Callable[[Job], Outcome]:
    """Return the function of a stage; each imports what it alone needs."""
    if name == "checkpoint":
        from lonas_edge.exporting.stage_checkpoint import export_checkpoint

        return export_checkpoint
    from lonas_edge.exporting.stage_ir import export_ir

    return export_ir


def _input_hashes(source: Source) -> Hashes:
    hashes = {"base": fingerprint(source.base.folder)}
    if source.adapter:
        hashes["adapter"] = fingerprint(source.adapter.folder)
    return hashes


def _manifest(job: Job, outcome: Outcome, hashes: Hashes) -> Manifest:
    model, options, source = job.model, job.options, job.model.source
    training, subnetwork, searched = source.training, model.subnetwork, model.subnetwork.origin
    if searched and searched.super_adapter != hashes.get("adapter"):
        searched = None  # a search of another adapter with the same search space

    def origin(located: Located, key: str) -> Origin:
        return Origin(located.name, located.revision, hashes[key])

    return Manifest(
        stage=options.stage,
        weight_format=job.stored,
        compression=outcome.compression,
        head=outcome.head,
        ratio=options.ratio,
        group_size=options.group_size,
        calibrated=outcome.calibrated,
        subnetwork=Chosen(subnetwork.name, source.space.hash if subnetwork.widths else None, searched),
        base=origin(source.base, "base"),
        adapter=origin(source.adapter, "adapter") if source.adapter else None,
        pipeline=source.architecture.family.kind.pipeline_tag,
        task=training.task if training else None,
        prompt=training.prompt.name if training and training.prompt else None,
        sizes=BothSizes(source.sizes(source.unpruned), source.sizes(subnetwork)),
        layers=picture_of(subnetwork),
        fused=outcome.fused,
        verified=options.verify,
        parity=outcome.parity,
        steps=job.steps.taken,
        graph_process_peak_rss_bytes=peak_memory_of_children() if options.stage == "ir" else None,
        versions=versions(_PACKAGES),
        files=outcome.files.result(),
        pooling=job.pooling,
    )
