"""The one OpenVINO Core of the process: its devices, and inference with IRs."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.errors import LonasEdgeError

if TYPE_CHECKING:
    import numpy as np
    import openvino as ov

OUTPUTS = ("logits", "last_hidden_state")  # of the IRs that stock exporters write, one in each


@functools.cache
def openvino_core() -> "ov.Core":
    """Return the process's only `openvino.Core`, which also reads tokenizers.

    If one of two Cores is destroyed, the thread's alternate signal stack points to freed memory, and the next Ctrl-C ends the
    process with a segmentation fault (openvino 2026.4, `SigAltStackSetup` of the CPU plugin).
    """
    import openvino as ov
    import openvino_tokenizers  # noqa: F401  # registers their operations with later Cores

    return ov.Core()


def check_device(device: str) -> None:
    """Refuse an OpenVINO device (CPU, GPU.1, AUTO:GPU,CPU, …) that this machine lacks; list those that it has."""
    present = openvino_core().available_devices
    virtual, _, listed = device.partition(":")
    wanted = listed.split(",") if listed else [] if virtual == "AUTO" else [device]
    known = {*present, *(name.split(".")[0] for name in present)}
    missing = [name for name in wanted if name not in known]
    if missing or (listed and virtual not in ("AUTO", "HETERO", "MULTI")):
        raise LonasEdgeError(f"--device {device}: not on this machine. Present: {', '.join([*present, 'AUTO'])}.")


@contextmanager
def compiling(folder: Path, device: str, properties: Mapping[str, str]) -> Iterator[None]:
    """Name the directory, device and properties with which OpenVINO refuses to compile, and the available devices."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        given = ", ".join(f"{name}={value}" for name, value in properties.items()) or "none"
        devices = ", ".join(openvino_core().available_devices)
        raise LonasEdgeError(
            f"{folder}: cannot run on {device} (properties: {given}; available devices: {devices}): "
            f"{lines[-1] if lines else repr(error)}"
        ) from error


def open_model(
    path: "Path | ov.Model", device: str, properties: Mapping[str, str]
) -> "Callable[[Mapping[str, np.ndarray]], np.ndarray]":
    """Compile an IR: return a function from inputs by name, ignoring those that the IR lacks, to its output of `OUTPUTS`."""
    compiled = openvino_core().compile_model(path, device, dict(properties))
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}
    outputs = [name for port in compiled.outputs for name in sorted(port.get_names())]
    output = next((name for name in OUTPUTS if name in outputs), None)
    if output is None:
        raise LonasEdgeError(
            f"{path if isinstance(path, Path) else 'the IR'}: expected an output {' or '.join(OUTPUTS)}, found "
            f"{', '.join(outputs)}. Export it for its task, without --library."
        )

    def infer(inputs: "Mapping[str, np.ndarray]") -> "np.ndarray":
        request.reset_state()  # of a language model: calls are independent
        if "position_ids" in names - inputs.keys():  # optimum-intel 2.2 exports embedding models from decoders with this input
            inputs = {**inputs, "position_ids": positions(inputs["input_ids"])}
        values: np.ndarray = request.infer({name: value for name, value in inputs.items() if name in names})[output]
        return values.copy()

    return infer


def positions(ids: "np.ndarray", start: int = 0) -> "np.ndarray":
    """Positions of token ids [texts, tokens], the first one at `start`."""
    import numpy as np

    return np.broadcast_to(np.arange(start, start + ids.shape[1]), ids.shape)


def inputs_of(ids: "np.ndarray", start: int = 0) -> "dict[str, np.ndarray]":
    """Return the inputs of a language model's IR for token ids [prompts, tokens], of which those before `start` are cached."""
    import numpy as np

    batch, end = ids.shape
    return {
        "input_ids": ids[:, start:],
        "attention_mask": np.ones((batch, end), np.int64),
        "position_ids": positions(ids[:, start:], start),
        "beam_idx": np.arange(batch, dtype=np.int32),
    }
