"""Evaluation: answers to data of one's own, and the commonsense and math tasks through lm-evaluation-harness.

`lonas_edge.evaluate(…)` calls `api.evaluate`: package and function share the name.
"""

import sys
from types import ModuleType
from typing import Any


class _Function(ModuleType):
    """A module that can be called."""

    def __call__(self, *targets: Any, **options: Any) -> Any:
        from lonas_edge.evaluate.api import evaluate

        return evaluate(*targets, **options)


sys.modules[__name__].__class__ = _Function
