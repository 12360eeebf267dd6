"""Which matrices get the smaller format where not all do: NNCF's choice without data, a matrix in memory at a time.

NNCF judges a matrix by what INT8 would do to it and sorts; both are its own functions here. Its public call does the same with
the whole model in memory uncompressed (`tests/ir/test_formats.py` compares the two).
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from nncf.quantization.algorithms.weight_compression.mixed_precision import DataFreeCriterion
from nncf.tensor import Tensor

from lonas_edge.network.materialize import MaterializedModel


class _Known(DataFreeCriterion):  # type: ignore[misc]
    """NNCF's criterion for matrices whose scores are known."""

    def _set_backend_entity(self, _model: Any) -> None:
        return

    def _calc_sensitivity(self, _model: Any, _graph: Any, weight_params: Any, *_: Any) -> list[float]:
        return [each.score for each in weight_params]


def spared(model: MaterializedModel, matrices: Mapping[str, tuple[int, ...]], ratio: float) -> set[str]:
    """The matrices that the smaller format harms least.

    Args:
        model: The materialized model; each matrix is evaluated once.
        matrices: Shapes by name of those to choose from.
        ratio: Share of their weights that gets the smaller format, at most.

    Returns:
        Names of those that get it.
    """
    scored = [
        SimpleNamespace(name=name, num_weights=rows * columns, score=_score(model.tensor(name).numpy()))
        for name, (rows, columns) in matrices.items()
    ]
    return {one.name for one in _Known(ratio).apply(None, None, weight_params=scored)}


def _score(matrix: Any) -> float:
    """As of `DataFreeCriterion`, which reads the matrix from a model."""
    judge = SimpleNamespace(get_weight=lambda *_: Tensor(matrix))
    criterion = DataFreeCriterion(1.0)
    criterion._backend_entity = judge
    params = SimpleNamespace(node_with_weight=None, weight_port_id=None, reduction_axes=(1,))
    return float(criterion._calc_weight_sensitivity(params, None, None))
