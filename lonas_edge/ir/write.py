"""Fill a graph that was converted without weights with compressed matrices, and write it as IR.

openvino 2026.4.1 reads some runtime properties from `rt_info/runtime_options` of the IR, so that every client uses them.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov
from optimum.intel import OVConfig, OVWeightQuantizationConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS, PER_CHANNEL, WeightFormat, activation_group
from lonas_edge.ir import MODEL
from lonas_edge.ir.compress import Compressed
from lonas_edge.ir.core import openvino_core
from lonas_edge.ir.fuse import fuse
from lonas_edge.ir.schemes import Scheme

ACTIVATION_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


def fill_graph(model: Any, matrices: Mapping[str, Compressed]) -> None:
    """Replace the inputs of a graph of `ir.graph` by the matrices of their names; the model shares their memory."""
    inputs = {node.friendly_name: node for node in model.get_parameters()}
    for name, matrix in matrices.items():
        parameter = inputs.get(name)
        if parameter is None or tuple(parameter.get_output_shape(0)) != matrix.shape:
            raise LonasEdgeError(f"The converted graph has no input for {name} {list(matrix.shape)}")
        weight = matrix.node(name).output(0)
        for target in parameter.output(0).get_target_inputs():
            target.replace_source_output(weight)
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def fill(
    graph: Path, matrices: MutableMapping[str, Compressed], blocks: Sequence[Sequence[str]]
) -> tuple[Any, dict[str, Compressed]]:
    """Fill a graph.

    Args:
        graph: An IR written by `ir.graph`.
        matrices: The matrix of each of the graph's inputs that stands for one; stacked ones become views.
        blocks: Names of the matrices that may be stacked.

    Returns:
        The model, and the matrices whose memory it shares: hold them as long as you use it.
    """
    model = openvino_core().read_model(graph)
    fused = fuse(model, blocks, matrices)
    fill_graph(model, fused)
    return model, fused


def write_model(model: Any, folder: Path, storage: "Storage", widths: Iterable[int], groups: Iterable[int | None]) -> None:
    """Write a filled model and `openvino_config.json`; `widths` are the inputs of its matrices, `groups` their group sizes."""
    storage.record(model)
    storage.set_properties(model, widths, min({size or PER_CHANNEL for size in groups} - {PER_CHANNEL}, default=PER_CHANNEL))
    ov.save_model(model, folder / MODEL, compress_to_fp16=False)
    storage.config().save_pretrained(folder)


@dataclass(frozen=True)
class Storage:
    """Storage of an IR's weights, as stock exporters record it.

    `weight_format` is that of embedding and head if no matrix has another.
    """

    weight_format: WeightFormat
    group_size: int

    @classmethod
    def of(cls, schemes: Mapping[str, Scheme], weight_format: WeightFormat) -> "Storage":
        own = [scheme for scheme in schemes.values() if scheme.weight_format.name == weight_format.name]
        if own or not weight_format.outer:
            sizes = (scheme.group_size for scheme in own if scheme.group_size)
            return cls(weight_format, next(sizes, PER_CHANNEL))
        return cls(FORMATS[weight_format.outer], PER_CHANNEL)

    def record(self, model: Any) -> None:
        """Write it into the IR."""
        if self.weight_format.mode is None:
            return
        options = {"mode": self.weight_format.mode.lower(), "group_size": str(self.group_size)}
        for name, value in options.items():
            model.set_rt_info(value, ["nncf", "weight_compression", name])

    def set_properties(self, model: Any, widths: Iterable[int], group_size: int) -> None:
        """Write the runtime properties that suit it into the IR, where every client reads them.

        `widths` are the inputs of its matrices, `group_size` the smallest group of weights.
        """
        properties: dict[str, str] = {}
        if self.weight_format.mode is None and model.get_variables():  # a classifier has no cache
            properties["KV_CACHE_PRECISION"] = "f16"  # as optimum-intel 2.2 does
        elif self.weight_format.mode and (size := activation_group(widths, group_size)):
            properties[ACTIVATION_GROUP] = str(size)
        for name, value in properties.items():
            model.set_rt_info(value, ["runtime_options", name])

    def config(self) -> OVConfig:
        """Return the content of `openvino_config.json`."""
        mode, bits = self.weight_format.mode, self.weight_format.bits
        if mode is None:
            return OVConfig(dtype=self.weight_format.name)
        grouped = {"group_size": self.group_size, "ratio": 1.0} if bits == 4 else {}
        quantization = OVWeightQuantizationConfig(bits=bits, sym=mode.endswith("_SYM"), **grouped)
        return OVConfig(dtype=f"int{bits}", quantization_config=quantization)


def read_property(folder: Path, name: str) -> str | None:
    """Return the value of a runtime property in the IR; None if it holds none."""
    element = ET.parse(folder / MODEL).find(f"rt_info/runtime_options/{name}")
    return None if element is None else element.get("value")


def set_property(folder: Path, name: str, value: str) -> None:
    """Write a runtime property into an IR."""
    tree = ET.parse(folder / MODEL)
    info = tree.getroot().find("rt_info")
    info = ET.SubElement(tree.getroot(), "rt_info") if info is None else info
    options = info.find("runtime_options")
    options = ET.SubElement(info, "runtime_options") if options is None else options
    ET.SubElement(options, name, value=value)
    tree.write(folder / MODEL, encoding="utf-8", xml_declaration=True)


def remove_property(folder: Path, name: str) -> None:
    """Remove a runtime property from the IR, so that the plugin's default applies."""
    tree = ET.parse(folder / MODEL)
    for options in tree.iterfind("rt_info/runtime_options"):
        for element in options.findall(name):
            options.remove(element)
    tree.write(folder / MODEL, encoding="utf-8", xml_declaration=True)
