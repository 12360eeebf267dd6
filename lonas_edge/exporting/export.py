"""Export: the road from a super-adapter to a directory that every OpenVINO client runs. Here the steps meet."""

import ctypes
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino as ov
import torch
from safetensors.torch import save_file

from lonas_edge.data.calibration import compared_inputs
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting import texts as text_comparison
from lonas_edge.exporting import verify
from lonas_edge.exporting.calibration import Calibration, Texts, read_calibration
from lonas_edge.exporting.compression import compression_in, compression_of
from lonas_edge.exporting.draft import DraftOptions, check_draft, copy_draft, no_smaller
from lonas_edge.exporting.manifest import (
    CARD,
    DRAFT,
    MANIFEST,
    BothSizes,
    Calibrated,
    Chosen,
    Compression,
    Draft,
    Manifest,
    Origin,
    Written,
    written_files,
)
from lonas_edge.exporting.model_card import model_card
from lonas_edge.exporting.servers import SERVERS
from lonas_edge.exporting.solved import read_texts, solve_model
from lonas_edge.exporting.steps import Steps
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import replace_text, sha256
from lonas_edge.formats import DEFAULT_FORMAT, DEFAULT_GGUF_TYPE, DTYPES, FORMATS, WeightFormat, dtype_of
from lonas_edge.ir import MODEL, compress
from lonas_edge.ir.calibrated import compress_on_data
from lonas_edge.ir.compress import Compressed
from lonas_edge.ir.convert import filled, write_compressed, write_ir
from lonas_edge.ir.fuse import attention_matrices
from lonas_edge.ir.graph import GraphConversion, Job
from lonas_edge.ir.support import refusal
from lonas_edge.network import adapters
from lonas_edge.network.configuration import GENERATION, read_generation_config
from lonas_edge.network.correction import FILE as CORRECTION
from lonas_edge.network.divergence import Parity, TextDivergence, compare, compare_texts
from lonas_edge.network.materialize import MaterializedModel, write_weights
from lonas_edge.network.solved import SOLVE_PROMPTS, Solved
from lonas_edge.network.solving import bytes_found
from lonas_edge.network.source import Located, Source, base_misfits
from lonas_edge.network.tokenizer import check_vocabulary, load_tokenizer
from lonas_edge.output import OutputDirectory
from lonas_edge.processes import peak_memory_of_children
from lonas_edge.progress import Progress, silent
from lonas_edge.space.picture import FILE as PICTURE
from lonas_edge.space.picture import alike, picture_of, svg
from lonas_edge.space.subnetwork import FILE as SUBNETWORK
from lonas_edge.space.subnetwork import Subnetwork
from lonas_edge.versions import versions

if TYPE_CHECKING:  # of an extra
    from lonas_edge.exporting.gguf_file import Layout
    from lonas_edge.exporting.gguf_vocabulary import Vocabulary

_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optimum-intel", "nncf", "openvino", "openvino-tokenizers")
_GGUF_PACKAGES = ("gguf", "llama-cpp-python")

_M_MMAP_THRESHOLD = -3  # malloc.h
_ROOM_BYTES = 50_000_000  # tokenizers and temporary files


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        weight_format: How the IR's weights are stored, one of `FORMATS`.
        stage: Where to stop, one of `STAGES`.
        dtype: Stored dtype of a checkpoint, fp32, fp16 or bf16; that of the base when None.
        gguf_type: How the matrices of a GGUF file are stored, one of `GGUF_TYPES`.
        verify: Whether to compare logits and refuse a model beyond the tolerance.
        overwrite: Whether an existing output is replaced.
        solve: Instruction data to solve what is cut on; nothing is solved when None.
        solve_prompts: How many prompts of it; an eighth as many more are held out, to see what it gives.
        fuse: Whether weight matrices of an IR that multiply the same input become one (`ir.fuse`).
        group_size: Columns that share a scale, `PER_CHANNEL` for whole rows; the format's choice when None.
        ratio: Share of the weights between embedding and head that get the format; the rest gets that of embedding and head.
        calibration: What compression to a format that is data-aware looks at, the draft's too; at nothing when None.
        server: The server that the directory is laid out for, one of `SERVERS`; stock clients alone when None.
        compare_texts: Whether texts that an IR generates are compared with those of the sub-network in fp32.
        draft: The draft beside an IR; none when None.
    """

    weight_format: str = DEFAULT_FORMAT
    stage: str = "ir"
    dtype: str | None = None
    gguf_type: str = DEFAULT_GGUF_TYPE
    verify: bool = True
    overwrite: bool = False
    solve: Path | None = None
    solve_prompts: int = SOLVE_PROMPTS
    fuse: bool = True
    group_size: int | None = None
    ratio: float = 1.0
    calibration: Calibration | None = None
    server: str | None = None
    compare_texts: bool = False
    draft: DraftOptions | None = None

    @property
    def stored_as(self) -> WeightFormat:
        """The IR's format, with the group size that was asked for."""
        return FORMATS[self.weight_format].with_group_size(self.group_size)

    @property
    def looks_at(self) -> Calibration | None:
        """What the IR's own compression looks at."""
        return self.calibration if self.stored_as.group_sizes else None


def export(
    source: Source,
    subnetwork: Subnetwork,
    output: Path,
    options: ExportOptions,
    report: Progress = silent,
) -> Manifest:
    """Export a sub-network.

    Args:
        source: Base model, adapter and search space.
        subnetwork: The chosen widths.
        output: The directory to write; it appears whole or not at all.
        options: What to write.
        report: Called with the name of each step as it starts, and with the share done as it goes.

    Returns:
        The manifest, as written to `lonas_edge.json`.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output cannot be written, or verification fails.
    """
    _return_freed_memory()
    layout = _gguf_layout(source, subnetwork) if options.stage == "gguf" else None
    stored = _stored(source, options)
    data = options.calibration.data if options.calibration else None
    draft = options.draft.folder if options.draft else None
    used = (source.base.folder, source.adapter.folder if source.adapter else None, options.solve, data, draft)
    directory = OutputDirectory(output, options.overwrite, used)
    beside = options.draft.bytes(source) + _ROOM_BYTES if options.draft else 0
    written = layout.bytes(stored) if layout else _most_bytes(source, subnetwork, stored, options)
    beside += bytes_found(subnetwork) if options.solve else 0
    directory.check(written + _ROOM_BYTES + beside)
    with directory.open() as folder, _scratch(folder, "solved-") as found, ThreadPoolExecutor(1, "hash") as background:
        steps = Steps(report)
        with steps.step("validate", "Checking base and adapter"):
            model = MaterializedModel(source, subnetwork)
            tokenizer = load_tokenizer(source.base.folder, source.chat_template)
            if tokenizer is not None:
                check_vocabulary(tokenizer, source.architecture.config.vocab_size, source.base.folder)
            generation = read_generation_config(source.base.folder, source.architecture.config.vocab_size)
            vocabulary = _vocabulary(source, tokenizer) if layout else None
            if options.server:
                _require_generator(source, tokenizer, options.server)
            if options.compare_texts:
                text_comparison.check_room(model)
            if options.stage == "ir":
                _check_storage(model, options)
            texts = read_texts(model, tokenizer, options.solve, options.solve_prompts) if options.solve else None
            asked = options.looks_at
            looked_at = read_calibration(model, tokenizer, asked, options.stored_as) if asked else None
            if options.draft:
                check_draft(source, options.draft, tokenizer)
        hashes = background.submit(_hashes, model)
        subnetwork.record().write(folder / SUBNETWORK)
        drawn = picture_of(subnetwork)
        if not alike(drawn):
            (folder / PICTURE).write_text(svg(drawn, f"{source.base.name}, {subnetwork.name} sub-network"), encoding="utf-8")
        if options.draft:  # first: the main model's manifest has the hashes of its files
            warning = no_smaller(source, subnetwork, options.weight_format, options.draft)
            with steps.step("draft", "Exporting the draft"):
                report(f"{warning}\nExporting the draft" if warning else "Exporting the draft", None)
                _write_draft(source, options, folder / DRAFT, report)
        solved = source.solved
        if texts is not None:
            with steps.step("solve", "Solving what is cut") as done:
                model, solved = solve_model(model, texts, tokenizer, Path(found), done)
        job = _Export(model, tokenizer, generation, folder, options, stored, steps, background, looked_at)
        job.layout, job.vocabulary = layout, vocabulary
        _WRITERS[options.stage](job)
        misfits = base_misfits(source.training, hashes.result()["base"]) if options.verify else []
        raise_all(
            f"{source.base.folder}: not the base that the super-adapter was trained on:",
            misfits,
            "--model names the right one; --no-verify exports all the same.",
        )
        manifest = _manifest(job, hashes.result(), solved)
        manifest.write(folder / MANIFEST)
        replace_text(folder / CARD, model_card(manifest))
    return manifest


def _check_storage(model: MaterializedModel, options: ExportOptions) -> None:
    """Refuse what the IR's matrices cannot be stored in."""
    compress.check_group_size(model, options.stored_as, options.group_size)


def _write_draft(source: Source, options: ExportOptions, folder: Path, report: Progress) -> None:
    asked = options.draft
    assert asked  # it is there
    if asked.subnetwork is None:
        assert asked.folder  # one of them is given
        copy_draft(asked.folder, folder)
        return
    own = replace(options, weight_format=asked.weight_format, group_size=None, ratio=1.0, overwrite=False, draft=None)
    own = replace(own, server=None, compare_texts=False)  # the main model's
    export(source, asked.subnetwork, folder, own, lambda what, done: report(f"Draft: {what}", done))


def _return_freed_memory() -> None:
    """Let glibc give back tensors of over 1 MB when they are freed: it keeps up to 32 MB each otherwise, 0.3 GB in all."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)


@dataclass
class _Export:
    """One export under way.

    Attributes:
        model: What is exported.
        tokenizer: The base's, with the chat template that was trained in; or None.
        generation: Content of the base's generation_config.json, or None.
        folder: Where it is written.
        options: What to write.
        stored: How weights are stored: the IR's format, or the checkpoint's dtype.
        steps: The steps so far.
        background: Computes hashes meanwhile.
        texts: What compression looks at, or None.
        layout: What the sub-network is in a GGUF file, where one is written.
        vocabulary: And its tokenizer.
        parity: What the comparisons gave.
        written: What the files are, once they are written.
        fused: How many weight matrices went into others.
        compression: How weight matrices are stored.
        calibrated: What compression looked at.
        generated: How texts of the IR compare with those in fp32, or None.
    """

    model: MaterializedModel
    tokenizer: Any
    generation: dict[str, Any] | None
    folder: Path
    options: ExportOptions
    stored: str
    steps: Steps
    background: ThreadPoolExecutor
    texts: Texts | None = None
    layout: "Layout | None" = None
    vocabulary: "Vocabulary | None" = None
    parity: dict[str, Parity] = field(default_factory=dict)
    written: Future[dict[str, tuple[Written, ...]]] | None = None
    fused: int = 0
    compression: tuple[Compression, ...] = ()
    calibrated: Calibrated | None = None
    generated: TextDivergence | None = None

    def write_checkpoint(self) -> None:
        dtype = DTYPES[self.stored].torch
        with self.steps.step("materialize", "Slicing and merging") as done:
            write_weights(self.model, self.folder, dtype, done)
            if self.model.correction:
                self.model.correction.save(self.folder)
            self._write_configs(str(dtype).removeprefix("torch."))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(self.folder)
        self._hash_files()
        if self.options.verify:
            materialized = self._verify_weights()
            with self.steps.step("verify_checkpoint", "Comparing the checkpoint with the materialized model"):
                verify.check_checkpoint(self.model, self.folder, dtype)
                answers = verify.checkpoint_logits(self.folder, self._inputs())
                self.parity["stored"] = compare(materialized, answers)

    def write_ir(self) -> None:
        """The graph is converted in its own process while the weights are made and compressed in this one."""
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(_scratch(self.folder, "graph-")))
            job = self._graph_job(scratch)
            conversion = stack.enter_context(GraphConversion(job))
            with self.steps.step("compress", "Slicing, merging and compressing") as done:
                at_once = FORMATS["fp32"] if self.texts else self.options.stored_as
                ratio = 1.0 if self.texts else self.options.ratio
                schemes = compress.schemes(self.model, at_once, ratio)
                matrices = {}
                for name, matrix in compress.compress_matrices(self.model, schemes):
                    matrices[name] = matrix
                    done(len(matrices) / len(schemes))
                self.model.refuse_not_finite()
            materialized = self._verify_weights() if self.options.verify else None
            self._write_configs("float32" if self.stored == "fp32" else "float16")
            with self.steps.step("convert", "Waiting for the converted graph and tokenizer"):
                conversion.wait()
            blocks = attention_matrices(self.model.source.architecture) if self.options.fuse else ()
            if self.texts:
                self._write_calibrated(self.texts, Path(job.graph), matrices, blocks, materialized)
            else:
                with self.steps.step("write", "Writing the IR"):
                    stored_as = self.options.stored_as
                    self.fused = write_ir(Path(job.graph), self.folder, matrices, schemes, stored_as, blocks, ratio)
                self.compression = compression_of(self.model, schemes)
            reference = self._fp32_texts(Path(job.graph)) if self.options.compare_texts else None
        self._hash_files()
        if materialized is not None:
            with self.steps.step("verify_ir", "Comparing the IR with the weights stored in it"):
                if not self.texts:
                    self._check_ir("ir_stored", self.folder / MODEL, matrices, materialized)
                else:
                    self.parity["ir"] = compare(materialized, self._ir_logits(self.folder / MODEL))
        if reference is not None:
            with self.steps.step("compare_texts", "Comparing the IR's texts with those in fp32"):
                texts = text_comparison.generated(self.model, self.folder / MODEL, self.tokenizer, self.generation)
                self.generated = compare_texts(reference, texts, text_comparison.NEW_TOKENS)

    def _fp32_texts(self, graph: Path) -> list[list[int]]:
        with self.steps.step("fp32_texts", "Generating texts in fp32"):
            whole, _held = text_comparison.fp32_ir(self.model, graph)
            return text_comparison.generated(self.model, whole, self.tokenizer, self.generation)

    def write_gguf(self) -> None:
        """llama.cpp is asked where it is installed; that the file holds the right weights is checked without it."""
        from lonas_edge.exporting import gguf_file

        assert self.layout and self.vocabulary
        path = self.folder / gguf_file.file_name(self.stored)
        with self.steps.step("write", "Slicing, merging and writing the GGUF file") as done:
            gguf_file.write_gguf(self.layout, self.model, self.vocabulary, path, self.stored, done)
            self.compression = self.layout.compression(self.stored)
        self._hash_files()
        if not self.options.verify:
            return
        materialized, where = self._verify_weights(), self.model.source.folder
        with self.steps.step("verify_gguf", "Comparing the GGUF file with the materialized model"):
            file = gguf_file.GgufFile(path, self.layout, self.stored)
            stored = verify.file_logits(self.model, file.restored, self._inputs())
            self.parity["gguf_stored"] = compare(materialized, stored)
        if importlib.util.find_spec("llama_cpp"):
            with self.steps.step("verify_llama_cpp", "Comparing llama.cpp's answers with the weights stored in the file"):
                answers = compare(stored, gguf_file.llama_cpp_logits(path, self._inputs()["input_ids"]))
                verify.check_llama_cpp(where, answers, stored, self.stored)
                self.parity["llama_cpp"] = answers
                told = f"{where}: verification failed: llama.cpp's tokenizer is not the model's:"
                raise_all(told, gguf_file.tokenizer_faults(path, self.tokenizer), "Nothing was written. Please report it.")

    def _write_calibrated(
        self,
        texts: Texts,
        graph: Path,
        matrices: dict[str, Compressed],
        blocks: Sequence[Sequence[str]],
        materialized: torch.Tensor | None,
    ) -> None:
        """The whole model is verified before it is compressed: what is compressed on data is no rounding of each weight."""
        model, held = filled(graph, matrices, blocks)
        self.fused = len(matrices) - len(held)
        if materialized is not None:
            with self.steps.step("verify_uncompressed", "Comparing the IR with its weights before it is compressed"):
                self._check_ir("ir_uncompressed", model, matrices, materialized)
        told = f"Compressing on data ({texts.asked.method}), about {texts.bytes_needed / 1e9:.1f} GB"
        with self.steps.step("calibrate", told):
            encoded = texts.encoded(self.tokenizer)
            storage = self.options.stored_as, texts.group_size, self.options.ratio
            model = compress_on_data(model, *storage, texts.asked.method, encoded)
            matrices.clear()
            held.clear()
            self.compression = compression_in(model, compress.outer_matrices(self.model), *storage[:2])
            self.calibrated = texts.record(sum(ids.size for ids in encoded))
        with self.steps.step("write", "Writing the IR"):
            write_compressed(model, self.folder, *storage)

    def _check_ir(self, name: str, ir: "Path | ov.Model", matrices: dict[str, Compressed], materialized: torch.Tensor) -> None:
        """Compare an IR with the weights stored in it; of one on disk, then with the materialized model, too."""
        inputs = self._inputs()
        stored = verify.stored_logits(self.model, matrices, inputs)
        if isinstance(ir, Path):
            matrices.clear()  # the compiled IR takes their room
        logits = self._ir_logits(ir)
        answers = compare(stored, logits)
        verify.check_ir(
            self.model.source.folder, answers, stored, lambda: verify.arithmetic_noise(self.model, inputs, materialized)
        )
        self.parity[name] = answers
        if isinstance(ir, Path):
            self.parity["ir"] = compare(materialized, logits)

    def _ir_logits(self, ir: "Path | ov.Model") -> torch.Tensor:
        try:
            return verify.ir_logits(ir, self._inputs())
        except RuntimeError as error:
            raise refusal("CPU", self.options.weight_format, error) from error

    def _graph_job(self, scratch: Path) -> Job:
        vectors = scratch / "vectors.safetensors"
        names = [name for name, shape in self.model.shapes.items() if len(shape) == 1]
        save_file({name: self.model.tensor(name).contiguous() for name in names}, vectors)
        graph = scratch / "graph" / MODEL
        graph.parent.mkdir()
        tokenizer = str(self.model.source.base.folder) if self.tokenizer is not None else None
        chat = self.model.source.chat_template
        return Job(self.model.config(), str(vectors), str(graph), tokenizer, str(self.folder), chat)

    def _verify_weights(self) -> torch.Tensor:
        with self.steps.step("verify_weights", "Comparing with the activated super-network"):
            inputs = self._inputs()
            reference = verify.super_network_logits(self.model, inputs)
            materialized = verify.materialized_logits(self.model, inputs)
            answers = compare(reference, materialized)
            verify.check_materialized(self.model.source.folder, answers, reference)
            self.parity["materialized"] = answers
        return materialized

    def _inputs(self) -> dict[str, torch.Tensor]:
        architecture = self.model.source.architecture
        return compared_inputs(architecture.family.task, self.tokenizer, architecture.config)

    def _write_configs(self, dtype: str) -> None:
        replace_text(self.folder / "config.json", json.dumps(self.model.config(dtype), indent=2) + "\n")
        server, draft = self.options.server, DRAFT if self.options.draft else None
        for name, content in SERVERS[server].files_beside(draft).items() if server else ():
            replace_text(self.folder / name, content)
        if self.generation is not None:
            replace_text(self.folder / GENERATION, json.dumps(self.generation, indent=2) + "\n")

    def _hash_files(self) -> None:
        """Begin to hash the files, all that are written by now, while they are verified."""
        self.written = self.background.submit(written_files, self.folder)


def _scratch(folder: Path, prefix: str) -> "tempfile.TemporaryDirectory[str]":
    """A directory beside what is published: where a fault holds a mapped file, Windows cannot remove it now."""
    return tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True)


_WRITERS = {  # by the names of `STAGES`
    "checkpoint": _Export.write_checkpoint,
    "ir": _Export.write_ir,
    "gguf": _Export.write_gguf,
}


def _gguf_layout(source: Source, subnetwork: Subnetwork) -> "Layout":
    from lonas_edge.exporting.gguf_file import Layout

    return Layout(source, subnetwork)


def _vocabulary(source: Source, tokenizer: Any) -> "Vocabulary":
    from lonas_edge.exporting.gguf_vocabulary import vocabulary_of

    return vocabulary_of(tokenizer, source.architecture.config.vocab_size, str(source.base.folder))


def _require_generator(source: Source, tokenizer: Any, server: str) -> None:
    source.architecture.require(CAUSAL_LM, f"--server {server}")
    if tokenizer is None:
        raise LonasEdgeError(
            f"{source.base.folder}: no tokenizer; --server {server} needs one. Save the model's tokenizer there."
        )


def _stored(source: Source, options: ExportOptions) -> str:
    """How weights will be stored: the IR's format, the checkpoint's dtype, or the GGUF file's type."""
    if options.stage == "gguf":
        return options.gguf_type
    return options.weight_format if options.stage == "ir" else options.dtype or _base_dtype(source)


def _most_bytes(source: Source, subnetwork: Subnetwork, stored: str, options: ExportOptions) -> int:
    """What the weights take at most: all of them in the largest of the formats that they may get."""
    main = "fp16" if stored == "bf16" else stored
    if options.ratio < 1:
        main = FORMATS[stored].outer or stored
    return source.sizes(subnetwork).bytes[main]


def _base_dtype(source: Source) -> str:
    """The base's dtype as its config.json names it; fp32 where it does not."""
    return dtype_of(source.architecture.config.dtype).name


def _hashes(model: MaterializedModel) -> dict[str, dict[str, str]]:
    source = model.source
    base = [source.base.folder / "config.json", *model.base.files]
    found = {"base": {path.name: sha256(path) for path in base}}
    if source.adapter:
        files = [source.adapter.folder / adapters.CONFIG, adapters.adapter_file(source.adapter.folder)]
        files += [source.adapter.folder / CORRECTION] if source.solved else []
        found["adapter"] = {path.name: sha256(path) for path in files}
    return found


def _manifest(job: _Export, hashes: dict[str, dict[str, str]], solved: Solved | None) -> Manifest:
    model, options, source = job.model, job.options, job.model.source
    subnetwork, searched = model.subnetwork, model.subnetwork.origin
    if searched and searched.super_adapter != hashes.get("adapter"):
        searched = None  # a search of another adapter with the same search space

    def origin(located: Located, key: str) -> Origin:
        return Origin(located.name, located.revision, hashes[key])

    return Manifest(
        stage=options.stage,
        weight_format=job.stored,
        subnetwork=Chosen(subnetwork.name, source.space.hash if subnetwork.widths else None, searched),
        draft=Draft.of(job.folder / DRAFT) if options.draft else None,
        base=origin(source.base, "base"),
        adapter=origin(source.adapter, "adapter") if source.adapter else None,
        solved=solved,
        pipeline=source.architecture.family.task.pipeline_tag,
        task=source.training.task if source.training else None,
        prompt=source.training.prompt.name if source.training and source.training.prompt else None,
        sizes=BothSizes(source.sizes(source.unpruned), source.sizes(subnetwork)),
        layers=picture_of(subnetwork),
        fused=job.fused,
        compression=job.compression,
        calibrated=job.calibrated,
        verified=options.verify,
        parity=job.parity,
        texts=job.generated,
        steps=job.steps.taken,
        graph_process_peak_rss_bytes=peak_memory_of_children() if options.stage == "ir" else None,
        versions=versions(_PACKAGES + (_GGUF_PACKAGES if options.stage == "gguf" else ())),
        files=job.written.result() if job.written else None,
    )
