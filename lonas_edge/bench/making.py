"""Where the arms come from: one object for each that the command line knows by name, found or made from what is exported.

Nothing heavy is imported before an arm is made: the command line takes its help from here.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.bench import machine
from lonas_edge.bench.arms import HUGE_PAGES, LORA, SPECULATIVE, SUBNET, UNPRUNED, Arm, Kind, npu_lengths
from lonas_edge.bench.memory import weight_bytes
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.worker import apart
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import sha256
from lonas_edge.formats import DTYPES, FORMATS
from lonas_edge.progress import Progress
from lonas_edge.versions import versions

if TYPE_CHECKING:
    from lonas_edge.exporting.exported import Exported
    from lonas_edge.exporting.manifest import Manifest
    from lonas_edge.network.source import Source


@dataclass(frozen=True)
class Ingredients:
    """What arms are made of.

    Attributes:
        exported: The sub-network.
        options: What to measure.
        progress: Called with what is being done.
        source: Base and adapter, where an arm needs them.
    """

    exported: "Exported"
    options: BenchOptions
    progress: Progress
    source: "Source | None" = None


@dataclass(frozen=True)
class ArmKind:
    """An arm that the command line knows by name.

    Attributes:
        name: What it is called.
        told: What it is, for the help.
        kind: What runs it, one of `runners.ENGINES`.
        make: Makes it; takes its name.
        needs_source: Whether base and adapter are needed.
        needs_adapter: Whether it is there only of what was exported with an adapter.
        needs_draft: Whether it is there only of what was exported with a draft.
        faults: What its options lack.
        classifies: Whether there is one of a classifier, too.
    """

    name: str
    told: str
    kind: Kind
    make: Callable[[str, Ingredients], Arm]
    needs_source: bool = False
    needs_adapter: bool = False
    needs_draft: bool = False
    faults: Callable[[BenchOptions], list[str]] = lambda _: []
    classifies: bool = True


def make_arms(exported: "Exported", options: BenchOptions, progress: Progress) -> list[Arm]:
    """Find or make what each arm runs.

    Args:
        exported: The sub-network.
        options: Names the arms, and what they are made of.
        progress: Called with what is being done.

    Returns:
        The arms, `subnet` first.

    Raises:
        LonasEdgeError: If one cannot be had; every fault is listed where they are independent.
    """
    from lonas_edge.exporting.exported import open_exported

    names = list(dict.fromkeys((SUBNET, *options.arms)))
    raise_all("These arms cannot be measured:", _faults(names, exported, options), "--arms names those that are measured.")
    known = [ARMS[name] for name in names if name in ARMS]
    folders = [name for name in names if name not in ARMS and not _is_gguf(name)]
    opened = {name: open_exported(Path(name), ours=False, task=exported.task) for name in folders}
    source = None
    if any(arm.needs_source for arm in known):
        progress("Checking base and adapter", None)
        source = find_source(exported, options.model, options.adapter, options.revision)
    ingredients = Ingredients(exported, options, progress, source)
    made = (
        ARMS[name].make(name, ingredients)
        if name in ARMS
        else _ir_arm(_label(name), opened[name], ingredients)
        if name in opened
        else _gguf_arm(_label(name), Path(name))
        for name in names
    )
    return [each for arm in made for each in (_by_assistant_tokens(arm, options) if arm.draft else [arm])]


def _faults(names: Sequence[str], exported: "Exported", options: BenchOptions) -> list[str]:
    faults = [
        f"{name}: neither an arm ({', '.join(ARMS)}), a directory nor a .gguf file"
        for name in names
        if name not in ARMS and not _is_gguf(name) and not Path(name).is_dir()
    ]
    files = [name for name in names if _is_gguf(name)]
    faults += [fault for name in files for fault in _file_faults(name, Path(name))]
    faults += [f"{name}: {exported.folder} is a {exported.task.name}" for name in files if not exported.task.generates]
    if options.device.startswith("NPU") and exported.task.generates and any(case.batch_size > 1 for case in options.cases):
        faults.append(f"--device {options.device}: an NPU answers one prompt at a time; leave --batch-size out")
    labels = Counter(map(_label, names))
    faults += [f"{label}: {count} arms of that name; rename a directory" for label, count in labels.items() if count > 1]
    for arm in (ARMS[name] for name in names if name in ARMS):
        faults += arm.faults(options)
        if not (arm.classifies or exported.task.generates):
            faults.append(f"{arm.name}: {arm.told} runs language models, and {exported.folder} is a {exported.task.name}")
        if arm.needs_adapter and not exported.own_manifest.adapter:
            faults.append(f"{arm.name}: {exported.folder} was exported without an adapter")
        if arm.needs_draft and not exported.own_manifest.draft and exported.task.generates:
            faults.append(f"{arm.name}: {exported.folder} has no draft; `lonas-edge export --draft` writes one beside it")
    return faults


def kind_of(name: str) -> Kind:
    """What runs an arm.

    Args:
        name: As it is given on the command line.

    Returns:
        A key of `runners.ENGINES`; that of a language model for a directory.
    """
    return ARMS[name].kind if name in ARMS else "gguf" if _is_gguf(name) else "ir"


def _is_gguf(name: str) -> bool:
    return name not in ARMS and Path(name).suffix == ".gguf"


def _label(name: str) -> str:
    return name if name in ARMS else Path(name).resolve().name


def _ir_arm(name: str, opened: "Exported", given: Ingredients) -> Arm:
    """An IR; the properties tuned for the sub-network are those of all."""
    exported, options = given.exported, given.options
    kv = "KV_CACHE_PRECISION"
    properties = {kv: FORMATS[exported.weight_format].kv_cache} if exported.task.generates else {}
    if options.device.startswith("NPU"):
        properties = npu_lengths(options.cases) if exported.task.generates else {}
    properties |= exported.properties
    properties |= {kv: options.kv_precision} if options.kv_precision else {}
    properties |= options.properties
    parameters = opened.manifest.sizes.subnetwork.parameters if opened.manifest else None
    size = weight_bytes(opened.folder)
    kind: Kind = "ir" if exported.task.generates else "ir-classifier"
    return Arm(name, kind, opened.folder, options.device, opened.weight_format, None, False, properties, parameters, size)


def _subnet(name: str, given: Ingredients) -> Arm:
    return _ir_arm(name, given.exported, given)


def _in_huge_pages(name: str, given: Ingredients) -> Arm:
    return replace(_subnet(name, given), environment=machine.IN_HUGE_PAGES)


def _huge_pages_faults(_options: BenchOptions) -> list[str]:
    fault = machine.huge_pages_fault()
    return [f"{HUGE_PAGES}: {fault}"] if fault else []


def _speculative(name: str, given: Ingredients) -> Arm:
    from lonas_edge.exporting.exported import open_exported
    from lonas_edge.exporting.manifest import DRAFT

    arm, draft = _subnet(name, given), open_exported(given.exported.folder / DRAFT)
    return replace(
        arm,
        kind="ir-draft",
        draft=draft.folder,
        precision=f"{arm.precision}+{draft.weight_format}",
        parameters=(arm.parameters or 0) + draft.own_manifest.sizes.subnetwork.parameters,
        bytes_estimate=arm.bytes_estimate + weight_bytes(draft.folder),
    )


def _by_assistant_tokens(arm: Arm, options: BenchOptions) -> list[Arm]:
    several = len(options.assistant_tokens) > 1
    return [
        replace(arm, name=f"{arm.name}-{ahead}" if several else arm.name, assistant_tokens=ahead)
        for ahead in options.assistant_tokens
    ]


def _speculative_faults(options: BenchOptions) -> list[str]:
    batches = sorted({case.batch_size for case in options.cases} - {1})
    told = f"{SPECULATIVE}: one prompt at a time: in a batch each goes on at a pace of its own; leave out --batch-size"
    return [f"{told} {', '.join(map(str, batches))}"] if batches else []


def _unpruned(name: str, given: Ingredients) -> Arm:
    """The maximal network at the same weight format; exported once and kept."""
    from lonas_edge.exporting.exported import open_exported

    manifest, source = given.exported.own_manifest, given.source
    assert source  # it is needed
    adapter_hashes = manifest.adapter.sha256 if manifest.adapter else None
    storage = {"weight_format": manifest.weight_format, "fuse": manifest.fused > 0, "ratio": _ratio(manifest)}
    identity = [manifest.base.sha256, adapter_hashes, storage]
    identity += [versions(("lonas-edge", "nncf", "openvino", "optimum-intel", "transformers"))]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = given.options.cache / f"unpruned-{key}"
    if not folder.exists():
        given.progress("Exporting the unpruned network (kept for the next time)", None)
        adapter = str(source.adapter.folder) if source.adapter else None
        try:
            apart(_export_maximal, adapter, str(source.base.folder), folder, storage)
        except LonasEdgeError as error:
            raise LonasEdgeError(f"unpruned: the export failed:\n{error}") from error
    return _ir_arm(name, open_exported(folder), given)


def _ratio(manifest: "Manifest") -> float:
    """The share of the weights that have the export's format, where it left some to another one."""
    return next((part.share for part in manifest.compression if part.weight_format == manifest.weight_format), 1.0)


def _export_maximal(adapter: str | None, base: str, folder: Path, storage: Mapping[str, Any]) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `lonas-edge export` does
    from lonas_edge.exporting.export import ExportOptions, export
    from lonas_edge.network.source import open_source

    source = open_source(adapter, base)
    export(source, source.select("maximal"), folder, ExportOptions(verify=False, **storage))


def _torch_arm(name: str, given: Ingredients, merged: bool) -> Arm:
    source, options = given.source, given.options
    assert source  # it is needed
    parameters, generates = given.exported.own_manifest.sizes.unpruned.parameters, given.exported.task.generates
    return Arm(
        name,
        "torch" if generates else "torch-classifier",
        source.base.folder,
        options.torch_device,
        options.torch_dtype,
        source.adapter.folder if source.adapter else None,
        merged,
        parameters=parameters,
        bytes_estimate=parameters * DTYPES[options.torch_dtype].bytes if options.torch_device == "cpu" else 0,
        outputs=0 if generates else _outputs(given.exported.config),
    )


def _outputs(config: Mapping[str, Any]) -> int:
    """Outputs of the head that a configuration says; transformers' own number where it says none."""
    from transformers import AutoConfig

    return int(AutoConfig.for_model(**config).num_labels)


def _gguf(name: str, given: Ingredients) -> Arm:
    return _gguf_arm(name, given.options.gguf or Path())


def _gguf_arm(name: str, file: Path) -> Arm:
    return Arm(name, "gguf", file, precision=file.stem.split(".")[-1], bytes_estimate=file.stat().st_size)


def _gguf_faults(options: BenchOptions) -> list[str]:
    return ["gguf: --gguf names the file"] if options.gguf is None else _file_faults("gguf", options.gguf)


def _file_faults(name: str, file: Path) -> list[str]:
    if not file.is_file():
        return [f"{name}: {file}: no such file"]
    with file.open("rb") as content:
        return [] if content.read(4) == b"GGUF" else [f"{name}: {file}: not a GGUF file"]


ARMS = {
    arm.name: arm
    for arm in (
        ArmKind(SUBNET, "EXPORTED, always there", "ir", _subnet),
        ArmKind(LORA, "PyTorch, adapter unmerged", "torch", partial(_torch_arm, merged=False), True, True),
        ArmKind("lora-merged", "PyTorch, adapter merged", "torch", partial(_torch_arm, merged=True), True, True),
        ArmKind(UNPRUNED, "the maximal network as IR at the same weight format", "ir", _unpruned, True),
        ArmKind(HUGE_PAGES, "EXPORTED in memory of huge pages, on Linux", "ir", _in_huge_pages, faults=_huge_pages_faults),
        ArmKind(
            SPECULATIVE,
            "EXPORTED with its draft, speculative decoding",
            "ir-draft",
            _speculative,
            needs_draft=True,
            faults=_speculative_faults,
            classifies=False,
        ),
        ArmKind("gguf", "llama.cpp", "gguf", _gguf, faults=_gguf_faults, classifies=False),
    )
}


def find_source(exported: "Exported", model: str | None, adapter: str | None, revision: str | None) -> "Source":
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
    from lonas_edge.network.source import open_source

    base, tuned = exported.own_manifest.base, exported.own_manifest.adapter
    if tuned and adapter is None:
        if tuned.revision is None:
            raise LonasEdgeError(
                f"{exported.folder}: exported with the adapter {tuned.name!r}, a directory whose place is not recorded. "
                "Name it with --adapter (and the base with --model, unless the adapter names it)."
            )
        adapter = tuned.name
    if adapter and not tuned:
        raise LonasEdgeError(f"{exported.folder}: exported without an adapter; leave out --adapter {adapter}.")
    if model is None and base.revision is not None:
        model, revision = base.name, revision or base.revision
    if not tuned and model is None:
        raise LonasEdgeError(f"{exported.folder}: exported from {base.name!r}; name its directory with --model.")
    source = open_source(adapter, model, None, revision)
    if revision and source.base.revision is None:
        raise LonasEdgeError(f"--revision {revision}: {source.base.folder} is a directory; revisions are the hub's.")
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
