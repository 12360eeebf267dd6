"""The IR: a graph converted without weights, filled with compressed matrices."""

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import openvino as ov
from optimum.intel import OVConfig, OVWeightQuantizationConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import WeightFormat
from lonas_edge.ir import MODEL
from lonas_edge.ir.compress import Compressed, Scheme
from lonas_edge.ir.fuse import fuse


def fill_graph(model: Any, matrices: Mapping[str, Compressed]) -> None:
    """Put the compressed matrices in the place of the graph's inputs of their names; the model shares their memory.

    Args:
        model: The graph, as `ir.graph` writes it.
        matrices: The compressed matrix of each such input.

    Raises:
        LonasEdgeError: If the graph lacks a matrix or the shapes differ.
    """
    places = {node.friendly_name: node for node in model.get_parameters()}
    for name, matrix in matrices.items():
        place = places.get(name)
        if place is None or tuple(place.get_output_shape(0)) != matrix.shape:
            raise LonasEdgeError(f"The converted graph has no place for {name} {list(matrix.shape)}")
        filled = matrix.node(name).output(0)
        for target in place.output(0).get_target_inputs():
            target.replace_source_output(filled)
        model.remove_parameter(place)
    model.validate_nodes_and_infer_types()


def write_ir(
    graph: Path,
    folder: Path,
    matrices: MutableMapping[str, Compressed],
    schemes: Mapping[str, Scheme],
    weight_format: WeightFormat,
    blocks: Sequence[Sequence[str]] = (),
) -> int:
    """Fill a graph and write it as `openvino_model.xml` and `.bin`, `openvino_config.json` beside it.

    Args:
        graph: An IR written by `ir.graph`.
        folder: An existing directory.
        matrices: The compressed matrix of each of the graph's inputs that stands for one; those that are stacked become views.
        schemes: The scheme of each matrix.
        weight_format: The format of the whole model.
        blocks: Names of the matrices that may share one.

    Returns:
        How many matrices went into others.

    Raises:
        LonasEdgeError: If the graph lacks a matrix or the shapes differ.
    """
    model = ov.Core().read_model(graph)
    fused = fuse(model, blocks, matrices)
    fill_graph(model, fused)
    record_format(model, schemes, weight_format)
    ov.save_model(model, folder / MODEL, compress_to_fp16=False)
    _write_config(folder, schemes, weight_format)
    return len(matrices) - len(fused)


def _write_config(folder: Path, schemes: Mapping[str, Scheme], weight_format: WeightFormat) -> None:
    if weight_format.mode is None:
        OVConfig(dtype=weight_format.name).save_pretrained(folder)
        return
    group = _group_size(schemes)
    bits = {"bits": 8} if group < 0 else {"bits": 4, "group_size": group, "ratio": 1.0}
    quantization = OVWeightQuantizationConfig(sym=False, **bits)
    OVConfig(dtype="int8" if group < 0 else "int4", quantization_config=quantization).save_pretrained(folder)


def _group_size(schemes: Mapping[str, Scheme]) -> int:
    """The INT4 group size, -1 where whole rows are compressed to INT8: NNCF's convention."""
    return next((scheme.group_size for scheme in schemes.values() if scheme.group_size), -1)


def record_format(model: Any, schemes: Mapping[str, Scheme], weight_format: WeightFormat) -> None:
    """Write into the IR what stock exporters write: how its weights are stored, and the run-time options that go with it.

    Args:
        model: The whole model.
        schemes: The scheme of each matrix.
        weight_format: The format of the whole model.
    """
    if weight_format.mode is None:
        if model.get_variables():  # a classifier has no cache
            model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])  # as optimum-intel 2.2 does
        return
    group = _group_size(schemes)
    model.set_rt_info("int4_asym" if group > 0 else "int8_asym", ["nncf", "weight_compression", "mode"])
    model.set_rt_info(str(group), ["nncf", "weight_compression", "group_size"])
