"""Runtime properties of an IR: candidates, their effect on logits, and the files that hold them.

openvino 2026.4.1 reads some properties from `rt_info/runtime_options` of the IR (`IN_IR`); the client must pass the others.
`lonas_edge_runtime.json` holds all of them. Both files may be downloaded: only properties that `bench --tune` chooses are used,
since others (CACHE_DIR, …) have effects outside the model.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Required, Self

from typing_extensions import TypedDict

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.ir import MODEL, RUNTIME
from lonas_edge.ir.core import openvino_core
from lonas_edge.ir.infer import open_ir
from lonas_edge.schema import Record, field_faults

IN_IR = ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")  # candidates that plugins read from the IR
ACTIVATION_GROUP = IN_IR[0]
PER_CHANNEL = str(2**64 - 1)  # one group per row of the activations
# What a stored group may add to the distance of these outputs, see `Parity.distance`. Trained language models have 0.01 nats
# (docs/benchmarks/latency.md), MiniLM-L6 a cosine distance of 0.0007.
MAX_OF_GROUP = {"logits": 0.05, "hidden states": 0.01, "scores": 0.05}

# Candidates by property; they are compared with the plugin's default.
_CPU = {
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": ("0", "32", "64", "96", "128", "192", "256", PER_CHANNEL),
    "KV_CACHE_PRECISION": ("u8", "f16"),
    "INFERENCE_PRECISION_HINT": ("f32", "bf16", "f16"),
    "ENABLE_CPU_PINNING": ("NO", "YES"),
    "PERFORMANCE_HINT": ("THROUGHPUT",),
}
_GPU = {name: _CPU[name] for name in ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION")} | {
    "INFERENCE_PRECISION_HINT": ("f16", "f32")
}

KNOWN = {  # every property that a tuning may choose, with a pattern of its values
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": r"[0-9]{1,20}",
    "KV_CACHE_PRECISION": "u8|f16|bf16|f32",
    "INFERENCE_PRECISION_HINT": "f32|bf16|f16",
    "INFERENCE_NUM_THREADS": r"[1-9][0-9]{0,4}",
    "ENABLE_CPU_PINNING": "NO|YES",
    "PERFORMANCE_HINT": "LATENCY|THROUGHPUT",
    "SCHEDULING_CORE_TYPE": "ANY_CORE|PCORE_ONLY|ECORE_ONLY",
}
_STOCK = {"ACTIVATIONS_SCALE_FACTOR": r"[0-9]{1,6}(\.[0-9]{1,6})?"}  # optimum-intel 2.2 also puts this into an IR
_DEVICE = re.compile(r"[A-Z]+(\.[0-9]+)?(:[A-Z0-9.,]+)?")


class _Machine(TypedDict, total=False):
    device_name: Required[str]
    threads: Required[int]


class _Conditions(TypedDict, total=False):
    machine: Required[_Machine]


def property_faults(properties: Mapping[str, str | None], names: Iterable[str] = KNOWN) -> list[str]:
    """List properties and values that no tuning chooses, one line each; unset properties are None."""
    known = KNOWN | _STOCK
    allowed = {name: known[name] for name in names}
    return [
        f"{name} = {value!r}: expected {allowed[name]}"
        if name in allowed
        else f"{name} = {value!r}: not read from files; expected one of {', '.join(allowed)}"
        for name, value in properties.items()
        if name not in allowed or (value is not None and not re.fullmatch(allowed[name], value))
    ]


@dataclass(frozen=True)
class Ratio:
    """Ratio of a variant's latency to its baseline's; below 1 the variant is faster.

    `low` and `high` are the 95 % interval, None with fewer than 6 rounds. It is over process starts if there are 6 or more,
    otherwise over rounds.
    """

    value: float
    low: float | None
    high: float | None
    rounds: int
    starts: int


@dataclass(frozen=True)
class RuntimeProperties(Record):
    """Content of `lonas_edge_runtime.json`.

    Attributes:
        objective: tpot, ttft or end-to-end.
        ratios: Latency over that of the defaults, by objective.
        mean_kl: Mean KL divergence from the logits by default, in nats.
        conditions: Machine, versions, case, tolerance.
        in_ir: Names of the properties in the IR.
        replaced_in_ir: Their previous values in the IR; None for properties that were not there.
    """

    NAME: ClassVar[str] = "runtime"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Export it again, and choose properties with `lonas-edge bench --tune`."
    device: str
    date: str
    objective: str
    properties: dict[str, str]
    ratios: dict[str, Ratio]
    mean_kl: float
    conditions: dict[str, Any]
    in_ir: tuple[str, ...] = ()
    replaced_in_ir: dict[str, str | None] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Self:
        """See `Record`; refuse a device, property or value that no tuning chooses."""
        record = super().from_json(content, where)
        faults = property_faults(record.properties) + property_faults(record.replaced_in_ir, IN_IR)
        faults += [f"in_ir: {name}: expected one of {', '.join(IN_IR)}" for name in set(record.in_ir) - set(IN_IR)]
        faults += [] if _DEVICE.fullmatch(record.device) else [f"device: {record.device!r} is not an OpenVINO device"]
        faults += [f"conditions.{fault}" for fault in field_faults(_Conditions, record.conditions)]
        raise_all(f"{where}: invalid runtime properties:", faults, cls.AGAIN)
        return record


def check_device(device: str) -> None:
    """Refuse an OpenVINO device (CPU, GPU.1, AUTO:GPU,CPU, …) that this machine lacks; list those that it has."""
    present = openvino_core().available_devices
    virtual, _, listed = device.partition(":")
    wanted = listed.split(",") if listed else [] if virtual == "AUTO" else [device]
    known = {*present, *(name.split(".")[0] for name in present)}
    missing = [name for name in wanted if name not in known]
    if missing or (listed and virtual not in ("AUTO", "HETERO", "MULTI")):
        raise LonasEdgeError(f"--device {device}: not on this machine. Present: {', '.join([*present, 'AUTO'])}.")


def candidates(device: str, threads: int, processors: int) -> dict[str, tuple[str, ...]]:
    """Return the candidate values by property on a device, without precisions that it does not support.

    `threads` is the default number of threads, one per physical core; `processors` counts logical processors.
    """
    table = dict(_CPU if device == "CPU" else _GPU if device.startswith("GPU") else {})
    if not table:
        return table
    capable = {
        str(name).lower().replace("fp", "f") for name in openvino_core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    }
    hint = "INFERENCE_PRECISION_HINT"
    table[hint] = tuple(value for value in table[hint] if value == "f32" or value in capable)
    if device == "CPU":
        counts = {threads // 2, processors} - {0, threads}
        table["INFERENCE_NUM_THREADS"] = tuple(str(count) for count in sorted(counts))
        if Path("/sys/devices/cpu_atom").exists():
            table["SCHEDULING_CORE_TYPE"] = ("PCORE_ONLY", "ANY_CORE")
    return {name: values for name, values in table.items() if values}


def answers(folder: Path, device: str, properties: Mapping[str, str], ids: Sequence[Sequence[int]]) -> Any:
    """Compute logits under given properties: half of each prompt in one pass, the rest token by token from the KV cache.

    `ids` are [prompts, tokens]; the result is an fp32 array [prompts, tokens, vocabulary].
    """
    import numpy as np

    prompts = np.array(ids, np.int64)
    logits, length = open_ir(folder / MODEL, device, properties), prompts.shape[1]
    starts = [0, *range(length // 2, length)]
    return np.concatenate(
        [logits(prompts[:, :end], start) for start, end in zip(starts, [*starts[1:], length], strict=True)], axis=1
    )


def ir_faults(text: str) -> list[str]:
    """List the runtime options in an IR's .xml text that neither `export` nor `bench --tune` writes, one line each."""
    if "runtime_options" not in text:
        return []
    try:
        options = ET.fromstring(text).findall("rt_info/runtime_options/*")
    except ET.ParseError as error:
        return [f"not XML: {error}"]
    return property_faults({option.tag: option.get("value", "") for option in options}, (*IN_IR, *_STOCK))


def stored(folder: Path, name: str) -> str | None:
    """Value of a property in the IR; None if it holds none."""
    element = ET.parse(folder / MODEL).find(f"rt_info/runtime_options/{name}")
    return None if element is None else element.get("value")


def forget(folder: Path, name: str) -> None:
    """Remove a property from the IR, so that the plugin's default applies."""
    tree = ET.parse(folder / MODEL)
    _set_options(tree, {name: None})
    _write_model(folder, tree)


def store(folder: Path, chosen: RuntimeProperties) -> None:
    """Write properties into the IR and the record of an exported directory; fill in `in_ir` and `replaced_in_ir`."""
    inside = {name: value for name, value in chosen.properties.items() if name in IN_IR}
    tree = ET.parse(folder / MODEL)
    replaced = _set_options(tree, inside)
    _write_model(folder, tree)
    replace(chosen, in_ir=tuple(sorted(inside)), replaced_in_ir=replaced).write(folder / RUNTIME)


def restore(folder: Path) -> None:
    """Undo `store`."""
    if not (folder / RUNTIME).exists():
        return
    tree = ET.parse(folder / MODEL)
    _set_options(tree, RuntimeProperties.read(folder / RUNTIME).replaced_in_ir)
    _write_model(folder, tree)
    (folder / RUNTIME).unlink()


def _set_options(tree: Any, values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Set runtime options in an IR, or remove them if the value is None; return their previous values."""
    root = tree.getroot()
    info = root.find("rt_info")
    info = ET.SubElement(root, "rt_info") if info is None else info
    options = info.find("runtime_options")
    options = ET.SubElement(info, "runtime_options") if options is None else options
    before: dict[str, str | None] = {}
    for name, value in values.items():
        element = options.find(name)
        before[name] = None if element is None else element.get("value")
        if value is None and element is not None:
            options.remove(element)
        elif value is not None:
            (ET.SubElement(options, name) if element is None else element).set("value", value)
    return before


def _write_model(folder: Path, tree: Any) -> None:
    (folder / MODEL).unlink()  # it may be a hard link
    tree.write(folder / MODEL, encoding="utf-8", xml_declaration=True)
