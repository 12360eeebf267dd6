"""Choose the matrices in the smaller format (`export --ratio`) by NNCF's criterion without data, one matrix at a time.

NNCF scores each matrix by the error of INT8 and sorts; both are its own functions here. Its public call does the same with the
uncompressed model in memory (`tests/ir/test_formats.py` compares the two).
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from nncf.quantization.algorithms.weight_compression.mixed_precision import DataFreeCriterion
from nncf.tensor import Tensor

from lonas_edge.network.materialize import MaterializedModel


class _ScoredCriterion(DataFreeCriterion):  # type: ignore[misc]
    """NNCF's criterion for matrices whose scores are known."""

    def _set_backend_entity(self, _model: Any) -> None:
        return

    def _calc_sensitivity(self, _model: Any, _graph: Any, weight_params: Any, *_: Any) -> list[float]:
        return [params.score for params in weight_params]


def least_sensitive(model: MaterializedModel, matrices: Mapping[str, tuple[int, ...]], ratio: float) -> set[str]:
    """Choose, out of the matrices with these shapes, those that lose least in the smaller format: at most this share."""
    scored = [
        SimpleNamespace(name=name, num_weights=rows * columns, score=_score(model.tensor(name).numpy()))
        for name, (rows, columns) in matrices.items()
    ]
    return {params.name for params in _ScoredCriterion(ratio).apply(None, None, weight_params=scored)}


def _score(matrix: Any) -> float:
    """Score a matrix as `DataFreeCriterion` does, which reads it from a model."""
    criterion = DataFreeCriterion(1.0)
    criterion._backend_entity = SimpleNamespace(get_weight=lambda *_: Tensor(matrix))
    params = SimpleNamespace(node_with_weight=None, weight_port_id=None, reduction_axes=(1,))
    return float(criterion._calc_weight_sensitivity(params, None, None))
