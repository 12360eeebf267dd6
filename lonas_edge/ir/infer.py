"""Logits of an IR, as OpenVINO computes them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov


def open_ir(path: "Path | ov.Model", device: str, properties: Mapping[str, str]) -> "Callable[[np.ndarray, int], np.ndarray]":
    """Compile an IR.

    Args:
        path: The .xml file, or the model.
        device: An OpenVINO device.
        properties: Run-time properties.

    Returns:
        A function that takes token ids [prompts, tokens] and at which of the tokens to begin, those before it being in the KV
        cache by earlier calls, and gives the logits [prompts, tokens from there, vocabulary], fp32.
    """
    import numpy as np

    answer = open_model(path, device, properties)

    def logits(ids: np.ndarray, start: int = 0) -> np.ndarray:
        batch, end = ids.shape
        inputs = {
            "input_ids": ids[:, start:],
            "attention_mask": np.ones((batch, end), np.int64),
            "position_ids": np.broadcast_to(np.arange(start, end), (batch, end - start)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        return answer(inputs)

    return logits


def open_model(
    path: "Path | ov.Model", device: str, properties: Mapping[str, str]
) -> "Callable[[Mapping[str, np.ndarray]], np.ndarray]":
    """Compile an IR that is asked with inputs by their names.

    Args:
        path: The .xml file, or the model.
        device: An OpenVINO device.
        properties: Run-time properties.

    Returns:
        A function that takes inputs by name, those that the IR has not among them left alone, and gives the logits, fp32.
    """
    import openvino as ov

    compiled = ov.Core().compile_model(path, device, dict(properties))
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}

    def answer(inputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
        found: np.ndarray = request.infer({name: value for name, value in inputs.items() if name in names})["logits"]
        return found.copy()

    return answer
