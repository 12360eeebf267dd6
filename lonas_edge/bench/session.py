"""Arms measured together: loaded into processes of their own, several times over, and run in turn.

Two processes of the same program may differ for as long as they live (where their memory lies), which no number of rounds
takes out. So the rounds are spread over several starts, as pyperf does, and intervals are over starts (`statistics.speedup`).
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psutil

from lonas_edge.bench import machine, report
from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import Measured, Progress, PromptSource, Schedule, measure
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement


@dataclass
class Session:
    """What a session gave.

    Attributes:
        measured: The samples and failures.
        load_seconds: Seconds that each arm took to load, the first time.
        bandwidths: Bytes a second read from memory, before each round.
        others: Shares of the processor that others took, for each start.
    """

    measured: Measured = field(default_factory=Measured)
    load_seconds: dict[str, float] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)


def run_session(
    group: Sequence[Arm],
    config: Mapping[str, Any],
    cases: Sequence[Case],
    schedule: Schedule,
    starts: int,
    place: Placement,
    prompts: PromptSource,
    progress: Progress,
) -> Session:
    """Measure arms that are loaded together.

    Args:
        group: The arms.
        config: Content of the sub-network's config.json, which says what a generation takes of memory.
        cases: The settings.
        schedule: Rounds in all, warm-ups at every start, seed.
        starts: How often the arms are started afresh; the rounds are divided among the starts.
        place: Where they compute.
        prompts: Gives the prompts.
        progress: Called with what is being done, and with the share done.

    Returns:
        What was measured, until the end or until Ctrl-C. What failed at one start is not tried at the next.
    """
    session = Session()
    parts = schedule.split(starts)
    for number, part in enumerate(parts):

        def reported(what: str, done: float | None, number: int = number) -> None:
            start = f"start {number + 1} of {len(parts)}, " if len(parts) > 1 else ""
            progress(f"{start}{what}", None if done is None else (number + done) / len(parts))

        session.measured.add(_start(group, config, cases, part, place, prompts, reported, session))
        if session.measured.interrupted:
            break
    return session


def _start(
    group: Sequence[Arm],
    config: Mapping[str, Any],
    cases: Sequence[Case],
    schedule: Schedule,
    place: Placement,
    prompts: PromptSource,
    progress: Progress,
    session: Session,
) -> Measured:
    failures = dict(session.measured.failures)
    loaded: dict[str, ArmProcess] = {}
    with ExitStack() as stack:
        try:
            for arm in group:
                if all((arm.name, case) in failures for case in cases):
                    continue
                progress(f"loading {arm.name}", None)
                process = stack.enter_context(ArmProcess(arm, place))
                try:
                    process.wait_loaded()
                except ArmFailedError as error:
                    failures.update({(arm.name, case): str(error) for case in cases})
                    continue
                loaded[arm.name] = process
                session.load_seconds.setdefault(arm.name, process.load_seconds)
        except KeyboardInterrupt:
            return Measured(failures=failures, interrupted=True)
        failures |= {key: why for key, why in too_large(group, config, cases).items() if key not in failures}
        pids = [process.pid for process in loaded.values() if process.pid]
        before = machine.CpuTimes.now(pids)

        def bandwidth() -> None:
            """Beside the rounds, because it changes with what else the host does."""
            session.bandwidths.append(machine.memory_bandwidth(place.threads))

        measured = measure(loaded, cases, schedule, prompts, progress, failures, bandwidth)
        session.others.append(machine.others_share(before, machine.CpuTimes.now(pids), os.cpu_count() or 1))
    return measured


def too_large(group: Sequence[Arm], config: Mapping[str, Any], cases: Sequence[Case]) -> dict[tuple[str, Case], str]:
    """Cases whose KV cache and activations have no room beside the loaded arms, told before they take the machine down.

    Args:
        group: The arms.
        config: Content of the sub-network's config.json.
        cases: The settings.

    Returns:
        Why, by arm and case.
    """
    available = psutil.virtual_memory().available
    faults = {}
    for arm in group:
        for case in cases:
            needed = run_bytes(config, case)
            if needed > available and arm.device.lower() == "cpu":
                faults[arm.name, case] = (
                    f"{arm.name}: {case}: not enough memory: about {needed / 1e9:.1f} GB needed, "
                    f"{available / 1e9:.1f} GB free. Choose a smaller --batch-size."
                )
    return faults


def run_bytes(config: Mapping[str, Any], case: Case) -> float:
    """Least memory of one generation beside the weights: KV cache in 16 bits, and the MLP's activations of one layer in fp32.

    Args:
        config: Content of the model's config.json.
        case: Says how long and how many.

    Returns:
        Bytes.
    """
    cache = report.kv_bytes(config, case.prompt_len + case.new_tokens, "f16")
    activations = 4.0 * case.prompt_len * (config["hidden_size"] + 2 * config["intermediate_size"])
    return case.batch_size * (cache + activations + 4.0 * config["vocab_size"])
