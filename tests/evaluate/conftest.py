"""The harness's own tasks are thousands of files (10 s): here, a few of them, read once; all of them in slow tests."""

from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

import lonas_edge.evaluate.language

FOLDERS = [Path(lm_eval.tasks.__file__).parent / name for name in ("arc", "gsm8k", "openbookqa")]


@cache
def _few() -> TaskManager:
    return TaskManager(include_path=FOLDERS, include_defaults=False)


@pytest.fixture(autouse=True)
def _few_tasks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(**options: Any) -> TaskManager:
        return TaskManager(**options) if options else _few()

    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(lonas_edge.evaluate.language, "TaskManager", manager)
