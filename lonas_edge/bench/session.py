"""Arms measured together: loaded into processes of their own, several times over, and run in turn.

Two processes of the same program may differ for as long as they live (where their memory lies), which no number of rounds
takes out. So the rounds are spread over several starts, as pyperf does, and intervals are over starts (`statistics.speedup`).
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from lonas_edge.bench import machine
from lonas_edge.bench.arms import Arm, Case, Facts
from lonas_edge.bench.measure import Measured, Prompter, Schedule, measure
from lonas_edge.bench.memory import config_of, run_bytes
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement
from lonas_edge.progress import Progress, silent


@dataclass(frozen=True)
class Plan:
    """What is measured, how often, and where.

    Attributes:
        config: Content of a config.json that says what a generation takes of memory, where an arm has none of its own.
        cases: The settings.
        schedule: Rounds in all, warm-ups at every start, seed.
        starts: How often the arms are started afresh; the rounds are divided among the starts.
        place: Where the arms compute.
        prompts: Gives the prompts.
        progress: Called with what is being done, and with the share done.
    """

    config: Mapping[str, Any]
    cases: Sequence[Case]
    schedule: Schedule
    starts: int
    place: Placement
    prompts: Prompter
    progress: Progress = silent


@dataclass
class Session:
    """What a session gave.

    Attributes:
        arms: Names of the arms that were together.
        measured: The samples and failures.
        facts: What is known of each arm that was loaded.
        bandwidths: Bytes a second read from memory, before each round.
        others: Shares of the processor that others took, for each start.
    """

    arms: list[str]
    measured: Measured = field(default_factory=Measured)
    facts: dict[str, Facts] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)


def run_session(group: Sequence[Arm], plan: Plan) -> Session:
    """Measure arms that are loaded together.

    Args:
        group: The arms.
        plan: What is measured of them.

    Returns:
        What was measured, until the end or until Ctrl-C. What failed at one start is not tried at the next.
    """
    session = Session([arm.name for arm in group])
    parts = plan.schedule.split(plan.starts)
    for number, part in enumerate(parts):

        def reported(what: str, done: float | None, number: int = number) -> None:
            start = f"start {number + 1} of {len(parts)}, " if len(parts) > 1 else ""
            plan.progress(f"{start}{what}", None if done is None else (number + done) / len(parts))

        session.measured.add(_start(group, replace(plan, schedule=part, progress=reported), session))
        if session.measured.interrupted:
            break
    return session


def _start(group: Sequence[Arm], plan: Plan, session: Session) -> Measured:
    failures = dict(session.measured.failures)
    with ExitStack() as stack:
        try:
            loaded = _load(group, plan, session, failures, stack)
            failures = too_large(group, plan.config, plan.cases) | failures
        except KeyboardInterrupt:
            return Measured(failures=failures, interrupted=True)
        pids = [process.pid for process in loaded.values() if process.pid]
        before = machine.CpuTimes.now(pids)

        def bandwidth() -> None:
            """Beside the rounds, because it changes with what else the host does."""
            session.bandwidths.append(machine.memory_bandwidth(plan.place.threads))

        measured = measure(loaded, plan.cases, plan.schedule, plan.prompts, plan.progress, failures, bandwidth)
        session.others.append(machine.others_share(before, machine.CpuTimes.now(pids), os.cpu_count() or 1))
    return measured


def _load(
    group: Sequence[Arm], plan: Plan, session: Session, failures: dict[tuple[str, Case], str], stack: ExitStack
) -> dict[str, ArmProcess]:
    """Start every arm that can still do a case; the first time, ask what is known of it."""
    loaded = {}
    for arm in group:
        if all((arm.name, case) in failures for case in plan.cases):
            continue
        plan.progress(f"loading {arm.name}", None)
        process = stack.enter_context(ArmProcess(arm, plan.place))
        try:
            seconds = process.wait_loaded()
            if arm.name not in session.facts:
                session.facts[arm.name] = Facts(seconds, None, None, **{"parameters": arm.parameters, **process.facts()})
        except ArmFailedError as error:
            failures.update({(arm.name, case): str(error) for case in plan.cases})
            continue
        loaded[arm.name] = process
    return loaded


def too_large(group: Sequence[Arm], config: Mapping[str, Any], cases: Sequence[Case]) -> dict[tuple[str, Case], str]:
    """Cases whose KV cache and activations have no room beside the loaded arms, told before they take the machine down.

    Args:
        group: The arms.
        config: As of `Plan`.
        cases: The settings.

    Returns:
        Why, by arm and case.
    """
    available = psutil.virtual_memory().available
    faults = {}
    for arm in group:
        own = config_of(arm, config)
        for case in cases:
            needed = run_bytes(own, case)
            if needed > available and arm.device.lower() == "cpu":
                faults[arm.name, case] = (
                    f"{arm.name}: {case}: not enough memory: about {needed / 1e9:.1f} GB needed, "
                    f"{available / 1e9:.1f} GB free. Choose a smaller --batch-size."
                )
    return faults
