"""Convert a model's graph to IR without its weights, and its tokenizer, in a separate process.

optimum-intel converts the model; every weight matrix of the graph becomes an input of the matrix's name. The matrices are
untouched zero pages meanwhile, so converting a 7B model takes 1 GB. Norms and biases are real, since they may be folded.

Conversion patches transformers and is single-threaded Python, so it runs while the parent slices, merges and compresses.

Workarounds, in this process only (optimum-intel 2.2, transformers 5.5):
- `export_from_model` writes the converted model and does not return it: its `save_model` is intercepted.
- It traces the model again as a check, a third of the time; `verify.py` compares logits instead, a sharper check.
- It gives every layer's cache the same number of heads: `_dummy_caches` corrects these.
- Graphs of decoders without a cache have positions as an input, which its own clients do not pass: `_count_positions`.
- It refuses Gemma above transformers 5.0; the converted model is correct (`tests/exporting/test_export_families.py`).
"""

import gc
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import openvino
import torch
from openvino import opset13 as ops
from optimum.exporters.openvino import convert as optimum_convert
from optimum.exporters.openvino import export_from_model, model_configs
from optimum.exporters.tasks import TasksManager
from optimum.intel import OVConfig, OVWeightQuantizationConfig
from optimum.utils.input_generators import DummyPastKeyValuesGenerator
from safetensors.torch import load_file

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import Family, ModelKind
from lonas_edge.network.depth import renumber_caches
from lonas_edge.network.modeling import empty_model, lazy_zeros, set_parameter
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.processes import end_with_parent, starting_process
from lonas_edge.space.architecture import Architecture

SPAWN = "LONAS_EDGE_SPAWN"  # an environment variable; with 1 Linux does what other systems do, for tests


def forks() -> bool:
    """Return whether the process is forked, which saves the imports (5 s, 0.5 GB); only Linux can fork with threads."""
    return sys.platform == "linux" and os.environ.get(SPAWN) != "1"


@dataclass(frozen=True)
class Conversion:
    """Inputs and outputs of the process.

    Attributes:
        config: Content of the materialized model's config.json.
        vectors: A safetensors file with its parameters that are no matrices, fp32.
        graph: The IR's .xml file, to be written.
        tokenizer: Directory of the tokenizer, or None.
        folder: An existing directory for the converted tokenizer.
        chat_template: Chat template of the tokenizer; its own when None.
        max_length: Number of tokens at which the tokenizer cuts texts; its own when None.
    """

    config: dict[str, Any]
    vectors: Path
    graph: Path
    tokenizer: Path | None
    folder: Path
    chat_template: str | None = None
    max_length: int | None = None


class GraphConversion:
    """The process, as its parent sees it. Leaving the `with` block ends it."""

    def __init__(self, conversion: Conversion):
        """Start the conversion."""
        self._graph, self._log = conversion.graph, conversion.graph.with_suffix(".log")
        self._forked = forks()
        context = multiprocessing.get_context("fork") if self._forked else multiprocessing.get_context("spawn")
        parent = os.getpid() if self._forked else None
        self._process = context.Process(target=_run, args=(conversion, self._log, parent), daemon=True)
        if self._forked:
            gc.freeze()  # a collection in the parent would touch, so copy, every page the two share
        with starting_process():
            self._process.start()

    def wait(self) -> Path:
        """Wait for the IR, and return its path; if the conversion failed, raise LonasEdgeError with the end of its log."""
        self._process.join()
        if self._process.exitcode != 0:
            log = self._log.read_text(encoding="utf-8", errors="replace")[-2000:] if self._log.exists() else ""
            raise LonasEdgeError(f"The conversion to OpenVINO failed (exit code {self._process.exitcode}):\n{log}")
        return self._graph

    def __enter__(self) -> Self:
        """Return the running process."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process if it is still running."""
        self._process.kill()
        self._process.join()
        if self._forked:
            gc.unfreeze()


def _run(conversion: Conversion, log: Path, parent: int | None) -> None:
    """Convert with one thread, without garbage collection, the output in a file; never return to the parent's code."""
    try:
        with log.open("w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
    except FileNotFoundError:  # the parent was interrupted meanwhile, and has removed the directory
        os._exit(1)
    if parent is None:
        threading.Thread(target=_wait_for_parent, daemon=True).start()
    else:
        end_with_parent(parent)
    gc.disable()  # it lives for seconds
    code = 1
    try:
        torch.set_num_threads(1)  # OpenMP's other threads stayed in the parent
        family = convert(conversion.config, conversion.vectors, conversion.graph)
        if conversion.tokenizer is not None:
            tokenizer = load_tokenizer(conversion.tokenizer, conversion.chat_template, conversion.max_length)
            _save_tokenizer(tokenizer, conversion.folder, family.kind)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)  # nothing is left to clean up, and unloading torch takes a second


def _save_tokenizer(tokenizer: Any, folder: Path, kind: ModelKind) -> None:
    """Write a transformers tokenizer's files, and OpenVINO models of it for clients without transformers."""
    tokenizer.save_pretrained(folder)
    optimum_convert.export_tokenizer(tokenizer, folder, task=kind.conversion)
    if not (folder / "openvino_tokenizer.xml").exists():
        raise LonasEdgeError(
            f"{type(tokenizer).__name__}: openvino_tokenizers cannot express this tokenizer. Save it as a fast tokenizer "
            "(tokenizer.json) in the base model's directory."
        )


def _wait_for_parent() -> None:
    """End this process when its parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _model_without_matrices(config: dict[str, Any], vectors: Path) -> Any:
    model = empty_model(config)
    values = load_file(vectors)
    for index, (name, parameter) in enumerate(list(model.named_parameters())):
        if parameter.dim() == 2:
            values[name] = lazy_zeros(parameter.shape)
            values[name].view(-1)[0] = index + 1  # equal constants would be merged
        set_parameter(model, name, values[name])
    model.tie_weights()
    return model


def _matrices_to_inputs(model: Any, names: list[str]) -> None:
    """Replace each weight matrix by an input of its name, so that writing the graph writes no matrix."""
    wanted = {f"self.{name}": name for name in names}
    inputs = []
    for node in model.get_ordered_ops():
        name = wanted.pop(node.friendly_name, None) if node.get_type_name() == "Constant" else None
        if name is None:
            continue
        matrix = ops.parameter(list(node.shape), node.get_element_type(), name=name)
        matrix.output(0).get_tensor().set_names({name})
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(matrix.output(0))
        inputs.append(matrix)
    if wanted:
        raise RuntimeError(f"the converted graph has no constants for {sorted(wanted.values())}")
    model.add_parameters(inputs)


def _dummy_caches(heads: list[int]) -> None:
    """Give the caches of the trace each layer's own number of heads; optimum-intel has one number for all."""

    def narrow(stock: Callable[..., Any]) -> Callable[..., Any]:
        def generate(self: Any, input_name: str, *args: Any, **kwargs: Any) -> Any:
            caches = stock(self, input_name, *args, **kwargs)
            if torch.is_tensor(caches[0]):  # states, then keys and values in turn
                states = len(caches) - 2 * len(heads)
                pairs = [part[:, : heads[index // 2]] for index, part in enumerate(caches[states:])]
                return [*caches[:states], *pairs]
            return [tuple(part[:, :own] for part in cache) for cache, own in zip(caches, heads, strict=True)]

        return generate

    pending = [DummyPastKeyValuesGenerator]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "generate" in vars(kind):
            kind.generate = narrow(kind.generate)


def _count_positions(model_type: str, kind: ModelKind) -> None:
    """Let the model count its positions: clients of embedding models and classifiers pass none, as decoders' graphs want."""
    registered = TasksManager.get_exporter_config_constructor("openvino", model_type=model_type, task=kind.conversion)
    stock = registered.func.inputs.fget

    def inputs(self: Any) -> dict[str, dict[int, str]]:
        return {name: axes for name, axes in stock(self).items() if name != "position_ids"}

    registered.func.inputs = property(inputs)


def convert(config: dict[str, Any], vectors: Path, output: Path) -> Family:
    """Write a model as an IR (`output`) whose weight matrices are inputs; return its family. Arguments as of `Conversion`."""
    model = _model_without_matrices(config, vectors)
    architecture = Architecture.from_config(model.config, "config.json")
    family = architecture.family
    if family.kind.generates:
        _dummy_caches(renumber_caches(model, architecture))
    else:
        _count_positions(architecture.model_type, family.kind)
        if not hasattr(model, "model"):
            vars(model)["model"] = None  # optimum-intel looks for Mistral's body in it
    matrices = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    names = [name for name in matrices if name not in architecture.unused]
    saved = []

    def save(converted: Any, _path: Any, _compress_to_fp16: bool = False) -> None:
        _matrices_to_inputs(converted, names)
        openvino.save_model(converted, output, compress_to_fp16=False)
        saved.append(output)

    stock_save, optimum_convert.save_model = optimum_convert.save_model, save
    optimum_convert.allow_skip_tracing_check = lambda *_: True
    for guarded in family.raised_guards:
        getattr(model_configs, guarded).MAX_TRANSFORMERS_VERSION = "5.99"
    # the stock run-time options of an IR with compressed weights; `ir.write` adds the one of uncompressed IRs
    quantized = OVConfig(quantization_config=OVWeightQuantizationConfig(bits=8))
    try:
        export_from_model(model, output.parent, task=family.kind.conversion, ov_config=quantized, stateful=True)
    finally:
        optimum_convert.save_model = stock_save  # the tokenizer is saved by it, too
    if not saved:
        raise RuntimeError("optimum-intel saved no model: is it version 2.2?")
    return family
