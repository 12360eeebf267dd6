"""An evaluation from its targets to its report; the harness asks, counts and gives standard errors."""

import hashlib
import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets as hf_datasets
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers.utils.logging import disable_progress_bar

from lonas_edge.data.commonsense import TASKS, read_samples, unknown_task
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate import HARNESS_TASKS
from lonas_edge.evaluate.answer_log import AnswerLog, Progress, ResumingLM, Told
from lonas_edge.evaluate.compare import Answered, compare
from lonas_edge.evaluate.report import NEW_TOKENS, OPTION_TEXT_PROMPT, SHARES, LeftOut, Report, TargetReport, TaskResult
from lonas_edge.evaluate.targets import Target, cache_folder
from lonas_edge.evaluate.tasks import METRIC
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "lm-eval", "openvino", "openvino-genai", "torch", "transformers", "peft")
_OURS = "lonas_"  # in front of the names of our definitions
_FOREIGN = "harness:"  # in front of a harness's task that has the name of one of ours
_BOOTSTRAPS = 1000  # for metrics whose standard error has no formula; accuracies have one


@dataclass(frozen=True)
class EvalOptions:
    """What to ask.

    Attributes:
        tasks: Tasks of this package, or of the harness.
        datasets: Directory of the test sets; only the harness's own tasks do without.
        protocol: generate, answer-word or option-text.
        prompt: Name of the prompt template; each target's own when None.
        num_beams: Beams of the protocol `generate`.
        limit: Samples of each task, a seeded choice; all when None.
        seed: Seed of that choice.
        resume: Whether answers of an earlier run are used.
        cache: Where finished answers are kept.
    """

    tasks: tuple[str, ...]
    datasets: Path | None
    protocol: str = "generate"
    prompt: str | None = None
    num_beams: int = 4
    limit: int | None = None
    seed: int = 0
    resume: bool = True
    cache: Path | None = None


def evaluate(targets: Sequence[Target], options: EvalOptions, progress: Progress = lambda _what, _done: None) -> Report:
    """Ask every target every task.

    Args:
        targets: What to evaluate; the first one is what the others are compared with.
        options: What to ask.
        progress: Called with what is being done, and the share of it that is done.

    Returns:
        The report.

    Raises:
        LonasEdgeError: If a task is unknown, its data missing or faulty; before a model is loaded.
    """
    quiet()
    ours = [task for task in options.tasks if task in TASKS]
    if ours and options.datasets is None:
        raise LonasEdgeError(f"--datasets DIR is needed for {', '.join(ours)}: the directory with a folder for each task")
    faults = []
    for task in ours:
        try:
            read_samples(Path(options.datasets or ""), task, options.protocol)
        except LonasEdgeError as error:
            faults.append(str(error))
    raise_all("The test sets are not usable:", faults)
    foreign = _foreign_tasks([task for task in options.tasks if task not in TASKS], progress)
    reports = [_evaluate(target, ours, foreign, options, progress) for target in targets]
    first = reports[0]
    return Report(
        protocol=options.protocol,
        num_beams=options.num_beams if options.protocol == "generate" else None,
        limit=options.limit,
        seed=options.seed,
        targets=reports,
        differences=[found for other in reports[1:] for found in compare(other.name, other.answers, first.name, first.answers)],
        conditions=_conditions(),
    )


def quiet() -> None:
    """The harness and the data library tell on the terminal what the report says."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    hf_datasets.disable_progress_bars()
    disable_progress_bar()


def _foreign_tasks(names: Sequence[str], progress: Progress) -> dict[str, Any]:
    """The harness's own tasks."""
    if not names:
        return {}
    progress("Looking for the harness's tasks", None)
    manager = TaskManager()
    wanted = [name.removeprefix(_FOREIGN) for name in names]
    unknown = [unknown_task(name, manager.all_tasks) for name in wanted if name not in manager.task_index]
    known = f"Tasks with --datasets: {', '.join(TASKS)}. Others: `lm_eval ls tasks`."
    raise_all("Unknown tasks:", unknown, known)
    found: dict[str, Any] = {}
    for name in wanted:
        progress(f"Fetching the data of {name}", None)
        try:
            found |= manager.load([name])["tasks"]
        except Exception as error:  # a dozen unrelated types from the hub, the data library and the task's own code
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LonasEdgeError(f"task {name}: its data cannot be had: {reason}") from error
    return found


def _evaluate(
    target: Target, ours: Sequence[str], foreign: dict[str, Any], options: EvalOptions, progress: Progress
) -> TargetReport:
    prompt = options.prompt or target.prompt
    loaded = _load_tasks(ours, options, prompt)
    tasks = loaded | foreign
    samples = {name: _chosen(label(name), task, options) for name, task in tasks.items()}
    left_out = _too_long(target, {name: (task, samples[name]) for name, task in loaded.items()}, options)
    for one in left_out:
        samples[one.task].remove(one.sample)
    empty = [f"{label(name)}: every prompt that was chosen is too long" for name, chosen in samples.items() if not chosen]
    raise_all(f"{target.name}: nothing is left to ask (context: {target.max_length} tokens):", empty)
    identity = {"target": target.identity, "protocol": options.protocol, "prompt": prompt, "num_beams": options.num_beams}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = (options.cache or cache_folder()) / f"{key}.jsonl"
    log = AnswerLog(path, {"name": target.name, **identity}, fresh=not options.resume)
    model = ResumingLM(target.load, log, target.batch_size, _told(target, progress))
    try:
        for task in tasks.values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=options.seed)
        found = evaluator.evaluate(
            lm=model,
            task_dict={"tasks": tasks, "groups": {}},
            samples=samples,
            log_samples=True,
            bootstrap_iters=_BOOTSTRAPS,
        )
    finally:
        log.close()
    return _report(target, prompt, options.protocol, found, left_out, model)


def _told(target: Target, progress: Progress) -> Told:
    def tell(task: str, done: float, rate: float | None) -> None:
        progress(f"{target.name}  {label(task)}" + (f"  {rate:.1f} prompts/s" if rate else ""), done)

    return tell


def label(name: str) -> str:
    """What a task is called in reports: ours by the task alone, the harness's own by its name, marked where it is one of ours.

    Args:
        name: The harness's name of it.

    Returns:
        The label.
    """
    if name.startswith(_OURS):
        return name.removeprefix(_OURS).rsplit("_", 1)[0]
    return f"{_FOREIGN}{name}" if name in TASKS else name


def _load_tasks(ours: Sequence[str], options: EvalOptions, prompt: str) -> dict[str, Any]:
    if not ours:
        return {}
    manager = TaskManager(
        include_path=HARNESS_TASKS,
        include_defaults=False,
        metadata={"datasets": str(options.datasets), "prompt": prompt},
    )
    loaded = dict(manager.load([f"{_OURS}{task}_{options.protocol}" for task in ours])["tasks"])
    if options.protocol == "generate":
        for task in loaded.values():
            task.set_config(key="generation_kwargs", value={"num_beams": options.num_beams}, update=True)
    return loaded


def _chosen(name: str, task: Any, options: EvalOptions) -> list[int]:
    """Indices of the samples that are asked: a choice that depends on the seed and the task's name alone."""
    everything = range(len(task.eval_docs))
    if options.limit is None or options.limit >= len(everything):
        return list(everything)
    return sorted(random.Random(f"{options.seed}/{name}").sample(everything, options.limit))


def _too_long(target: Target, tasks: Mapping[str, tuple[Any, Sequence[int]]], options: EvalOptions) -> list[LeftOut]:
    """Samples that the model's context cannot hold with their answer. They are left out and named, never cut."""
    found = []
    for name, (task, chosen) in tasks.items():
        for index in chosen:
            document = task.eval_docs[index]
            answers = [] if options.protocol == "generate" else [f" {choice}" for choice in document["choices"]]
            rest = max([NEW_TOKENS, *(len(text.encode()) for text in answers)])
            if len(document["prompt"].encode()) + rest < target.max_length - 2:
                continue  # a token is a byte at least, and the tokenizer may add one at either end
            longest = max([len(target.tokenizer(text)["input_ids"]) for text in answers], default=NEW_TOKENS)
            tokens = len(target.tokenizer(document["prompt"])["input_ids"]) + longest
            if tokens > target.max_length:
                found.append(LeftOut(name, index, tokens, target.max_length))
    return found


def _report(
    target: Target, prompt: str, protocol: str, found: Any, left_out: Sequence[LeftOut], model: ResumingLM
) -> TargetReport:
    results: list[TaskResult] = []
    answers: list[Answered] = []
    logs: dict[str, list[Any]] = {}
    for name, values in found["results"].items():
        shown, ours = label(name), name.startswith(_OURS)
        logs[shown] = found["samples"][name]
        counted = logs[shown][0]["filter"]  # a task of the harness's may read its answers in several ways: the first counts
        metrics = _metrics(values, counted)
        headline = metric_of(shown, protocol) if ours else next((one for one in SHARES if one in metrics), next(iter(metrics)))
        asked = [sample for sample in logs[shown] if sample["filter"] == counted]
        missing = [one.named(shown) for one in left_out if one.task == name]
        results.append(TaskResult(shown, headline, metrics, len(asked), missing, harness=not ours))
        if headline in SHARES:
            answers += [_answered(shown, headline, sample) for sample in asked]
    return TargetReport(
        name=target.name,
        kind=target.kind,
        precision=target.precision,
        prompt=prompt if protocol != "option-text" else OPTION_TEXT_PROMPT,
        sizes=target.sizes,
        identity=target.identity,
        tasks=results,
        asked=model.asked,
        seconds=model.seconds,
        answers=answers,
        samples=logs,
    )


def metric_of(task: str, protocol: str) -> str:
    """Which metric is a task's accuracy. BoolQ's options are two words: their length says nothing."""
    return "acc" if task == "boolq" else METRIC[protocol]


def _metrics(values: Mapping[str, Any], counted: str) -> dict[str, tuple[float, float | None]]:
    """Value and standard error by metric, from the harness's `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == counted else key
            found[name] = (float(value), float(error) if isinstance(error, int | float) else None)
    return found


def _answered(task: str, metric: str, sample: Mapping[str, Any]) -> Answered:
    """What was answered: a text; the place of the choice that wins by the metric; or whether a text was the likeliest."""
    index, right, responses = sample["doc_id"], float(sample[metric]), sample["filtered_resps"]
    if not isinstance(responses[0], tuple | list):
        return Answered(task, index, right, str(responses[0]))
    if len(responses) == 1:
        return Answered(task, index, right, str(responses[0][1]))
    scores = [response[0] for response in responses]
    if metric == "acc_norm":
        lengths = [len(arguments[1].lstrip()) or 1 for arguments in sample["arguments"]]
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    return Answered(task, index, right, max(range(len(scores)), key=scores.__getitem__))


def _conditions() -> dict[str, Any]:
    import openvino as ov

    return {
        "processor": ov.Core().get_property("CPU", "FULL_DEVICE_NAME"),
        "versions": versions(PACKAGES),
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise LonasEdgeError("interrupted: the answers so far are kept; the same command goes on from there") from None
