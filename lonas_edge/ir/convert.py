"""The IR: a graph converted without weights, filled with compressed matrices; tokenizer and detokenizer beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.compress import Compressed, Scheme

MODEL, TOKENIZER, DETOKENIZER = "openvino_model.xml", "openvino_tokenizer.xml", "openvino_detokenizer.xml"


def fill_graph(graph: Path, matrices: Mapping[str, Compressed]) -> Any:
    """Put the compressed matrices in the place of the graph's inputs of their names.

    Args:
        graph: An IR written by `ir.graph`.
        matrices: The compressed matrix of each such input.

    Returns:
        The whole model; it shares the matrices' memory.

    Raises:
        LonasEdgeError: If the graph lacks a matrix or the shapes differ.
    """
    model = ov.Core().read_model(graph)
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
    return model


def record_format(model: Any, schemes: Mapping[str, Scheme], weight_format: str) -> None:
    """Write into the IR what stock exporters write: how its weights are stored, and the run-time options that go with it.

    Args:
        model: The whole model.
        schemes: The scheme of each matrix.
        weight_format: fp32, fp16, int8 or int4.
    """
    if weight_format in ("fp32", "fp16"):
        model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])  # as optimum-intel 2.2 does
        return
    group = next((scheme.group_size for scheme in schemes.values() if scheme.group_size), -1)
    model.set_rt_info("int4_asym" if group > 0 else "int8_asym", ["nncf", "weight_compression", "mode"])
    model.set_rt_info(str(group), ["nncf", "weight_compression", "group_size"])


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model directory, or None where it has none.

    Args:
        folder: The directory.

    Returns:
        A transformers tokenizer.

    Raises:
        LonasEdgeError: If there is one and it cannot be read.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).exists() for name in names):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, ImportError) as error:
        raise LonasEdgeError(f"{folder}: the tokenizer cannot be read: {error}") from error


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files, and the same as OpenVINO models for clients without transformers.

    Args:
        tokenizer: A transformers tokenizer.
        folder: An existing directory.

    Raises:
        LonasEdgeError: If OpenVINO cannot express it.
    """
    from optimum.exporters.openvino.convert import export_tokenizer

    tokenizer.save_pretrained(folder)
    export_tokenizer(tokenizer, folder, task="text-generation-with-past")
    if not (folder / TOKENIZER).exists():
        raise LonasEdgeError(
            f"{type(tokenizer).__name__}: openvino_tokenizers cannot express this tokenizer. Save it as a fast tokenizer "
            "(tokenizer.json) in the base model's directory."
        )
