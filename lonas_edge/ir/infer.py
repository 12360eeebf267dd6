"""Compute logits and texts of an IR with OpenVINO."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.core import openvino_core

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov


ANSWERS = ("logits", "last_hidden_state")  # outputs of the IRs that stock exporters write, one in each


def open_ir(path: "Path | ov.Model", device: str, properties: Mapping[str, str]) -> "Callable[[np.ndarray, int], np.ndarray]":
    """Compile an IR of a language model.

    Returns:
        A function from token ids [prompts, tokens] and a start, before which all tokens are in the KV cache by earlier calls,
        to the fp32 logits [prompts, tokens from start, vocabulary].
    """
    infer = open_model(path, device, properties)

    def logits(ids: "np.ndarray", start: int = 0) -> "np.ndarray":
        return infer(inputs_of(ids, start))

    return logits


def inputs_of(ids: "np.ndarray", start: int = 0) -> "dict[str, np.ndarray]":
    """Return the inputs of a language model's IR for token ids [prompts, tokens], of which those before `start` are cached."""
    import numpy as np

    batch, end = ids.shape
    return {
        "input_ids": ids[:, start:],
        "attention_mask": np.ones((batch, end), np.int64),
        "position_ids": np.broadcast_to(np.arange(start, end), (batch, end - start)),
        "beam_idx": np.arange(batch, dtype=np.int32),
    }


def open_model(
    path: "Path | ov.Model", device: str, properties: Mapping[str, str]
) -> "Callable[[Mapping[str, np.ndarray]], np.ndarray]":
    """Compile an IR: return a function from inputs by name, ignoring those that the IR lacks, to its output of `ANSWERS`."""
    compiled = openvino_core().compile_model(path, device, dict(properties))
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}
    outputs = [name for port in compiled.outputs for name in sorted(port.get_names())]
    answer = next((name for name in ANSWERS if name in outputs), None)
    if answer is None:
        raise LonasEdgeError(
            f"{path if isinstance(path, Path) else 'the IR'}: expected an output {' or '.join(ANSWERS)}, found "
            f"{', '.join(outputs)}. Export it for its task, without --library."
        )

    def infer(inputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
        answers: np.ndarray = request.infer({name: value for name, value in inputs.items() if name in names})[answer]
        return answers.copy()

    return infer
