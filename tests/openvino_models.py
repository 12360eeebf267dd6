"""Logits and stored matrices of IRs, with plain openvino. Nothing here imports the package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}  # the default may be bf16
_SCALE_AND_SHAPE = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose")


def read_ir(folder: Path) -> Any:
    """The ov.Model of an exported directory."""
    return ov.Core().read_model(folder / "openvino_model.xml")


def ir_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits [prompts, tokens, vocabulary] of `openvino_model.xml`, all arithmetic in fp32 (activations not quantized)."""
    properties = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    return model_logits(read_ir(folder), ids, properties)


def model_logits(model: Any, ids: torch.Tensor, properties: dict[str, str]) -> torch.Tensor:
    """Logits of an ov.Model of a stateful causal language model."""
    return compiled_logits(ov.Core().compile_model(model, "CPU", properties), ids)


def compiled_logits(compiled: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a compiled model, in a new infer request."""
    prompts, tokens = ids.shape
    inputs = {
        "input_ids": ids.numpy(),
        "attention_mask": np.ones((prompts, tokens), np.int64),
        "position_ids": np.tile(np.arange(tokens), (prompts, 1)),
        "beam_idx": np.arange(prompts, dtype=np.int32),
    }
    names = {name for port in compiled.inputs for name in port.get_names()}
    assert names <= inputs.keys(), names
    results = compiled.create_infer_request().infer({name: inputs[name] for name in names})
    return torch.from_numpy(results["logits"].copy())


def stored_matrices(folder: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield operation, element type and shape of the constant of each matrix multiplication and each embedding look-up.

    Skips a MatMul of two activations (attention), and a Gather from a constant of one dimension (shape arithmetic).
    """
    for node in read_ir(folder).get_ordered_ops():
        source = {"MatMul": 1, "Gather": 0}.get(node.get_type_name())
        if source is None:
            continue
        constant = _behind(node.input_value(source).get_node())
        if constant is not None and len(constant.shape) > 1 and max(constant.shape) > 1:
            yield node.get_type_name(), constant.get_element_type().get_type_name(), tuple(constant.shape)


def _behind(node: Any) -> Any:
    while node.get_type_name() in _SCALE_AND_SHAPE:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def constants(model: Any) -> dict[str, Any]:
    """The constants of an ov.Model by name."""
    return {node.friendly_name: node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"}
