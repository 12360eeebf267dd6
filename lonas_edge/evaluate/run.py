"""An evaluation from its targets to its report; the harness asks, counts and gives standard errors."""

import hashlib
import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets as hf_datasets
from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers.utils.logging import disable_progress_bar

from lonas_edge.data.conversations import chat_as_template, chat_template_of
from lonas_edge.data.tasks import resolve, unknown_task
from lonas_edge.data.templates import CHAT, Template
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate import HARNESS_TASKS
from lonas_edge.evaluate.answer_log import AnswerLog, Progress, ResumingLM, Told
from lonas_edge.evaluate.compare import Answered, compare
from lonas_edge.evaluate.protocols import DEFAULT as DEFAULT_PROTOCOL
from lonas_edge.evaluate.protocols import PROTOCOLS, TASKS, Protocol
from lonas_edge.evaluate.record import Report
from lonas_edge.evaluate.report import Samples
from lonas_edge.evaluate.results import FOREIGN, OURS, found_of, label
from lonas_edge.evaluate.targets import Target, cache_folder
from lonas_edge.exporting.evaluations import Conditions, LeftOut, TargetResult, averaged
from lonas_edge.ir.core import openvino_core
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "lm-eval", "openvino", "openvino-genai", "torch", "transformers", "peft")
_BOOTSTRAPS = 1000  # for metrics whose standard error has no formula; accuracies have one


@dataclass(frozen=True)
class EvalOptions:
    """What to ask.

    Attributes:
        tasks: Tasks of the protocol, or of the harness.
        datasets: Directory of the test sets; only the harness's own tasks do without.
        protocol: How to ask.
        prompt: Name of the prompt; each target's own when None.
        num_beams: Beams of a protocol that generates; its own number when None.
        limit: Samples of each task, a seeded choice; all when None.
        seed: Seed of that choice.
        resume: Whether answers of an earlier run are used.
        cache: Where finished answers are kept.
    """

    tasks: tuple[str, ...]
    datasets: Path | None
    protocol: Protocol = PROTOCOLS[DEFAULT_PROTOCOL]
    prompt: str | None = None
    num_beams: int | None = None
    limit: int | None = None
    seed: int = 0
    resume: bool = True
    cache: Path | None = None

    @property
    def ours(self) -> list[str]:
        """The tasks of the protocol."""
        return [task for task in self.tasks if task in self.protocol.tasks]

    @property
    def beams(self) -> int | None:
        """Beams; None where choices are ranked."""
        return self.num_beams or self.protocol.num_beams if self.protocol.generates else None


@dataclass(frozen=True)
class _Answers:
    """What one target answered."""

    result: TargetResult
    answers: Sequence[Answered]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]


def evaluate(
    targets: Sequence[Target], options: EvalOptions, progress: Progress = lambda _what, _done: None
) -> tuple[Report, Samples]:
    """Ask every target every task.

    Args:
        targets: What to evaluate; the first one is what the others are compared with.
        options: What to ask.
        progress: Called with what is being done, and the share of it that is done.

    Returns:
        The report, and the harness's sample logs by target and task.

    Raises:
        LonasEdgeError: If a task is unknown, its data missing or faulty; before a model is loaded.
    """
    quiet()
    _check_tasks(options)
    _check_data(options)
    foreign = _foreign_tasks(options, progress)
    templates = [_template(target, options) for target in targets]
    found = []
    for target, template in zip(targets, templates, strict=True):
        found.append(_evaluate(target, template, foreign, options, progress))
        target.close()
    first, *others = found
    report = Report(
        protocol=options.protocol.name,
        num_beams=options.beams,
        limit=options.limit,
        seed=options.seed,
        targets=tuple(one.result for one in found),
        differences=tuple(
            difference
            for one in others
            for difference in compare(one.result.name, one.answers, first.result.name, first.answers)
        ),
        conditions=conditions(),
    )
    return report, {one.result.name: one.samples for one in found}


def quiet() -> None:
    """The harness and the data library tell on the terminal what the report says."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    hf_datasets.disable_progress_bars()
    disable_progress_bar()


def _check_tasks(options: EvalOptions) -> None:
    """Refuse our own tasks that the protocol does not ask: the harness may have another one by that name."""
    protocol = options.protocol
    known = [name for name in resolve(TASKS, options.tasks) if name in TASKS and name not in protocol.tasks]
    faults = [f"{name}: a task of the protocol {DEFAULT_PROTOCOL}" for name in known]
    way_out = f"Take --protocol {DEFAULT_PROTOCOL}; harness:NAME is lm-evaluation-harness's own task of that name."
    raise_all(f"The protocol {protocol.name} does not ask:", faults, way_out)


def _check_data(options: EvalOptions) -> None:
    if options.ours and options.datasets is None:
        told = ", ".join(options.ours)
        raise LonasEdgeError(f"--datasets DIR is needed for {told}: the directory with a folder for each task")
    faults = []
    for task in options.ours:
        try:
            options.protocol.read(Path(options.datasets or ""), task)
        except LonasEdgeError as error:
            faults.append(str(error))
    raise_all("The test sets are not usable:", faults)


def _foreign_tasks(options: EvalOptions, progress: Progress) -> dict[str, Any]:
    """The harness's own tasks."""
    tasks = options.protocol.tasks
    wanted = [name.removeprefix(FOREIGN) for name in options.tasks if name not in tasks]
    if not wanted:
        return {}
    progress("Looking for the harness's tasks", None)
    manager = TaskManager()
    unknown = [unknown_task(tasks, name, manager.all_tasks) for name in wanted if name not in manager.task_index]
    raise_all("Unknown tasks:", unknown, f"Tasks with --datasets: {', '.join(tasks)}. Others: `lm_eval ls tasks`.")
    found: dict[str, Any] = {}
    for name in wanted:
        progress(f"Fetching the data of {name}", None)
        try:
            found |= manager.load([name])["tasks"]
        except Exception as error:  # a dozen unrelated types from the hub, the data library and the task's own code
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LonasEdgeError(f"task {name}: its data cannot be had: {reason}") from error
    for task in found.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return found


def _template(target: Target, options: EvalOptions) -> Template | None:
    """What a prompt is that has no template of its own name: the chat template that was trained with, or the model's own."""
    if options.protocol.prompt or (options.prompt or target.prompt) != CHAT:
        return None
    if target.template:
        return target.template
    where = Path(target.name)
    return chat_as_template(chat_template_of(target.tokenizer, where), target.tokenizer, where)


def _evaluate(
    target: Target, template: Template | None, foreign: dict[str, Any], options: EvalOptions, progress: Progress
) -> _Answers:
    name = options.prompt or target.prompt
    prompt = options.protocol.prompt or name
    loaded = _load_tasks(options, name, template)
    tasks = loaded | foreign
    samples = {name: _chosen(label(name, options.protocol), task, options) for name, task in tasks.items()}
    left_out = _leave_out(target, loaded, samples, options.protocol)
    identity = {
        "target": target.identity,
        "protocol": options.protocol.name,
        "prompt": prompt,
        "num_beams": options.beams,
    }
    identity |= {"template": asdict(template)} if template else {}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    path = (options.cache or cache_folder()) / f"{key}.jsonl"
    log = AnswerLog(path, {"name": target.name, **identity}, fresh=not options.resume)
    model = ResumingLM(target.load, log, target.batch_size, _told(target, options.protocol, progress))
    try:
        found = _ask(model, tasks, samples, options.seed)
    finally:
        log.close()
    return _answers(target, prompt, options.protocol, found, left_out, model)


def _ask(model: ResumingLM, tasks: Mapping[str, Any], samples: Mapping[str, list[int]], seed: int) -> Any:
    for task in tasks.values():
        task.set_fewshot_seed(seed=seed)
    return evaluator.evaluate(
        lm=model,
        task_dict={"tasks": tasks, "groups": {}},
        samples=samples,
        log_samples=True,
        bootstrap_iters=_BOOTSTRAPS,
    )


def _told(target: Target, protocol: Protocol, progress: Progress) -> Told:
    def tell(task: str, done: float, rate: float | None) -> None:
        progress(f"{target.name}  {label(task, protocol)}" + (f"  {rate:.1f} prompts/s" if rate else ""), done)

    return tell


def _load_tasks(options: EvalOptions, prompt: str, template: Template | None) -> dict[str, Any]:
    """Our own definitions, with this evaluation's data, prompt and beams."""
    if not options.ours:
        return {}
    protocol = options.protocol
    manager = TaskManager(
        include_path=HARNESS_TASKS,
        include_defaults=False,
        metadata={"datasets": str(options.datasets), "prompt": prompt, **({"template": asdict(template)} if template else {})},
    )
    loaded = dict(manager.load([f"{OURS}{task}_{protocol.name}" for task in options.ours])["tasks"])
    if protocol.generates:
        for task in loaded.values():
            task.set_config(key="generation_kwargs", value={"num_beams": options.beams}, update=True)
    return loaded


def _chosen(name: str, task: Any, options: EvalOptions) -> list[int]:
    """Indices of the samples that are asked: a choice that depends on the seed and the task's name alone."""
    everything = range(len(task.eval_docs))
    if options.limit is None or options.limit >= len(everything):
        return list(everything)
    return sorted(random.Random(f"{options.seed}/{name}").sample(everything, options.limit))


def _leave_out(
    target: Target, tasks: Mapping[str, Any], samples: Mapping[str, list[int]], protocol: Protocol
) -> dict[str, list[LeftOut]]:
    """Take out of `samples` what the model's context cannot hold with its answer: it is named, never cut."""
    found: dict[str, list[LeftOut]] = {}
    for name, task in tasks.items():
        needed = {index: _needed(target, task.eval_docs[index], protocol) for index in samples[name]}
        shown = label(name, protocol)
        found[name] = [
            LeftOut(shown, index, tokens, target.max_length) for index, tokens in needed.items() if tokens > target.max_length
        ]
        for one in found[name]:
            samples[name].remove(one.sample)
    empty = [f"{label(name, protocol)}: every prompt that was chosen is too long" for name in samples if not samples[name]]
    raise_all(f"{target.name}: nothing is left to ask (context: {target.max_length} tokens, by config.json):", empty)
    return found


def _needed(target: Target, document: Mapping[str, Any], protocol: Protocol) -> int:
    """Tokens of a prompt with its longest answer; a bound where that tells enough."""
    most = _most_tokens(document["prompt"]) + protocol.longest_answer(document, _most_tokens)
    if most <= target.max_length:
        return most

    def tokens(text: str) -> int:
        return len(target.tokenizer(text)["input_ids"])

    return tokens(document["prompt"]) + protocol.longest_answer(document, tokens)


def _most_tokens(text: str) -> int:
    """A token is a byte at least, and the tokenizer may add one at either end."""
    return len(text.encode()) + 2


def _answers(
    target: Target,
    prompt: str,
    protocol: Protocol,
    found: Any,
    left_out: Mapping[str, Sequence[LeftOut]],
    model: ResumingLM,
) -> _Answers:
    tasks = [
        found_of(name, values, found["samples"][name], left_out.get(name, ()), protocol)
        for name, values in found["results"].items()
    ]
    results = tuple(task.result for task in tasks)
    average, error = averaged(results)
    result = TargetResult(
        name=target.name,
        kind=target.kind,
        precision=target.precision,
        prompt=prompt,
        sizes=target.sizes,
        average=average,
        average_stderr=error,
        tasks=results,
        asked=model.asked,
        seconds=model.seconds,
        identity=dict(target.identity),
    )
    answers = [answered for task in tasks for answered in task.answers]
    return _Answers(result, answers, {task.result.task: task.samples for task in tasks})


def conditions() -> Conditions:
    """Where and when figures are taken."""
    processor = openvino_core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    return Conditions(processor, versions(PACKAGES), time.strftime("%Y-%m-%d"))


@contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise LonasEdgeError("interrupted: the answers so far are kept; the same command goes on from there") from None
