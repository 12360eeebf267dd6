"""Export OpenVINO IR (`--stage ir`): a process converts the graph while this one makes and compresses the weights."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import openvino as ov
import torch
from safetensors.torch import save_file

from lonas_edge.errors import LonasEdgeError, one_line, raise_all
from lonas_edge.exporting import verify
from lonas_edge.exporting.calibration import Calibration, read_calibration
from lonas_edge.exporting.job import Job, Outcome
from lonas_edge.exporting.manifest import Compression
from lonas_edge.exporting.parity import Parity
from lonas_edge.formats import FORMATS
from lonas_edge.ir import MODEL
from lonas_edge.ir.compress import Compressed, compress_matrices
from lonas_edge.ir.fuse import attention_matrices
from lonas_edge.ir.graph import Conversion, GraphConversion
from lonas_edge.ir.schemes import Scheme, check_group_size, choose_schemes, head_matrix, layer_matrices
from lonas_edge.ir.write import ACTIVATION_GROUP, Storage, fill, read_property, remove_property, write_model
from lonas_edge.network.materialize import MaterializedModel

Matrices = dict[str, Compressed]  # by tensor name


def export_ir(job: Job) -> Outcome:
    """Write and verify an IR.

    Each matrix is compressed as soon as it is made. What is compressed on data (`--calibration`) stays fp32 until the graph has
    all matrices; the IR is then verified before the compression, after which no weight is rounded by itself.
    """
    model, options, step = job.model, job.options, job.steps.step
    weight_format, parity, materialized = options.stored_as, dict[str, Parity](), None
    check_group_size(model, weight_format, options.group_size)
    calibration = read_calibration(model, job.tokenizer, options)
    with (
        # Windows keeps mapped files, so errors of the removal are ignored
        TemporaryDirectory(dir=job.folder, prefix="graph-", ignore_cleanup_errors=True) as temporary,
        GraphConversion(_conversion(job, Path(temporary))) as conversion,
    ):
        schemes, head = _schemes(job, calibration)
        with step("compress", "Slicing, merging and compressing") as done:
            matrices = _compress(model, schemes, done)
        if options.verify:
            materialized, parity["materialized"] = job.verify_weights()
        with step("convert", "Waiting for the converted graph and tokenizer"):
            graph = conversion.wait()
            ir, held = fill(graph, matrices, attention_matrices(model.subnetwork) if options.fuse else ())
        fused, widths = len(matrices) - len(held), {matrix.shape[1] for matrix in matrices.values()}
        groups = {head.group_size, *(scheme.group_size for scheme in schemes.values())}
        storage = Storage.of({name: schemes[name] for name in layer_matrices(model)}, weight_format)
        compression = _compression_of(model, schemes)
        if calibration:
            if materialized is not None:
                with step("verify_uncompressed", "Comparing the IR with its weights before compression on data"):
                    parity["ir_uncompressed"], _ = _compare_with_stored(job, ir, matrices, materialized)
            with step("calibrate", f"Compressing on data, about {calibration.bytes_needed / 1e9:.1f} GB"):
                ir = calibration.compress(ir, model, options)
            if calibration.layers:
                matrices.clear()  # fp32, and no longer part of the IR
                held.clear()
                storage = Storage(weight_format, calibration.group_size)
                compression = (Compression(weight_format.name, calibration.group_size, 1.0),)
                groups.add(calibration.group_size)
        with step("write", "Writing the IR"):
            write_model(ir, job.folder, storage, widths, groups)
        del ir, held  # makes room for the compiled IR
    files = job.hash_files()
    if materialized is not None:
        with step("verify_ir", "Comparing the IR with the weights stored in it"):
            if not _verify_written(job, materialized, None if calibration else matrices, parity):
                files.result()  # Windows replaces no file that is being read
                remove_property(job.folder, ACTIVATION_GROUP)
                files = job.hash_files()
    of_head = Compression(head.weight_format.name, head.group_size, 1.0) if options.head_format else None
    return Outcome(files, parity, compression, of_head, fused, calibration.record if calibration else None)


def _conversion(job: Job, folder: Path) -> Conversion:
    """Write the parameters that are no matrices, which the conversion needs; matrices are filled in afterwards."""
    vectors, graph, source = folder / "vectors.safetensors", folder / "graph" / MODEL, job.model.source
    names = [name for name, shape in job.model.shapes.items() if len(shape) != 2]
    save_file({name: job.model.tensor(name).contiguous() for name in names}, vectors)
    graph.parent.mkdir()
    return Conversion(
        job.model.config(),
        vectors,
        graph,
        source.base.folder if job.tokenizer is not None else None,
        job.folder,
        source.prompt_record.chat if getattr(job.tokenizer, "chat_template", None) else "",
        job.pooling.max_length if job.pooling else None,
    )


def _schemes(job: Job, calibration: Calibration | None) -> tuple[dict[str, Scheme], Scheme]:
    """Choose how each matrix is stored when it is made (fp32 if it is compressed on data later), and the head in the end."""
    fp32, matrix = Scheme(FORMATS["fp32"]), head_matrix(job.model)
    made = fp32.weight_format if calibration and calibration.layers else job.options.stored_as
    schemes = choose_schemes(job.model, made)
    head = schemes[matrix]
    if calibration and calibration.head:
        schemes[matrix], head = fp32, calibration.head
    return schemes, head


def _compress(model: MaterializedModel, schemes: Mapping[str, Scheme], done: Callable[[float], None]) -> Matrices:
    """Make every matrix and compress it."""
    matrices: Matrices = {}
    for name, matrix in compress_matrices(model, schemes):
        matrices[name] = matrix
        done(len(matrices) / len(schemes))
    model.refuse_not_finite()
    overflowed = [name for name, matrix in matrices.items() if matrix.overflowed]
    raise_all("The weights do not fit fp16:", overflowed, "Choose --weight-format fp32 or int8_sym.")
    return matrices


def _verify_written(job: Job, materialized: torch.Tensor, matrices: Matrices | None, parity: dict[str, Parity]) -> bool:
    """Compare the written IR with the weights stored in it (`matrices`, unless it was compressed on data) and with the model.

    Returns:
        Whether the group of INT8 activations that is stored in the IR keeps the outputs.
    """
    path = job.folder / MODEL
    if matrices is None:
        logits = _ir_logits(job, path)
    else:
        parity["ir_stored"], logits = _compare_with_stored(job, path, matrices, materialized)
    parity["ir"] = job.compare(materialized, logits)
    group = read_property(job.folder, ACTIVATION_GROUP)
    if not group:
        return True
    compared = parity["ir_groups"] = job.compare(logits, _ir_logits(job, path, {**verify.FP32, ACTIVATION_GROUP: group}))
    if compared.distance <= verify.MAX_OF_GROUP[compared.compared]:  # false for NaN
        return True
    job.steps.report(f"{ACTIVATION_GROUP} {group} changes the outputs too much and is not stored\nVerifying", None)
    return False


def _compare_with_stored(
    job: Job, ir: "Path | ov.Model", matrices: Matrices, materialized: torch.Tensor
) -> tuple[Parity, torch.Tensor]:
    """Compare an IR with the weights stored in it, and fail if they differ; return the comparison and the IR's logits."""
    stored = verify.stored_logits(job.model, matrices, job.inputs())
    if isinstance(ir, Path):
        matrices.clear()  # makes room for the compiled IR
    logits = _ir_logits(job, ir)
    parity = job.compare(stored, logits)
    noise = partial(verify.arithmetic_noise, job.model, job.inputs(), materialized)
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
    for name, shape in layer_matrices(model).items():
        counts[schemes[name].weight_format.name, schemes[name].group_size] += math.prod(shape)
    return tuple(Compression(*scheme, count / counts.total()) for scheme, count in counts.most_common())
