"""Texts of an export beside those of the same sub-network in fp32: what compression changes in what users read.

Distances of logits at given tokens do not say when a text becomes another one. So both networks go on from the same beginnings,
greedily, and the texts are compared. Both are computed in fp32, as every comparison of an export is. The fp32 network is the IR
that `--weight-format fp32` would write, in memory whole: this is asked for, and refused where there is no room.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov
import psutil

from lonas_edge.data.calibration import BEGINNINGS, prompts
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.verify import FP32
from lonas_edge.families import CAUSAL_LM
from lonas_edge.formats import FORMATS
from lonas_edge.ir import compress
from lonas_edge.ir.convert import filled
from lonas_edge.ir.infer import generate, open_ir
from lonas_edge.network.materialize import MaterializedModel

NEW_TOKENS = 32
_MEMORY = 2.5  # times the fp32 weights: they, the copy that the plugin makes, and those that are stored
_ROOM = 1e9  # bytes beside that: libraries


def check_room(model: MaterializedModel) -> None:
    """See that texts can be compared.

    Args:
        model: The materialized sub-network.

    Raises:
        LonasEdgeError: If it generates no text, or there is too little memory for it in fp32.
    """
    source = model.source
    source.architecture.require(CAUSAL_LM, "--compare-texts")
    needed = _MEMORY * 4 * source.sizes(model.subnetwork).parameters + _ROOM
    available = psutil.virtual_memory().available
    if needed > available:
        raise LonasEdgeError(
            f"--compare-texts holds the whole sub-network in fp32 and needs about {needed / 1e9:.1f} GB; "
            f"{available / 1e9:.1f} GB are free. Without it, logits are compared, a layer in memory at a time."
        )


def fp32_ir(model: MaterializedModel, graph: Path) -> tuple[Any, Any]:
    """The sub-network's fp32 IR.

    Args:
        model: The materialized sub-network.
        graph: Its graph, an IR written by `ir.graph`.

    Returns:
        The IR, and what it shares memory with: to be held as long as it is used.
    """
    matrices = dict(compress.compress_matrices(model, compress.schemes(model, FORMATS["fp32"])))
    return filled(graph, matrices, ())


def generated(
    model: MaterializedModel, ir: "Path | ov.Model", tokenizer: Any, generation: Mapping[str, Any] | None
) -> list[list[int]]:
    """Texts that an IR generates.

    Args:
        model: The materialized sub-network, which says what ends a text where `generation` does not.
        ir: The .xml file, or the model.
        tokenizer: The base's, or None.
        generation: Content of the base's generation_config.json, or None.

    Returns:
        Token ids of each text.
    """
    ids = prompts(tokenizer, model.source.architecture.config.vocab_size, BEGINNINGS)
    end = (generation or {}).get("eos_token_id")
    end = model.config().get("eos_token_id") if end is None else end
    ends = end if isinstance(end, list) else [] if end is None else [end]
    return generate(open_ir(ir, "CPU", FP32), ids.numpy(), NEW_TOKENS, ends)
