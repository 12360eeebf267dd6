"""Measure the latency of variants in interleaved rounds, for `bench` and `search`.

Two processes of the same program may differ for as long as they live (by the location of their memory), and more rounds do not
average that out. So the rounds are spread over several process starts, as pyperf does, and intervals are over starts
(`statistics.paired_ratio`).
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench import machine
from lonas_edge.bench.measure import Measurement, PromptSource, Schedule, measure
from lonas_edge.bench.memory import config_of, run_bytes, weight_bytes
from lonas_edge.bench.variants import Case, Facts, Kind, Variant, npu_lengths
from lonas_edge.bench.worker import Placement, VariantFailedError, VariantProcess
from lonas_edge.errors import raise_all
from lonas_edge.exporting.exported import open_exported
from lonas_edge.progress import Progress, silent

_PROCESS_BYTES = 700_000_000  # libraries and activations of a process
_SHARE_OF_MEMORY = 0.9  # of the free memory, for variants that are loaded together


@dataclass(frozen=True)
class Plan:
    """Cases, schedule and placement of a measurement; `config` is the config.json of variants without one."""

    config: Mapping[str, Any]
    cases: Sequence[Case]
    schedule: Schedule
    placement: Placement
    prompts: PromptSource
    progress: Progress = silent


def measure_latency(variants: Sequence[Variant], plan: Plan) -> Measurement:
    """Measure variants, all loaded together or each in a pair with the first, as memory allows.

    Returns the samples until the end or Ctrl-C. A variant that fails at one start is not tried at the next.
    """
    result = Measurement()
    for group in loaded_together(variants, psutil.virtual_memory().available):
        result.add(_measure_group(group, plan))
        if result.interrupted:
            break
    return result


def loaded_together(variants: Sequence[Variant], available: int) -> list[list[Variant]]:
    """Group variants: all together if they fit in `available` bytes, otherwise the first with each of the others."""
    needed = sum(variant.bytes_estimate + _PROCESS_BYTES for variant in variants)
    if needed <= _SHARE_OF_MEMORY * available or len(variants) < 3:
        return [list(variants)]
    return [[variants[0], variant] for variant in variants[1:]]


def _measure_group(group: Sequence[Variant], plan: Plan) -> Measurement:
    result = Measurement(groups=[[variant.name for variant in group]])
    parts = plan.schedule.split()
    for number, part in enumerate(parts):

        def progress(step: str, done: float | None, number: int = number) -> None:
            start = f"start {number + 1} of {len(parts)}, " if len(parts) > 1 else ""
            plan.progress(f"{start}{step}", None if done is None else (number + done) / len(parts))

        result.add(_measure_start(group, replace(plan, schedule=part, progress=progress), result.failures, number == 0))
        if result.interrupted:
            break
    return result


def _measure_start(group: Sequence[Variant], plan: Plan, failures: Mapping[tuple[str, Case], str], first: bool) -> Measurement:
    """Start the processes once and measure; collect facts if it is the first start."""
    failures = dict(failures)
    with ExitStack() as stack:
        try:
            loaded, seconds = _load(group, plan, failures, stack)
            failures = too_large(group, plan.config, plan.cases) | failures
        except KeyboardInterrupt:
            return Measurement(failures=failures, interrupted=True)
        pids = [process.pid for process in loaded.values() if process.pid]
        before = machine.CpuTimes.now(pids)
        bandwidths: list[float] = []

        def measure_bandwidth() -> None:  # before each round: it varies with the load of the host
            bandwidths.append(machine.memory_bandwidth(plan.placement.threads))

        result = measure(loaded, plan.cases, plan.schedule, plan.prompts, plan.progress, failures, measure_bandwidth)
        result.bandwidths = bandwidths
        result.loads = [machine.others_share(before, machine.CpuTimes.now(pids), os.cpu_count() or 1)]
        if first and not result.interrupted:
            result.facts = _facts(group, loaded, seconds)
    return result


def _load(
    group: Sequence[Variant], plan: Plan, failures: dict[tuple[str, Case], str], stack: ExitStack
) -> tuple[dict[str, VariantProcess], dict[str, float]]:
    """Start every variant that has a case left; return processes and load times by name, and add to `failures`."""
    loaded: dict[str, VariantProcess] = {}
    seconds: dict[str, float] = {}
    for variant in group:
        if all((variant.name, case) in failures for case in plan.cases):
            continue
        plan.progress(f"loading {variant.name}", None)
        process = stack.enter_context(VariantProcess(variant, plan.placement))
        try:
            seconds[variant.name] = process.wait_loaded()
        except VariantFailedError as error:
            failures.update({(variant.name, case): str(error) for case in plan.cases})
            continue
        loaded[variant.name] = process
    return loaded, seconds


def _facts(group: Sequence[Variant], loaded: Mapping[str, VariantProcess], seconds: Mapping[str, float]) -> dict[str, Facts]:
    facts = {}
    for variant in group:
        process = loaded.get(variant.name)
        if process is None or not process.alive:
            continue
        try:
            facts[variant.name] = Facts(seconds[variant.name], **{"parameters": variant.parameters, **process.facts()})
        except VariantFailedError:
            continue  # its latency is known nevertheless
    return facts


def too_large(group: Sequence[Variant], config: Mapping[str, Any], cases: Sequence[Case]) -> dict[tuple[str, Case], str]:
    """Return error messages for cases whose KV cache and activations exceed the free memory, by variant and case."""
    available = psutil.virtual_memory().available
    problems = {}
    for variant in group:
        own = config_of(variant, config)
        for case in cases:
            needed = run_bytes(own, case)
            if needed > available and variant.device.lower() == "cpu":
                problems[variant.name, case] = (
                    f"{variant.name}: {case}: not enough memory: needs about {needed / 1e9:.1f} GB, "
                    f"{available / 1e9:.1f} GB are free. Choose a smaller --batch-size."
                )
    return problems


@dataclass(frozen=True)
class Latency:
    """Median latency of an IR in seconds: TTFT and TPOT of a generation, or latency of a classifier's pass."""

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None


def ir_latencies(
    irs: Sequence[tuple[Path, Mapping[str, str]]],
    case: Case,
    schedule: Schedule,
    device: str = "CPU",
    threads: int | None = None,
    progress: Progress = silent,
) -> list[Latency]:
    """Measure IRs in one interleaved run; return medians, in the order of `irs`.

    `irs` are directories and their runtime properties; a directory may occur several times. `threads` is one per physical core
    when None. An error lists all IRs that cannot be measured.
    """
    kind: Kind = "ir" if case.new_tokens else "ir-classifier"
    opened = [open_exported(folder, ours=False) for folder, _ in irs]
    lengths = npu_lengths([case]) if device.startswith("NPU") else {}
    variants = [
        Variant(
            f"{number}: {folder.name}",
            kind,
            folder,
            device,
            properties={**lengths, **properties},
            bytes_estimate=weight_bytes(folder),
        )
        for number, (folder, properties) in enumerate(irs, 1)
    ]
    prompts = PromptSource(min(exported.vocabulary for exported in opened), schedule.seed)
    plan = Plan(opened[0].config, [case], schedule, machine.placement(threads), prompts, progress)
    measurement = measure_latency(variants, plan)
    if measurement.interrupted:
        raise KeyboardInterrupt
    raise_all("Cannot measure these IRs:", list(measurement.failures.values()))
    timings = [measurement.timings(variant.name, case) for variant in variants]
    if not case.new_tokens:
        return [Latency(latency=statistics.median(t.end_to_end for t in own)) for own in timings]
    return [Latency(statistics.median(t.ttft for t in own), statistics.median(t.tpot for t in own)) for own in timings]
