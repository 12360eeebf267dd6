"""Language models on tasks of lm-evaluation-harness, which runs them, counts and gives standard errors."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import numpy as np
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers.utils.logging import disable_progress_bar

from lonas_edge.data.language import prompting_of
from lonas_edge.data.templates import CHAT, Template
from lonas_edge.data.test_sets import TASKS, resolve, unknown_task
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answers import BatchedLM, LoggedTarget, skip_too_long
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import GENERATE, HARNESS_TASKS, PromptProtocol
from lonas_edge.evaluate.results import SHARES, Metric, SkippedSample, TaskResult
from lonas_edge.evaluate.targets import Target
from lonas_edge.progress import Progress

OURS = "lonas_"  # prefix of our definitions
HARNESS = "harness:"  # prefix of a harness's task that shares its name with ours
_BOOTSTRAPS = 1000  # for metrics whose standard error has no formula; accuracies have one


class LanguageEvaluation:
    """Evaluates language models."""

    def __init__(self, settings: EvalSettings, targets: Sequence[Target], progress: Progress):
        """Check tasks and data; render each target's prompt template, which a damaged chat template refuses."""
        assert isinstance(settings.protocol, PromptProtocol)
        self.settings, self.protocol = settings, settings.protocol
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        hf_datasets.disable_progress_bars()
        disable_progress_bar()
        self._ours = [task for task in settings.tasks if task in self.protocol.tasks]
        self._check()
        self._harness = self._harness_tasks(progress)
        for target in targets:
            self._template(target)

    def prompt_of(self, target: Target) -> str:
        """Return the prompt, as reports show it."""
        return self.protocol.prompt or self.settings.prompt or target.prompt

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        target, ours = logged.target, self._load_tasks(logged.target)
        tasks = ours | self._harness
        samples = {name: self.settings.choose(self._label(name), len(task.eval_docs)) for name, task in tasks.items()}
        skipped: dict[str, tuple[SkippedSample, ...]] = {}
        for name, task in ours.items():
            lengths = {index: self.protocol.length(task.eval_docs[index], target.tokenizer) for index in samples[name]}
            samples[name], skipped[name] = skip_too_long(target, self._label(name), lengths)
        for task in tasks.values():
            task.set_fewshot_seed(seed=self.settings.seed)
        output: Any = evaluator.evaluate(
            lm=BatchedLM(logged, lambda name, done: progress(f"{target.name}  {self._label(name)}", done)),
            task_dict={"tasks": tasks, "groups": {}},
            samples=samples,
            log_samples=True,
            bootstrap_iters=_BOOTSTRAPS,
        )
        results = output["results"].items()
        return [self._task(name, values, output["samples"][name], skipped.get(name, ())) for name, values in results]

    def _check(self) -> None:
        """Refuse our own tasks without this protocol (the harness may have others of that name), and faulty test sets."""
        names = [name for name in resolve(TASKS, self.settings.tasks) if name in TASKS and name not in self.protocol.tasks]
        errors = [f"{name}: a task of the protocol {GENERATE.name}" for name in names]
        hint = f"Pass --protocol {GENERATE.name}; harness:NAME is lm-evaluation-harness's own task of that name."
        raise_all(f"Not available with the protocol {self.protocol.name}:", errors, hint)
        if self._ours and self.settings.datasets is None:
            ours = ", ".join(self._ours)
            raise LonasEdgeError(f"--datasets DIR is needed for {ours}: the directory with a folder for each task")
        for task in self._ours:
            try:
                self.protocol.read(self.settings.datasets or Path(), task)
            except LonasEdgeError as error:
                errors.append(str(error))
        raise_all("Test sets that cannot be used:", errors)

    def _harness_tasks(self, progress: Progress) -> dict[str, Any]:
        """Load the harness's own tasks."""
        ours = self.protocol.tasks
        wanted = [name.removeprefix(HARNESS) for name in self.settings.tasks if name not in ours]
        if not wanted:
            return {}
        progress("Looking for the harness's tasks", None)
        manager = TaskManager()
        unknown = [unknown_task(ours, name, manager.all_tasks) for name in wanted if name not in manager.task_index]
        raise_all("Unknown tasks:", unknown, f"Tasks with --datasets: {', '.join(ours)}. Others: `lm_eval ls tasks`.")
        loaded: dict[str, Any] = {}
        for name in wanted:
            progress(f"Fetching the data of {name}", None)
            try:
                loaded |= manager.load([name])["tasks"]
            except Exception as error:  # a dozen unrelated types from the hub, the data library and the task's own code
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise LonasEdgeError(f"task {name}: its data is not available: {reason}") from error
        for task in loaded.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        return loaded

    def _template(self, target: Target) -> Template | None:
        """Make a prompt template of a chat template: that of the training, or the model's own."""
        if self.protocol.prompt or (self.settings.prompt or target.prompt) != CHAT:
            return None
        return prompting_of(CHAT, target.record, target.tokenizer).template

    def _load_tasks(self, target: Target) -> dict[str, Any]:
        """Load our own definitions with this evaluation's data, prompt and beams."""
        if not self._ours:
            return {}
        template = self._template(target)
        metadata: dict[str, Any] = {"datasets": str(self.settings.datasets), "prompt": self.settings.prompt or target.prompt}
        metadata |= {"template": asdict(template)} if template else {}
        manager = TaskManager(include_path=HARNESS_TASKS, include_defaults=False, metadata=metadata)
        return dict(manager.load([f"{OURS}{task}_{self.protocol.name}" for task in self._ours])["tasks"])

    def _label(self, name: str) -> str:
        """Return a task's name in reports; the harness's are marked where ours have the same name."""
        if name.startswith(OURS):
            return name.removeprefix(OURS).rsplit("_", 1)[0]
        return f"{HARNESS}{name}" if name in self.protocol.tasks else name

    def _task(
        self, name: str, values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], skipped: tuple[SkippedSample, ...]
    ) -> TaskAnswers:
        """Read a task from the harness's results and sample log."""
        label, harness = self._label(name), not name.startswith(OURS)
        counted = samples[0]["filter"]  # a task of the harness may read its answers in several ways: the first counts
        metrics = _metrics(values, counted)
        own = None if harness else self.protocol.tasks[label].metric or self.protocol.metric
        metric = own or next((share for share in SHARES if share in metrics), next(iter(metrics)))
        kept = [sample for sample in samples if sample["filter"] == counted]
        result = TaskResult.of(label, metric, metrics, questions=len(kept), skipped=skipped, harness=harness)
        answers = None
        if metric in SHARES:
            correct = np.array([float(sample[metric]) for sample in kept])
            given = np.array([_given(metric, sample) for sample in kept], dtype=object)
            answers = Answers(label, np.array([sample["doc_id"] for sample in kept]), correct, given)
        return TaskAnswers(result, samples, answers)


def _metrics(values: Mapping[str, Any], counted: str) -> dict[str, Metric]:
    """Value and standard error by metric, from the harness's `metric,filter` and `metric_stderr,filter`."""
    metrics = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == counted else key
            metrics[name] = Metric(float(value), float(error) if isinstance(error, int | float) else None)
    return metrics


def _given(metric: str, sample: Mapping[str, Any]) -> str | int:
    """Return the answer: a text; the index of the best choice by the metric; or whether a text was the likeliest."""
    responses = sample["filtered_resps"]
    if not isinstance(responses[0], tuple | list):
        return str(responses[0])
    if len(responses) == 1:
        return str(responses[0][1])
    scores = [response[0] for response in responses]
    if metric == "acc_norm":
        lengths = [len(arguments[1].lstrip()) or 1 for arguments in sample["arguments"]]
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)
