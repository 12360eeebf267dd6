"""Export OpenVINO IR (`--stage ir`): a process converts the graph while this one makes and compresses the weights."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from safetensors.torch import save_file

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.exporting import verify
from lonas_edge.exporting.calibration import CalibrationPrompts
from lonas_edge.exporting.job import Job, Outcome, scratch, verify_weights, write_configs
from lonas_edge.exporting.manifest import Calibrated, Compression, shares
from lonas_edge.formats import FORMATS, HEAD_METHOD, WeightFormat
from lonas_edge.ir import MODEL, compress, runtime
from lonas_edge.ir.calibrated import compress_head_on_data, compress_on_data
from lonas_edge.ir.compress import Compressed, Scheme
from lonas_edge.ir.convert import Storage, filled, write_ir, write_model
from lonas_edge.ir.fuse import attention_matrices
from lonas_edge.ir.graph import Conversion, GraphConversion
from lonas_edge.ir.runtime import ACTIVATION_GROUP
from lonas_edge.network.divergence import Parity
from lonas_edge.network.materialize import MaterializedModel

Matrices = dict[str, Compressed]  # by tensor name


@dataclass(frozen=True)
class _Written:
    """A written IR: matrices that are part of others, storage of layers and head, data of the compression, comparisons."""

    fused: int
    compression: tuple[Compression, ...]
    head: Compression | None = None
    calibrated: Calibrated | None = None
    parity: dict[str, Parity] = field(default_factory=dict)


def export_ir(job: Job) -> Outcome:
    """Write and verify an IR."""
    options, model = job.options, job.model
    parity: dict[str, Parity] = {}
    materialized = None
    with ExitStack() as stack:
        conversion = _conversion(job, Path(stack.enter_context(scratch(job.folder, "graph-"))))
        process = stack.enter_context(GraphConversion(conversion))
        schemes, matrices = _compress(job)
        if options.verify:
            materialized, parity["materialized"] = verify_weights(job)
        write_configs(job, "float32" if job.stored == "fp32" else "float16")
        with job.steps.step("convert", "Waiting for the converted graph and tokenizer"):
            process.wait()
        graph = Path(conversion.graph)
        blocks = attention_matrices(model.source.architecture) if options.fuse else ()
        if job.calibration:
            written = _write_calibrated(job, job.calibration, graph, schemes, matrices, blocks, materialized)
        else:
            with job.steps.step("write", "Writing the IR"):
                layers = {name: schemes[name] for name in compress.inner_matrices(model)}
                fused = write_ir(graph, job.folder, matrices, layers, options.stored_as, blocks, options.ratio)
            written = _Written(fused, _compression_of(model, schemes), _head_of(job, schemes))
    files = job.hash_files()
    parity |= written.parity
    if materialized is not None:
        with job.steps.step("verify_ir", "Comparing the IR with the weights stored in it"):
            if written.calibrated:  # verified before the compression, after which no weight is rounded by itself
                logits = _ir_logits(job, job.folder / MODEL)
            else:
                parity["ir_stored"], logits = _verified(job, job.folder / MODEL, matrices, materialized)
            parity["ir"] = job.compare(materialized, logits)
            if group := runtime.stored(job.folder, ACTIVATION_GROUP):
                parity["ir_groups"] = job.compare(
                    logits, _ir_logits(job, job.folder / MODEL, {**verify.FP32, ACTIVATION_GROUP: group})
                )
                compared = parity["ir_groups"]
                if not compared.distance <= runtime.MAX_OF_GROUP[compared.compared]:  # also of NaN
                    job.steps.report(
                        f"{ACTIVATION_GROUP} {group} changes the outputs too much and is not stored\nVerifying", None
                    )
                    files.result()  # Windows replaces no file that is being read
                    runtime.forget(job.folder, ACTIVATION_GROUP)
                    files = job.hash_files()
    return Outcome(files, parity, written.compression, written.head, written.fused, written.calibrated)


def _conversion(job: Job, folder: Path) -> Conversion:
    """Write the parameters that are no matrices, which the conversion needs; matrices are filled in afterwards."""
    vectors, graph = folder / "vectors.safetensors", folder / "graph" / MODEL
    names = [name for name, shape in job.model.shapes.items() if len(shape) != 2]
    save_file({name: job.model.tensor(name).contiguous() for name in names}, vectors)
    graph.parent.mkdir()
    source = job.model.source
    tokenizer = str(source.base.folder) if job.tokenizer is not None else None
    max_length = job.pooling.max_length if job.pooling else None
    return Conversion(
        job.model.config(), str(vectors), str(graph), tokenizer, str(job.folder), source.chat_template, max_length
    )


def _compress(job: Job) -> tuple[dict[str, Scheme], Matrices]:
    """Make every matrix and compress it; to fp32 what is compressed on data later."""
    with job.steps.step("compress", "Slicing, merging and compressing") as done:
        if job.calibration and job.calibration.method:
            schemes = compress.schemes(job.model, FORMATS["fp32"])
        else:
            schemes = compress.schemes(job.model, job.options.stored_as, job.options.ratio)
        if job.calibration and job.calibration.head:
            schemes[compress.head_matrix(job.model)] = Scheme(FORMATS["fp32"])
        matrices: Matrices = {}
        overflowed: list[str] = []
        for name, matrix in compress.compress_matrices(job.model, schemes):
            matrices[name] = matrix
            if matrix.overflowed:
                overflowed.append(name)
            done(len(matrices) / len(schemes))
        job.model.refuse_not_finite()
        raise_all("The weights do not fit fp16:", overflowed, "Choose --weight-format fp32 or int8_sym.")
    return schemes, matrices


def _write_calibrated(
    job: Job,
    calibration: CalibrationPrompts,
    graph: Path,
    schemes: Mapping[str, Scheme],
    matrices: Matrices,
    blocks: Sequence[Sequence[str]],
    materialized: torch.Tensor | None,
) -> _Written:
    """Fill the graph, verify it, compress on data what is fp32, and write it."""
    parity = {}
    method, head, matrix = calibration.method, calibration.head, compress.head_matrix(job.model)
    ir, held = filled(graph, matrices, blocks)
    fused = len(matrices) - len(held)
    if materialized is not None:
        with job.steps.step("verify_uncompressed", "Comparing the IR with its weights before compression on data"):
            parity["ir_uncompressed"], _ = _verified(job, ir, matrices, materialized)
    shown = f"Compressing on data ({method or HEAD_METHOD}), about {calibration.bytes_needed / 1e9:.1f} GB"
    layers = {name: schemes[name] for name in compress.inner_matrices(job.model)}
    weight_format, ratio = job.options.stored_as, job.options.ratio
    compression, storage = _compression_of(job.model, schemes), Storage.of(layers, weight_format, ratio)
    groups, widths = {scheme.group_size for scheme in layers.values()}, {job.model.shapes[name][1] for name in layers}
    with job.steps.step("calibrate", shown):
        encoded = calibration.encoded(job.tokenizer)
        if method:
            storage = Storage(weight_format, calibration.group_size, ratio)
            ir = compress_on_data(ir, weight_format, storage.group_size, ratio, method, encoded, matrix if head else None)
            compression = _compression_in(ir, compress.outer_matrices(job.model), weight_format, storage.group_size)
            groups = {storage.group_size}
        if head:
            ir = compress_head_on_data(ir, matrix, head, encoded)
            groups, widths = {*groups, head.group_size}, {*widths, job.model.shapes[matrix][1]}
        if method:
            matrices.clear()
            held.clear()
    with job.steps.step("write", "Writing the IR"):
        write_model(ir, job.folder, storage, widths, groups)
    calibrated = calibration.record(sum(ids.size for ids in encoded))
    of_head = Compression(head.weight_format.name, head.group_size, 1.0) if head else None
    return _Written(fused, compression, of_head, calibrated=calibrated, parity=parity)


def _verified(job: Job, ir: "Path | ov.Model", matrices: Matrices, materialized: torch.Tensor) -> tuple[Parity, torch.Tensor]:
    """Compare an IR with the weights stored in it, and fail if they differ; return the comparison and the IR's logits."""
    inputs = job.inputs()
    stored = verify.stored_logits(job.model, matrices, inputs)
    if isinstance(ir, Path):
        matrices.clear()  # makes room for the compiled IR
    logits = _ir_logits(job, ir)
    parity = job.compare(stored, logits)

    def noise() -> float:
        return verify.arithmetic_noise(job.model, inputs, materialized)

    verify.check_ir(job.model.source.folder, parity, stored, noise)
    return parity, logits


def _ir_logits(job: Job, ir: "Path | ov.Model", properties: Mapping[str, str] = verify.FP32) -> torch.Tensor:
    try:
        return verify.ir_logits(ir, job.inputs(), properties)
    except RuntimeError as error:
        reason = one_line((str(error).strip().splitlines() or [type(error).__name__])[-1])
        raise LonasEdgeError(
            f"{job.model.source.folder}: OpenVINO does not run an IR in {job.options.weight_format} on this CPU: {reason}. "
            "Choose another --weight-format."
        ) from error


def _compression_of(model: MaterializedModel, schemes: Mapping[str, Scheme]) -> tuple[Compression, ...]:
    """Return the storage of the layers' weights, the largest share first."""
    counts: Counter[tuple[str, int | None]] = Counter()
    for name, shape in compress.inner_matrices(model).items():
        counts[schemes[name].weight_format.name, schemes[name].group_size] += math.prod(shape)
    return shares(counts)


def _head_of(job: Job, schemes: Mapping[str, Scheme]) -> Compression | None:
    """Return the storage of a head whose format was requested."""
    scheme = schemes[compress.head_matrix(job.model)] if job.options.head_format else None
    return Compression(scheme.weight_format.name, scheme.group_size, 1.0) if scheme else None


def _compression_in(ir: Any, outer: tuple[str, ...], weight_format: WeightFormat, group_size: int) -> tuple[Compression, ...]:
    """Read the same from an IR that NNCF compressed."""
    rest = FORMATS[weight_format.outer or weight_format.name]
    formats: dict[int, tuple[str, int | None]] = {
        rest.bits: (rest.name, None),
        weight_format.bits: (weight_format.name, group_size),
    }
    counts: Counter[tuple[str, int | None]] = Counter()
    for node in ir.get_ops():
        name = node.friendly_name
        if node.get_type_name() != "Constant" or not name.endswith(".weight") or name in outer or math.prod(node.shape) < 2:
            continue
        if scheme := formats.get(node.get_element_type().bitwidth):
            counts[scheme] += math.prod(node.shape)
    return shares(counts)
