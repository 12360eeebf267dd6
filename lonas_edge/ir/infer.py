"""Logits of an IR, as OpenVINO computes them."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.ir.core import openvino_core

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


def generate(
    answer: "Callable[[np.ndarray, int], np.ndarray]", ids: "np.ndarray", new_tokens: int, ends: Collection[int]
) -> list[list[int]]:
    """Generate texts greedily.

    Args:
        answer: As `open_ir` gives it, not asked before.
        ids: Token ids of the prompts, [prompts, tokens].
        new_tokens: Tokens of a text, at most.
        ends: Tokens that end a text.

    Returns:
        Token ids of each text without its prompt, up to the end and with it.
    """
    import numpy as np

    start = asked = ids.shape[1]
    logits = answer(ids, 0)
    while True:
        ids = np.concatenate([ids, logits[:, -1:].argmax(-1).astype(ids.dtype)], axis=1)
        if ids.shape[1] == start + new_tokens or all(map(set(ends).intersection, ids[:, start:].tolist())):
            break
        logits, asked = answer(ids, asked), ids.shape[1]
    return [_up_to_end(row, ends) for row in ids[:, start:].tolist()]


def _up_to_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))]


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
    compiled = openvino_core().compile_model(path, device, dict(properties))
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}

    def answer(inputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
        found: np.ndarray = request.infer({name: value for name, value in inputs.items() if name in names})["logits"]
        return found.copy()

    return answer
