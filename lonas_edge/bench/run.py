"""A benchmark from its inputs to its report."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lonas_edge.bench import machine, report
from lonas_edge.bench.arms import Arm, Case, Facts
from lonas_edge.bench.latency import measure_latency
from lonas_edge.bench.making import make_arms
from lonas_edge.bench.measure import Measured, PromptSource
from lonas_edge.bench.memory import config_of
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.prompts import DataPrompts, read_prompts
from lonas_edge.bench.session import Plan, Session
from lonas_edge.bench.speculation import Speculation, Texts, exact_texts, speculations
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import Exported
from lonas_edge.files import read_json
from lonas_edge.ir import runtime
from lonas_edge.progress import Progress, silent
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "torch", "transformers", "peft", "nncf", "llama-cpp-python")


def bench(exported: Exported, options: BenchOptions, progress: Progress = silent) -> report.Report:
    """Compare a sub-network with other forms of the same model.

    Args:
        exported: The sub-network's exported directory.
        options: What to measure.
        progress: Called with what is being done, and with the share done.

    Returns:
        The report; what was done until Ctrl-C, if that ended it.

    Raises:
        LonasEdgeError: If the inputs do not fit, or nothing could be measured.
    """
    runtime.check_device(options.device)
    check_cases(exported, options.cases)
    asked = _asked(exported, options) if options.data else None
    if asked:
        options = replace(options, cases=tuple(replace(case, prompt_len=asked.longest) for case in options.cases))
    place = machine.placement(options.threads)
    arms = make_arms(exported, options, progress)
    prompts = asked or PromptSource(min(exported.vocabulary, *map(_vocabulary, arms)), options.schedule.seed)
    configs = {arm.name: config_of(arm, exported.config) for arm in arms}
    plan = Plan(exported.config, options.cases, options.schedule, options.starts, place, prompts, progress)
    sessions = measure_latency(arms, plan)
    facts = {name: known for session in reversed(sessions) for name, known in session.facts.items()}
    measured = [session.measured for session in sessions]
    interrupted = measured[-1].interrupted
    exact: dict[tuple[str, Case], Texts] = {}
    if not interrupted and options.device == "CPU" and any(arm.draft for arm in arms):
        interrupted, exact = _compare_exactly(arms, plan)
    if options.memory and not interrupted:
        interrupted = _measure_memory(arms, plan, facts, measured)
    if not any(session.samples for session in measured):
        reasons = [failure.reason for failure in report.failures(measured)]
        raise_all("Nothing could be measured:", reasons)
        raise LonasEdgeError("interrupted before anything was measured")
    described = [report.arm_report(arm, facts.get(arm.name)) for arm in arms]
    speculated = speculations(measured, arms, options.cases, exact)
    return _report(exported, options, place, described, configs, sessions, interrupted, speculated, asked)


def _asked(exported: Exported, options: BenchOptions) -> DataPrompts:
    assert options.data  # it is given
    schedule = options.schedule
    count = schedule.rounds + schedule.warmup * options.starts_done
    longest = max(case.prompt_len for case in options.cases)
    return read_prompts(exported, options.data, longest, count, schedule.seed)


def _compare_exactly(arms: Sequence[Arm], plan: Plan) -> tuple[bool, dict[tuple[str, Case], Texts]]:
    """Whether Ctrl-C ended it, and what was found."""
    plan.progress("Comparing texts with and without the draft in fp32", None)
    try:
        return False, exact_texts(arms, plan.cases, plan.prompts, plan.place)
    except KeyboardInterrupt:
        return True, {}


def _report(
    exported: Exported,
    options: BenchOptions,
    place: Placement,
    arms: Sequence[report.ArmReport],
    configs: Mapping[str, Mapping[str, Any]],
    sessions: Sequence[Session],
    interrupted: bool,
    speculated: Sequence[Speculation],
    asked: DataPrompts | None,
) -> report.Report:
    measured = [session.measured for session in sessions]
    passes = [one for session in sessions for one in session.bandwidths]
    bandwidth = statistics.median(passes) if passes else None
    others = [one for session in sessions for one in session.others]
    load = {key: max((one[key] for one in others), default=0.0) for key in ("others", "stolen")}
    compared = report.comparisons(measured, [arm.name for arm in arms], options.cases)
    return report.Report(
        model={key: exported.own_manifest.to_json()[key] for key in report.MODEL_FIELDS},
        conditions=_conditions(options, place, sessions) | {"prompts": asked.described() if asked else None},
        load=load,
        bandwidth=bandwidth,
        arms=arms,
        rows=report.rows(measured, arms, options.cases, configs, bandwidth),
        comparisons=compared,
        speculations=speculated,
        failures=report.failures(measured),
        warnings=report.warnings(compared, load, interrupted, options.schedule.rounds, options.starts_done)
        + report.text_warnings(speculated),
        interrupted=interrupted,
        samples=report.samples(measured),
    )


def check_cases(exported: Exported, cases: Sequence[Case]) -> None:
    """Refuse cases that the model cannot run.

    Args:
        exported: The sub-network.
        cases: The settings.

    Raises:
        LonasEdgeError: If a case is longer than the context; all are listed.
    """
    context = exported.context
    too_long = [
        f"{case}: {case.prompt_len + case.new_tokens} tokens, the context holds {context}"
        for case in cases
        if context and case.prompt_len + case.new_tokens > context
    ]
    raise_all(
        f"{exported.folder}: longer than the model's context:", too_long, "Choose a shorter --prompt-len or --new-tokens."
    )


def _vocabulary(arm: Arm) -> int:
    """Size of the vocabulary of an arm's model; without limit where its file does not say it."""
    config = arm.path / "config.json"
    if not config.exists():
        return 2**31
    found = read_json(config).get("vocab_size")
    if type(found) is not int or found < 1:
        raise LonasEdgeError(f"{config}: vocab_size: expected a whole number, found {found!r}")
    return found


def _measure_memory(arms: Sequence[Arm], plan: Plan, facts: dict[str, Facts], done: Sequence[Measured]) -> bool:
    """Load each arm alone and run its largest case once; adds to facts and failures. Returns whether Ctrl-C ended it."""
    failed = {key for measured in done for key in measured.failures}
    try:
        for arm in arms:
            possible = [case for case in plan.cases if (arm.name, case) not in failed]
            if not possible:
                continue
            largest = max(possible, key=lambda case: case.batch_size * (case.prompt_len + case.new_tokens))
            plan.progress(f"Peak memory of {arm.name}, in a process of its own", None)
            try:
                with ArmProcess(arm, plan.place) as process:
                    process.wait_loaded()
                    process.run(plan.prompts.next(largest), largest.new_tokens)
                    facts[arm.name] = replace(facts[arm.name], **process.peak())
            except ArmFailedError as error:
                done[-1].failures[arm.name, largest] = f"{error} (while its peak memory was measured)"
    except KeyboardInterrupt:
        return True
    return False


def _conditions(options: BenchOptions, place: Placement, sessions: Sequence[Session]) -> dict[str, Any]:
    return {
        "machine": machine.describe(options.device),
        "threads": place.threads,
        "cores": list(place.cores),
        "schedule": {**vars(options.schedule), "starts": options.starts_done},
        "sessions": [session.arms for session in sessions],
        "versions": versions(PACKAGES),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
