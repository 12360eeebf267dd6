"""Compute logits and texts of an IR with OpenVINO."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.ir.core import openvino_core

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov


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


def generate(
    logits_of: "Callable[[np.ndarray, int], np.ndarray]", ids: "np.ndarray", new_tokens: int, ends: Collection[int]
) -> list[list[int]]:
    """Generate texts greedily, of at most `new_tokens` tokens or up to one of `ends`, which is included.

    `logits_of` is a result of `open_ir`, not called before; `ids` are [prompts, tokens]. Texts come without their prompts.
    """
    import numpy as np

    start = cached = ids.shape[1]
    logits = logits_of(ids, 0)
    while True:
        ids = np.concatenate([ids, logits[:, -1:].argmax(-1).astype(ids.dtype)], axis=1)
        if ids.shape[1] == start + new_tokens or all(map(set(ends).intersection, ids[:, start:].tolist())):
            break
        logits, cached = logits_of(ids, cached), ids.shape[1]
    return [_up_to_end(row, ends) for row in ids[:, start:].tolist()]


def _up_to_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    return tokens[: next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))]


def open_model(
    path: "Path | ov.Model", device: str, properties: Mapping[str, str]
) -> "Callable[[Mapping[str, np.ndarray]], np.ndarray]":
    """Compile an IR: return a function from inputs by name, ignoring those that the IR lacks, to the fp32 logits."""
    compiled = openvino_core().compile_model(path, device, dict(properties))
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}

    def infer(inputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
        logits: np.ndarray = request.infer({name: value for name, value in inputs.items() if name in names})["logits"]
        return logits.copy()

    return infer
