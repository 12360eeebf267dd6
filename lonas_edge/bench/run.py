"""A benchmark from its inputs to its report: which arms there are, where they come from, which fit in memory together."""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench import machine, report
from lonas_edge.bench.arms import GGUF, LORA, LORA_MERGED, NAMED, SUBNET, UNPRUNED, Arm, Case, Facts
from lonas_edge.bench.measure import Measured, Progress, PromptSource, Schedule
from lonas_edge.bench.session import run_session
from lonas_edge.bench.worker import ArmFailedError, ArmProcess, Placement
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import Exported, open_exported
from lonas_edge.files import sha256
from lonas_edge.ir import WEIGHTS, runtime
from lonas_edge.network.source import Source, open_source
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "openvino", "openvino-genai", "torch", "transformers", "peft", "nncf", "llama-cpp-python")
DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_PROCESS_BYTES = 700_000_000  # libraries and activations of an arm beside its weights
_SHARE_OF_MEMORY = 0.9  # of what is free, for the arms that are loaded together


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        arms: Names (`subnet`, `lora`, `lora-merged`, `unpruned`, `gguf`) and further exported directories.
        cases: Prompt lengths, numbers of new tokens and batch sizes.
        schedule: Rounds in all, warm-ups at every start, seed.
        starts: How often the arms are started afresh; the rounds are divided among the starts.
        device: OpenVINO device of the IRs.
        torch_device: cpu or cuda, for the PyTorch arms.
        torch_dtype: fp32, bf16 or fp16, for the PyTorch arms.
        threads: Threads of every arm on a CPU; one for each physical core when None.
        kv_precision: Precision of the KV cache of every IR, unless the sub-network's tuned properties say it; when None, what
            stock clients give the sub-network: u8 where its weights are quantized, f16 where they are not.
        properties: OpenVINO run-time properties of every IR, over the tuned ones.
        gguf: A GGUF file for the arm `gguf`.
        memory: Whether peak memory is measured, in a run of its own for each arm.
        cache: Where exports of unpruned models are kept.
    """

    arms: tuple[str, ...] = (SUBNET, LORA, UNPRUNED)
    cases: tuple[Case, ...] = (Case(256, 64),)
    schedule: Schedule = field(default_factory=Schedule)
    starts: int = 8
    device: str = "CPU"
    torch_device: str = "cpu"
    torch_dtype: str = "fp32"
    threads: int | None = None
    kv_precision: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    gguf: Path | None = None
    memory: bool = True
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge"

    @property
    def starts_done(self) -> int:
        """Starts that the rounds are enough for."""
        return min(self.starts, self.schedule.rounds)


def bench(
    exported: Exported,
    options: BenchOptions,
    model: str | None = None,
    adapter: str | None = None,
    revision: str | None = None,
    progress: Progress = lambda _what, _done: None,
) -> report.Report:
    """Compare a sub-network with other forms of the same model.

    Args:
        exported: The sub-network's exported directory.
        options: What to measure.
        model: The base model, where the PyTorch arms or `unpruned` need it; when None, where it was.
        adapter: The adapter; when None, where it was.
        revision: The base's revision on the hub.
        progress: Called with what is being done, and with the share done.

    Returns:
        The report; what was done until Ctrl-C, if that ended it.

    Raises:
        LonasEdgeError: If the inputs do not fit, or nothing could be measured.
    """
    runtime.check_device(options.device)
    check_cases(exported, options.cases)
    place = machine.placement(options.threads)
    arms = make_arms(exported, options, model, adapter, revision, progress)
    vocabulary = min(exported.vocabulary, *(arm_vocabulary(arm) for arm in arms)) if len(arms) > 1 else exported.vocabulary
    prompts = PromptSource(vocabulary, options.schedule.seed)
    groups = sessions(arms, psutil.virtual_memory().available)
    facts: dict[str, Facts] = {}
    measured: list[Measured] = []
    passes: list[float] = []
    others: list[dict[str, float]] = []
    for group in groups:
        session = run_session(group, exported.config, options.cases, options.schedule, options.starts, place, prompts, progress)
        measured.append(session.measured)
        passes += session.bandwidths
        others += session.others
        for arm in group:
            if arm.name in session.load_seconds:
                facts.setdefault(arm.name, _facts(arm, session.load_seconds[arm.name]))
        if session.measured.interrupted:
            break
    interrupted = measured[-1].interrupted
    if options.memory and not interrupted:
        interrupted = _measure_memory(arms, options, place, prompts, progress, facts, measured)
    if not any(session.samples for session in measured):
        raise_all("Nothing could be measured:", [f["reason"] for f in report.failures(measured)] or ["interrupted"])
    bandwidth = statistics.median(passes) if passes else None
    described = [report.arm_report(arm, facts.get(arm.name)) for arm in arms]
    compared = report.comparisons(measured, [arm.name for arm in arms], options.cases)
    load = {key: max((one[key] for one in others), default=0.0) for key in ("others", "stolen")}
    return report.Report(
        model={
            key: exported.own_manifest.to_json()[key] for key in ("base", "adapter", "subnetwork", "weight_format", "sizes")
        },
        conditions=_conditions(options, place, groups),
        load=load,
        bandwidth=bandwidth,
        arms=described,
        rows=report.rows(measured, described, options.cases, exported.config, bandwidth),
        comparisons=compared,
        failures=report.failures(measured),
        warnings=report.warnings(compared, load, interrupted, options.schedule.rounds, options.starts_done),
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


def make_arms(
    exported: Exported,
    options: BenchOptions,
    model: str | None,
    adapter: str | None,
    revision: str | None,
    progress: Progress,
) -> list[Arm]:
    """Find or make what each arm runs.

    Args:
        exported: The sub-network.
        options: Names the arms.
        model: As of `bench`.
        adapter: As of `bench`.
        revision: As of `bench`.
        progress: As of `bench`.

    Returns:
        The arms, `subnet` first.

    Raises:
        LonasEdgeError: If one cannot be had; every fault is listed where they are independent.
    """
    names = list(dict.fromkeys((SUBNET, *options.arms)))
    folders = {name: open_exported(Path(name), ours=False) for name in names if name not in NAMED}
    problems = [f"{name}: neither an arm ({', '.join(NAMED)}) nor a directory" for name in folders if not Path(name).is_dir()]
    labels = Counter(Path(name).resolve().name if name in folders else name for name in names)
    problems += [f"{label}: {count} arms of that name; rename a directory" for label, count in labels.items() if count > 1]
    if GGUF in names:
        problems += _gguf_faults(options.gguf)
    if not exported.own_manifest.adapter:
        problems += [
            f"{name}: {exported.folder} was exported without an adapter" for name in (LORA, LORA_MERGED) if name in names
        ]
    raise_all("These arms cannot be measured:", problems, "--arms names those that are measured.")
    needs_source = {LORA, LORA_MERGED, UNPRUNED} & set(names)
    progress("Checking base and adapter", None)
    source = find_source(exported, model, adapter, revision) if needs_source else None
    shared = _ir_properties(exported, options)
    made = []
    for name in names:
        if name in (LORA, LORA_MERGED):
            made.append(_torch_arm(name, source, options, exported))  # type: ignore[arg-type]
        elif name == GGUF:
            file = options.gguf or Path()
            made.append(Arm(name, "gguf", file, precision=file.stem.split(".")[-1], bytes_estimate=file.stat().st_size))
        else:
            opened = exported if name == SUBNET else folders.get(name)
            if opened is None:
                opened = open_exported(_unpruned(source, exported, options, progress))  # type: ignore[arg-type]
            label = Path(name).resolve().name if name in folders else name
            made.append(_ir_arm(label, opened, options.device, shared))
    return made


def _gguf_faults(file: Path | None) -> list[str]:
    import importlib.util

    faults = [
        f"gguf: {package} is not installed; pip install 'lonas-edge[llama-cpp]'"
        for package, module in (("llama-cpp-python", "llama_cpp"), ("gguf", "gguf"))
        if importlib.util.find_spec(module) is None
    ]
    if file is None:
        return [*faults, "gguf: --gguf names the file"]
    if not file.is_file():
        return [*faults, f"gguf: {file}: no such file"]
    with file.open("rb") as content:
        return faults if content.read(4) == b"GGUF" else [*faults, f"gguf: {file}: not a GGUF file"]


def _ir_properties(exported: Exported, options: BenchOptions) -> dict[str, str]:
    """Properties of every IR: tuned ones are the sub-network's, and the others get the same."""
    precision = options.kv_precision or ("u8" if exported.weight_format in ("int8", "int4") else "f16")
    kv = {} if options.device.startswith("NPU") else {"KV_CACHE_PRECISION": precision}
    return kv | dict(exported.properties) | dict(options.properties)


def _ir_arm(name: str, opened: Exported, device: str, properties: Mapping[str, str]) -> Arm:
    parameters = opened.manifest.sizes.subnetwork.parameters if opened.manifest else None
    size = (opened.folder / WEIGHTS).stat().st_size
    return Arm(name, "ir", opened.folder, device, opened.weight_format, None, False, properties, parameters, size)


def _torch_arm(name: str, source: Source, options: BenchOptions, exported: Exported) -> Arm:
    parameters = exported.own_manifest.sizes.unpruned.parameters
    adapter = source.adapter.folder if source.adapter else None
    return Arm(
        name,
        "torch",
        source.base.folder,
        options.torch_device,
        options.torch_dtype,
        adapter,
        name == LORA_MERGED,
        parameters=parameters,
        bytes_estimate=parameters * DTYPE_BYTES[options.torch_dtype] if options.torch_device == "cpu" else 0,
    )


def find_source(exported: Exported, model: str | None, adapter: str | None, revision: str | None) -> Source:
    """Find the base and the adapter that a directory was exported from, and check that they are those.

    Args:
        exported: The directory; it records both by name, revision and hash.
        model: The base, a directory or hub id; when None, the hub's, or the one the adapter names.
        adapter: The adapter, likewise.
        revision: The base's revision on the hub.

    Returns:
        The source.

    Raises:
        LonasEdgeError: If one is not to be had, or is another one; every file that differs is listed.
    """
    base, tuned = exported.own_manifest.base, exported.own_manifest.adapter
    if tuned and adapter is None:
        if tuned.revision is None:
            raise LonasEdgeError(
                f"{exported.folder}: exported with the adapter {tuned.name!r}, a directory whose place is not recorded. "
                "Name it with --adapter (and the base with --model, unless the adapter names it)."
            )
        adapter = tuned.name
    if model is None and base.revision is not None:
        model, revision = base.name, revision or base.revision
    if not tuned and model is None:
        raise LonasEdgeError(f"{exported.folder}: exported from {base.name!r}; name its directory with --model.")
    source = open_source(adapter, model, None, revision) if tuned else open_source(model, None, None, revision)
    problems = _differing("base", source.base.folder, base.sha256)
    if tuned and source.adapter:
        problems += _differing("adapter", source.adapter.folder, tuned.sha256)
    raise_all(f"{exported.folder}: not exported from these:", problems, "--model and --adapter name the right ones.")
    return source


def _differing(what: str, folder: Path, recorded: Mapping[str, str]) -> list[str]:
    faults = []
    for name, expected in recorded.items():
        path = folder / name
        found = sha256(path) if path.exists() else None
        if found != expected:
            told = "missing" if found is None else f"SHA-256 {found[:12]}"
            faults.append(f"{what}: {path}: expected SHA-256 {expected[:12]}, found {told}")
    return faults


def _unpruned(source: Source, exported: Exported, options: BenchOptions, progress: Progress) -> Path:
    """The maximal network at the same weight format; exported once and kept."""
    manifest = exported.own_manifest
    identity: list[Any] = [manifest.base.sha256, manifest.adapter and manifest.adapter.sha256, manifest.weight_format]
    identity += [versions(("lonas-edge", "nncf", "openvino", "optimum-intel", "transformers"))]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = options.cache / f"unpruned-{key}"
    if folder.exists():
        return folder
    progress("Exporting the unpruned network (kept for the next time)", None)
    found = source.adapter or source.base
    command = [sys.executable, "-m", "lonas_edge", "export", str(found.folder), "--output", str(folder), "--subnet", "maximal"]
    command += ["--model", str(source.base.folder)] if source.adapter else []
    command += ["--weight-format", manifest.weight_format, "--no-verify"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    if ran.returncode:
        raise LonasEdgeError(f"unpruned: the export failed:\n{ran.stderr.strip()[-2000:]}")
    return folder


def arm_vocabulary(arm: Arm) -> int:
    """Size of the vocabulary of an arm's model; without limit where its file does not say it."""
    config = arm.path / "config.json"
    return int(json.loads(config.read_text())["vocab_size"]) if arm.path.is_dir() and config.exists() else 2**31


def sessions(arms: Sequence[Arm], available: int) -> list[list[Arm]]:
    """Which arms are measured together: all, where they fit in memory, or else the first paired with each of the others.

    Args:
        arms: The arms, `subnet` first.
        available: Free memory in bytes.

    Returns:
        Groups of arms, each with `subnet`.
    """
    needed = sum(arm.bytes_estimate + _PROCESS_BYTES for arm in arms)
    if needed <= _SHARE_OF_MEMORY * available or len(arms) < 3:
        return [list(arms)]
    return [[arms[0], arm] for arm in arms[1:]]


def _facts(arm: Arm, load_seconds: float) -> Facts:
    """What is known of an arm before its facts are asked for."""
    return Facts(load_seconds, None, None, 0, arm.parameters, None, None, "")


def _measure_memory(
    arms: Sequence[Arm],
    options: BenchOptions,
    place: Placement,
    prompts: PromptSource,
    progress: Progress,
    facts: dict[str, Facts],
    measured: Sequence[Measured],
) -> bool:
    """Load each arm alone, run its largest case once, and ask for its facts. Returns whether Ctrl-C ended it."""
    failed = {key for session in measured for key in session.failures}
    try:
        for arm in arms:
            possible = [case for case in options.cases if (arm.name, case) not in failed]
            if not possible:
                continue
            largest = max(possible, key=lambda case: case.batch_size * (case.prompt_len + case.new_tokens))
            progress(f"Peak memory of {arm.name}, in a process of its own", None)
            with ArmProcess(arm, place) as process:
                try:
                    process.wait_loaded()
                    process.run(prompts.next(largest), largest.new_tokens)
                    known = process.facts()
                except ArmFailedError as error:
                    measured[-1].failures[arm.name, largest] = f"{error} (while its peak memory was measured)"
                    continue
            facts[arm.name] = replace(facts[arm.name], **known)
    except KeyboardInterrupt:
        return True
    return False


def _conditions(options: BenchOptions, place: Placement, groups: Sequence[Sequence[Arm]]) -> dict[str, Any]:
    return {
        "machine": machine.describe(options.device),
        "threads": place.threads,
        "cores": list(place.cores),
        "schedule": {**vars(options.schedule), "starts": options.starts_done},
        "sessions": [[arm.name for arm in group] for group in groups],
        "versions": versions(PACKAGES),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while the report is written."""
    import signal

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
