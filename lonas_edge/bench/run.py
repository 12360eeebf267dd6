"""Run a benchmark: variants, measurement, statistics, record."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lonas_edge.bench import machine, record
from lonas_edge.bench.latency import Plan, measure_latency
from lonas_edge.bench.measure import DataPrompts, Measurement, PromptSource
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.prepare import prepare_variants
from lonas_edge.bench.variants import SUBNET, Case, Placement
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import Exported
from lonas_edge.families import tokens_of
from lonas_edge.ir.core import check_device
from lonas_edge.network.configuration import read_config
from lonas_edge.progress import Progress, silent
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "torch", "transformers", "peft", "nncf")


def bench(exported: Exported, options: BenchOptions, progress: Progress = silent) -> record.BenchRecord:
    """Compare the latency of an exported sub-network with other variants; after Ctrl-C, in the completed rounds."""
    check_device(options.device)
    prompts: PromptSource | None = None
    if options.data:
        from lonas_edge.exporting.answering import read_prompts  # imports transformers

        read = read_prompts(exported, options.data, options.schedule.seed, least=1)
        mean = round(sum(map(len, read.tokens)) / len(read.tokens))
        prompts, case = DataPrompts(read.tokens), Case(mean, read.limit, data=options.data.name)
        options = replace(options, cases=(case,))
    check_cases(exported, options.cases)
    placement = machine.placement()
    variants, missing = prepare_variants(exported, options, progress)
    vocabulary = min(tokens_of(read_config(variant.path)) for variant in variants)
    prompts = prompts or PromptSource(vocabulary, options.schedule.seed)
    measurement = measure_latency(variants, Plan(options.cases, options.schedule, placement, prompts, progress))
    if not measurement.samples:
        raise_all("Nothing could be measured:", list(measurement.failures.values()))
        raise LonasEdgeError("Interrupted before the first round was complete.")

    load = {name: max((load[name] for load in measurement.loads), default=0.0) for name in ("others", "stolen")}
    described = [record.describe_variant(variant, measurement.facts.get(variant.name)) for variant in variants]
    baselines = [variant.name for variant in variants if variant.name != SUBNET]
    comparisons = record.compare(measurement, baselines, options.cases)
    rounds, starts = options.schedule.rounds, len(options.schedule.split())
    limits = record.find_warnings(comparisons, load, measurement.interrupted, rounds, starts)
    return record.BenchRecord(
        model={key: exported.own_manifest.to_json()[key] for key in record.MODEL_FIELDS},
        conditions=_conditions(options, placement, measurement),
        load=load,
        variants=described,
        rows=record.make_rows(measurement, described, options.cases),
        comparisons=comparisons,
        failures=record.failures(measurement),
        warnings=[*missing, *limits],
        interrupted=measurement.interrupted,
        samples=measurement.samples,
    )


def check_cases(exported: Exported, cases: Sequence[Case]) -> None:
    """Raise LonasEdgeError for cases that exceed the model's context."""
    context = exported.context
    too_long = [
        f"{case}: {case.prompt_len + case.new_tokens} tokens"
        for case in cases
        if context and case.prompt_len + case.new_tokens > context
    ]
    raise_all(
        f"{exported.folder}: longer than the model's context of {context} tokens:",
        too_long,
        "Choose a shorter --prompt-len or --new-tokens.",
    )


def _conditions(options: BenchOptions, placement: Placement, measurement: Measurement) -> dict[str, Any]:
    schedule = options.schedule
    return {
        "machine": machine.describe(options.device),
        "threads": placement.threads,
        "cores": list(placement.cores),
        "schedule": {**vars(schedule), "starts": len(schedule.split())},
        "loaded_together": measurement.groups,
        "versions": versions(PACKAGES),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
