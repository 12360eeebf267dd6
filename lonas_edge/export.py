"""Export: the road from a super-adapter to a directory that every OpenVINO client runs. Here the steps meet."""

import importlib.metadata
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from lonas_edge import adapters, complexity, verify
from lonas_edge.checkpoints import OutputDirectory, sha256
from lonas_edge.materialize import DTYPES, MaterializedModel, write_weights
from lonas_edge.model_card import model_card
from lonas_edge.source import Source
from lonas_edge.subnetwork import Subnetwork

MANIFEST, SUBNETWORK = "lonas_edge.json", "subnetwork.json"
_PACKAGES = ("lonas-edge", "torch", "transformers", "peft", "optimum-intel", "nncf", "openvino", "openvino-tokenizers")

_ROOM_BYTES = 50_000_000  # tokenizers and temporary files

WeightFormat = Literal["fp32", "fp16", "int8", "int4"]
Stage = Literal["checkpoint", "ir"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Attributes:
        weight_format: How the IR's weights are stored.
        stage: `ir`, or `checkpoint` to stop at the sliced and merged Hugging Face checkpoint.
        dtype: Stored dtype of a checkpoint, fp32, fp16 or bf16; that of the base when None.
        verify: Whether to compare logits and refuse a model beyond the tolerance.
        overwrite: Whether an existing output is replaced.
    """

    weight_format: WeightFormat = "int8"
    stage: Stage = "ir"
    dtype: str | None = None
    verify: bool = True
    overwrite: bool = False


@dataclass
class _Steps:
    """Seconds of each step, and the largest resident memory of this process by the end of it, in bytes."""

    report: Progress
    taken: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, shown: str) -> Iterator[None]:
        self.report(shown)
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.taken[name] = {"seconds": round(time.perf_counter() - start, 3), "peak_rss_bytes": peak}


def export(
    source: Source, subnetwork: Subnetwork, output: Path, options: ExportOptions, report: Progress = lambda _: None
) -> dict[str, Any]:
    """Export a sub-network.

    Args:
        source: Base model, adapter and search space.
        subnetwork: The chosen widths.
        output: The directory to write; it appears whole or not at all.
        options: What to write.
        report: Called with the name of each step as it starts.

    Returns:
        The manifest, as written to `lonas_edge.json`.

    Raises:
        LonasEdgeError: If the inputs do not fit, the output cannot be written, or verification fails.
    """
    directory = OutputDirectory(output, options.overwrite)
    sizes = complexity.measure(source.elasticity, source.ranks(), subnetwork.widths, complexity.DEFAULT_SEQUENCE_LENGTH)
    stored = options.weight_format if options.stage == "ir" else "fp32"
    directory.check(sizes.bytes[stored] + _ROOM_BYTES)
    steps = _Steps(report)
    with directory.open() as folder, ThreadPoolExecutor(1, "hash") as background:
        run = _export_ir if options.stage == "ir" else _export_checkpoint
        parity, model, hashes = run(source, subnetwork, folder, options, steps, background)
        manifest = _manifest(model, options, parity, hashes.result(), steps)
        (folder / SUBNETWORK).write_text(json.dumps(subnetwork.to_json(source.space), indent=2) + "\n")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(manifest))
    return manifest


_Result = tuple[dict[str, Any], MaterializedModel, Future]


def _export_checkpoint(
    source: Source,
    subnetwork: Subnetwork,
    folder: Path,
    options: ExportOptions,
    steps: _Steps,
    background: ThreadPoolExecutor,
) -> _Result:
    from lonas_edge.ir.convert import load_tokenizer

    with steps.step("validate", "Checking base and adapter"):
        model = MaterializedModel(source, subnetwork)
        tokenizer = load_tokenizer(source.base.folder)
        dtype = options.dtype or _base_dtype(model)
    hashes = background.submit(_hashes, source, model)
    with steps.step("materialize", "Slicing and merging"):
        write_weights(model, folder, DTYPES[dtype])
        _write_configs(model, folder, str(DTYPES[dtype]).removeprefix("torch."))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    if not options.verify:
        return {}, model, hashes
    with steps.step("verify", "Comparing with the activated super-network"):
        ids = verify.prompts(tokenizer, source.architecture.config.vocab_size)
        reference = verify.super_network_logits(model, ids)
        parity = verify.compare(reference, verify.checkpoint_logits(folder, ids))
        verify.check_checkpoint(parity, dtype)
    return {"checkpoint": parity.to_json()}, model, hashes


def _export_ir(
    source: Source,
    subnetwork: Subnetwork,
    folder: Path,
    options: ExportOptions,
    steps: _Steps,
    background: ThreadPoolExecutor,
) -> _Result:
    from lonas_edge.ir.graph import GraphConversion

    conversion = GraphConversion()
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="graph-") as scratch:
            return _fill_ir(source, subnetwork, folder, Path(scratch), options, steps, background, conversion)
    finally:
        conversion.stop()


def _fill_ir(
    source: Source,
    subnetwork: Subnetwork,
    folder: Path,
    scratch: Path,
    options: ExportOptions,
    steps: _Steps,
    background: ThreadPoolExecutor,
    conversion: Any,
) -> _Result:
    """The graph is converted in its own process while the weights are made and compressed in this one."""
    import openvino as ov

    from lonas_edge.ir import compress, convert

    with steps.step("validate", "Checking base and adapter"):
        model = MaterializedModel(source, subnetwork)
        vectors = {name: model.tensor(name) for name, shape in model.shapes.items() if len(shape) == 1}
        save_file({name: tensor.contiguous() for name, tensor in vectors.items()}, scratch / "vectors.safetensors")
        graph = scratch / "graph" / convert.MODEL
        graph.parent.mkdir()
        conversion.start(model.config(), scratch / "vectors.safetensors", graph)
        tokenizer = convert.load_tokenizer(source.base.folder)
    hashes = background.submit(_hashes, source, model)
    with steps.step("compress", "Slicing, merging and compressing"):
        schemes = compress.schemes(model, options.weight_format)
        matrices = dict(compress.compress_matrices(model, schemes))
        model.refuse_not_finite()
    parity: dict[str, Any] = {}
    if options.verify:
        with steps.step("verify_checkpoint", "Comparing with the activated super-network"):
            ids = verify.prompts(tokenizer, source.architecture.config.vocab_size)
            reference = verify.materialized_logits(model, ids)
            checkpoint = verify.compare(verify.super_network_logits(model, ids), reference)
            verify.check_checkpoint(checkpoint, "fp32")
            parity["checkpoint"] = checkpoint.to_json()
    with steps.step("tokenizer", "Converting the tokenizer"):
        if tokenizer is not None:
            convert.save_tokenizer(tokenizer, folder)
        _write_configs(model, folder, "float32" if options.weight_format == "fp32" else "float16")
    with steps.step("convert", "Converting the graph"):
        conversion.wait()
    with steps.step("write", "Writing the IR"):
        whole = convert.fill_graph(graph, matrices)
        convert.record_format(whole, schemes, options.weight_format)
        ov.save_model(whole, folder / convert.MODEL, compress_to_fp16=False)
        del whole, matrices
    if options.verify:
        with steps.step("verify_ir", "Comparing the IR with the materialized model"):
            answers = verify.compare(reference, verify.ir_logits(folder / convert.MODEL, ids))
            verify.check_ir(answers, options.weight_format)
            parity["ir"] = answers.to_json()
    return parity, model, hashes


def _base_dtype(model: MaterializedModel) -> str:
    stored = model.base.dtypes[f"{model.source.architecture.family.embedding}.weight"]
    return {"float32": "fp32", "float64": "fp32", "float16": "fp16", "bfloat16": "bf16"}[stored]


def _write_configs(model: MaterializedModel, folder: Path, dtype: str) -> None:
    (folder / "config.json").write_text(json.dumps(model.config(dtype), indent=2) + "\n")
    generation = model.source.base.folder / "generation_config.json"
    if generation.exists():
        (folder / generation.name).write_bytes(generation.read_bytes())


def _hashes(source: Source, model: MaterializedModel) -> dict[str, dict[str, str]]:
    base = [source.base.folder / "config.json", *model.base.files]
    found = {"base": {path.name: sha256(path) for path in base}}
    if source.adapter:
        files = [source.adapter.folder / adapters.CONFIG, adapters.adapter_file(source.adapter.folder)]
        found["adapter"] = {path.name: sha256(path) for path in files}
    return found


def versions() -> dict[str, str]:
    """Installed versions of what an export depends on."""
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _manifest(
    model: MaterializedModel, options: ExportOptions, parity: dict[str, Any], hashes: dict[str, Any], steps: _Steps
) -> dict[str, Any]:
    source, widths = model.source, model.subnetwork.widths

    def sizes(chosen: tuple[int, ...] | None) -> dict[str, Any]:
        seq_len = source.space.sequence_length or complexity.DEFAULT_SEQUENCE_LENGTH
        return complexity.measure(source.elasticity, source.ranks(), chosen, seq_len, model.untied).to_json()

    def described(located: Any, key: str) -> dict[str, Any] | None:
        return located and {"name": located.name, "revision": located.revision, "sha256": hashes[key]}

    return {
        "format": 1,
        "stage": options.stage,
        "weight_format": options.weight_format if options.stage == "ir" else options.dtype or _base_dtype(model),
        "subnetwork": {"name": model.subnetwork.name, "search_space": source.space.hash if widths else None},
        "base": described(source.base, "base"),
        "adapter": described(source.adapter, "adapter"),
        "sizes": {"unpruned": sizes(None), "subnetwork": sizes(widths)},
        "verified": options.verify,
        "parity": parity,
        "steps": steps.taken,
        "child_peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "versions": versions(),
    }
