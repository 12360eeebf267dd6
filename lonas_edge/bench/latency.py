"""Latency of arms side by side: the one way in which it is measured, for `bench`, `tune` and whoever asks what an IR costs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lonas_edge.bench import machine
from lonas_edge.bench.arms import Arm, Case, Kind, npu_lengths
from lonas_edge.bench.measure import PromptSource, Schedule
from lonas_edge.bench.memory import weight_bytes
from lonas_edge.bench.session import Plan, Session, run_session
from lonas_edge.errors import raise_all
from lonas_edge.exporting.exported import open_exported
from lonas_edge.progress import Progress, silent

_PROCESS_BYTES = 700_000_000  # libraries and activations of an arm beside its weights
_SHARE_OF_MEMORY = 0.9  # of what is free, for the arms that are loaded together


def measure_latency(arms: Sequence[Arm], plan: Plan) -> list[Session]:
    """Measure arms side by side, all together or in pairs, as memory allows.

    Args:
        arms: The arms, first the one that the others are compared with.
        plan: What is measured of them.

    Returns:
        What each session gave, until the end or until Ctrl-C; then the last one says so.
    """
    done = []
    for group in together(arms, psutil.virtual_memory().available):
        done.append(run_session(group, plan))
        if done[-1].measured.interrupted:
            break
    return done


def together(arms: Sequence[Arm], available: int) -> list[list[Arm]]:
    """Which arms are measured together: all, where they fit in memory, or else the first paired with each of the others.

    Args:
        arms: The arms.
        available: Free memory in bytes.

    Returns:
        Groups of arms, each with the first.
    """
    needed = sum(arm.bytes_estimate + _PROCESS_BYTES for arm in arms)
    if needed <= _SHARE_OF_MEMORY * available or len(arms) < 3:
        return [list(arms)]
    return [[arms[0], arm] for arm in arms[1:]]


@dataclass(frozen=True)
class Latency:
    """Median latency of an IR, seconds: of a generation the first two, of a classifier's pass the third.

    Attributes:
        ttft: Time to first token.
        tpot: Time per output token.
        latency: Of one pass of a batch.
    """

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None


def ir_latencies(
    irs: Sequence[tuple[Path, Mapping[str, str]]],
    case: Case,
    schedule: Schedule,
    starts: int = 1,
    device: str = "CPU",
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Latency]:
    """Measure IRs in one interleaved run.

    Args:
        irs: Directory and run-time properties of each; the same directory may be there several times.
        case: Length of prompt and answer, and how many at once.
        schedule: Rounds in all, warm-ups at every start, seed.
        starts: How often all are started afresh.
        device: The OpenVINO device.
        threads: Threads on a CPU; one for each physical core when None.
        progress: Called with what is being done, and with the share done.

    Returns:
        Medians, in the order of `irs`.

    Raises:
        LonasEdgeError: If one cannot be measured; all that cannot are listed.
        KeyboardInterrupt: At Ctrl-C.
    """
    kind: Kind = "ir" if case.new_tokens else "ir-classifier"
    opened = [open_exported(folder, ours=False) for folder, _ in irs]
    lengths = npu_lengths([case]) if device.startswith("NPU") else {}
    arms = [
        Arm(f"{n}: {folder.name}", kind, folder, device, properties={**lengths, **given}, bytes_estimate=weight_bytes(folder))
        for n, (folder, given) in enumerate(irs, 1)
    ]
    vocabulary = min(one.vocabulary for one in opened)
    prompts = PromptSource(vocabulary, schedule.seed)
    plan = Plan(opened[0].config, [case], schedule, starts, machine.placement(threads), prompts, progress)
    done = [session.measured for session in measure_latency(arms, plan)]
    if done[-1].interrupted:
        raise KeyboardInterrupt
    raise_all("These IRs cannot be measured:", [why for measured in done for why in measured.failures.values()])
    of_each = [[timing for measured in done for timing in measured.timings(arm.name, case)] for arm in arms]
    if not case.new_tokens:
        return [Latency(latency=statistics.median(t.end_to_end for t in own)) for own in of_each]
    return [Latency(statistics.median(t.ttft for t in own), statistics.median(t.tpot for t in own)) for own in of_each]
