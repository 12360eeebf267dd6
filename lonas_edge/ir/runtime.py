"""Runtime properties in an IR, and devices.

openvino 2026.4.1 reads some properties from `rt_info/runtime_options` of the IR, so that every client uses them.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import openvino_core

ACTIVATION_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
# What a stored group may add to the distance of these outputs, see `Parity.distance`. Trained language models have 0.01 nats
# (docs/benchmarks/latency.md), MiniLM-L6 a cosine distance of 0.0007.
MAX_OF_GROUP = {"logits": 0.05, "hidden states": 0.01, "scores": 0.05}


def check_device(device: str) -> None:
    """Refuse an OpenVINO device (CPU, GPU.1, AUTO:GPU,CPU, …) that this machine lacks; list those that it has."""
    present = openvino_core().available_devices
    virtual, _, listed = device.partition(":")
    wanted = listed.split(",") if listed else [] if virtual == "AUTO" else [device]
    known = {*present, *(name.split(".")[0] for name in present)}
    missing = [name for name in wanted if name not in known]
    if missing or (listed and virtual not in ("AUTO", "HETERO", "MULTI")):
        raise LonasEdgeError(f"--device {device}: not on this machine. Present: {', '.join([*present, 'AUTO'])}.")


def stored(folder: Path, name: str) -> str | None:
    """Value of a property in the IR; None if it holds none."""
    element = ET.parse(folder / MODEL).find(f"rt_info/runtime_options/{name}")
    return None if element is None else element.get("value")


def forget(folder: Path, name: str) -> None:
    """Remove a property from the IR, so that the plugin's default applies."""
    tree = ET.parse(folder / MODEL)
    for options in tree.iterfind("rt_info/runtime_options"):
        for element in options.findall(name):
            options.remove(element)
    (folder / MODEL).unlink()  # it may be a hard link
    tree.write(folder / MODEL, encoding="utf-8", xml_declaration=True)
