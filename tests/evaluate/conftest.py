"""The harness's own tasks are thousands of files, read when one of them is asked for: here, once."""

from functools import cache
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

import lonas_edge.evaluate.language

_indexed = cache(TaskManager)


@pytest.fixture(autouse=True)
def _tasks_are_indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(**options: Any) -> TaskManager:
        return TaskManager(**options) if options else _indexed()

    monkeypatch.setattr(lonas_edge.evaluate.language, "TaskManager", manager)
