"""Measure the latency of variants in interleaved rounds, each variant in its own process.

Two processes of the same program may differ for as long as they live (by the location of their memory), and more rounds do not
average that out. So the rounds are spread over several process starts, as pyperf does, and intervals are over starts
(`statistics.paired_ratio`).
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lonas_edge.bench import machine
from lonas_edge.bench.measure import Failures, Measurement, PromptSource, Schedule, measure
from lonas_edge.bench.variants import NPU_LENGTHS, Case, Facts, Placement, Variant
from lonas_edge.bench.worker import VariantFailedError, VariantProcess
from lonas_edge.errors import raise_all
from lonas_edge.exporting.exported import Exported, open_exported
from lonas_edge.ir import WEIGHTS
from lonas_edge.progress import Progress, silent

_PROCESS_BYTES = 700_000_000  # libraries and activations of a process
_SHARE_OF_MEMORY = 0.9  # of the free memory, for variants that are loaded together


@dataclass(frozen=True)
class Plan:
    """Cases, schedule and placement of a measurement."""

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
    for group in _group_by_memory(variants):
        result.groups.append([variant.name for variant in group])
        parts, failures = plan.schedule.split(), Failures()
        for number, part in enumerate(parts):

            def progress(step: str, done: float | None, number: int = number, count: int = len(parts)) -> None:
                start = f"start {number + 1} of {count}, " if count > 1 else ""
                plan.progress(f"{start}{step}", None if done is None else (number + done) / count)

            measured = _measure_start(group, replace(plan, schedule=part, progress=progress), failures, number == 0)
            failures = measured.failures
            result.add(measured)
            if result.interrupted:
                return result
    return result


def _measure_start(group: Sequence[Variant], plan: Plan, failures: Failures, first: bool) -> Measurement:
    """Start the processes once and measure; collect facts if it is the first start."""
    failures, loaded, seconds = dict(failures), dict[str, VariantProcess](), dict[str, float]()
    with ExitStack() as stack:
        try:
            for variant in group:
                if all((variant.name, case) in failures for case in plan.cases):
                    continue
                plan.progress(f"loading {variant.name}", None)
                process = stack.enter_context(VariantProcess(variant, plan.placement))
                try:
                    seconds[variant.name] = process.wait_loaded()
                    loaded[variant.name] = process
                except VariantFailedError as error:
                    failures.update({(variant.name, case): str(error) for case in plan.cases})
        except KeyboardInterrupt:
            return Measurement(failures=failures, interrupted=True)
        pids = [process.pid for process in loaded.values() if process.pid]
        before = machine.CpuTimes.now(pids)
        result = measure(loaded, plan.cases, plan.schedule, plan.prompts, plan.progress, failures)
        result.loads = [machine.others_share(before, machine.CpuTimes.now(pids), os.cpu_count() or 1)]
        for variant in group if first and not result.interrupted else ():
            if variant.name in loaded and loaded[variant.name].alive:
                with suppress(VariantFailedError):  # its latency is known nevertheless
                    known = {"parameters": variant.parameters, **loaded[variant.name].facts()}
                    result.facts[variant.name] = Facts(seconds[variant.name], **known)
    return result


def _group_by_memory(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Group variants: all together if they fit in the free memory, otherwise the first with each of the others."""
    needed = sum(variant.bytes_estimate + _PROCESS_BYTES for variant in variants)
    if needed <= _SHARE_OF_MEMORY * psutil.virtual_memory().available or len(variants) < 3:
        return [list(variants)]
    return [[variants[0], variant] for variant in variants[1:]]


def ir_latencies(
    irs: Sequence[tuple[Path, Mapping[str, str]]],
    case: Case,
    schedule: Schedule,
    device: str = "CPU",
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Measure IRs in one interleaved run; return medians in seconds, in the order of `irs`.

    They are `ttft` and `tpot` of a generation, or the `latency` of a classifier's pass. `irs` are directories and their runtime
    properties; a directory may occur several times. An error lists all IRs that cannot be measured.
    """
    opened = [open_exported(folder, ours=False) for folder, _ in irs]
    variants = [
        ir_variant(f"{number}: {folder.name}", exported, [case], device, properties)
        for number, (exported, (folder, properties)) in enumerate(zip(opened, irs, strict=True), 1)
    ]
    prompts = PromptSource(min(exported.vocabulary for exported in opened), schedule.seed)
    measurement = measure_latency(variants, Plan([case], schedule, machine.placement(), prompts, progress))
    if measurement.interrupted:
        raise KeyboardInterrupt
    raise_all("Cannot measure these IRs:", list(measurement.failures.values()))
    names = {"ttft": "ttft", "tpot": "tpot"} if case.new_tokens else {"latency": "end_to_end"}
    timings = [measurement.timings(variant.name, case) for variant in variants]
    return [{name: statistics.median(getattr(each, time) for each in own) for name, time in names.items()} for own in timings]


def ir_variant(name: str, opened: Exported, cases: Sequence[Case], device: str, properties: Mapping[str, str]) -> Variant:
    """Describe an IR as a variant; on an NPU it gets the lengths of the longest case."""
    generates = cases[0].new_tokens > 0
    longest = [max(case.prompt_len for case in cases), max(case.new_tokens for case in cases)]
    static = generates and device.startswith("NPU")  # shapes are compiled ("OpenVINO GenAI on NPU", docs.openvino.ai, 2026)
    lengths = dict(zip(NPU_LENGTHS, map(str, longest), strict=True)) if static else {}
    return Variant(
        name,
        "ir" if generates else "ir-classifier",
        opened.folder,
        device,
        opened.weight_format,
        properties={**lengths, **properties},
        parameters=opened.manifest.sizes.subnetwork.parameters if opened.manifest else None,
        bytes_estimate=(opened.folder / WEIGHTS).stat().st_size,
    )
