"""Compress an uncompressed graph on data by NNCF."""

from collections.abc import Sequence
from typing import Any

import nncf
import numpy as np

from lonas_edge.formats import METHODS, WeightFormat
from lonas_edge.ir.compress import quiet
from lonas_edge.ir.infer import inputs_of

_MEMORY = 3.0  # times the fp32 weights: these, NNCF's copy, inputs of layers and work (`docs/design-notes.md`)
_LIBRARIES = 1.2e9  # bytes


def bytes_needed(parameters: int) -> float:
    """Return the memory that compression of a model with this number of parameters takes at most, in bytes."""
    return _MEMORY * 4 * parameters + _LIBRARIES


def compress_on_data(
    model: Any, weight_format: WeightFormat, group_size: int, ratio: float, method: str, texts: Sequence[np.ndarray]
) -> Any:
    """Compress the matrices between embedding and head of an fp32 model by a data-aware method of `METHODS`.

    `ratio` is the largest share of the weights in the format; `texts` are token ids, each [1, tokens].
    """
    names = {name for port in model.inputs for name in port.get_names()}
    data = nncf.Dataset(texts, lambda ids: {name: value for name, value in inputs_of(ids).items() if name in names})
    with quiet():
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode[str(weight_format.mode)],
            group_size=group_size,
            ratio=ratio or 1e-9,  # NNCF 3.4 takes 0 for 1
            dataset=data,
            subset_size=len(texts),
            **dict.fromkeys(METHODS[method], True),
        )
