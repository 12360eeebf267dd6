"""Evaluation: the commonsense and math tasks through lm-evaluation-harness, with backends that are fast on a CPU."""

from pathlib import Path

HARNESS_TASKS = Path(__file__).parent / "harness_tasks"  # for `lm_eval --include_path`, too
