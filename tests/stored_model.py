"""A Hugging Face model with the matrices that an export stores."""

from collections.abc import Sequence
from typing import Any

import torch

from lonas_edge.formats import FORMATS
from lonas_edge.ir.compress import compress_matrices
from lonas_edge.ir.schemes import choose_schemes
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, set_parameter
from lonas_edge.network.source import Source


def stored_model(source: Source, widths: Sequence[int], weight_format: str) -> Any:
    """The materialized sub-network with its matrices compressed by NNCF and dequantized."""
    model = MaterializedModel(source, source.subnetwork(widths))
    live, schemes = empty_model(model.config()), choose_schemes(model, FORMATS[weight_format])
    for name, matrix in compress_matrices(model, schemes):
        set_parameter(live, name, torch.from_numpy(matrix.restore(model.tensor(name).numpy())[0]))
    for name in model.shapes.keys() - schemes.keys():
        set_parameter(live, name, model.tensor(name))
    live.tie_weights()
    return live
