"""Find or export the files that each variant runs."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.bench.latency import ir_variant
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.variants import DRAFTED, LORA, LORA_MERGED, SUBNET, UNPRUNED, Variant
from lonas_edge.bench.worker import run_in_process
from lonas_edge.errors import LonasEdgeError, UsageError, raise_all
from lonas_edge.exporting.exported import Exported, open_exported
from lonas_edge.files import json_sha256
from lonas_edge.formats import DTYPES, FORMATS
from lonas_edge.network.tokenizer import require_tokenizer, tokenizer_differences
from lonas_edge.progress import Progress
from lonas_edge.versions import versions

if TYPE_CHECKING:
    from lonas_edge.network.source import Source


@dataclass(frozen=True)
class Inputs:
    """Inputs of the preparation; `source` (base and adapter) only if a variant needs it."""

    exported: Exported
    options: BenchOptions
    progress: Progress
    source: "Source | None" = None


def prepare_variants(exported: Exported, options: BenchOptions, progress: Progress) -> tuple[list[Variant], list[str]]:
    """Find or export the files that each variant runs.

    Returns:
        The variants, `subnet` first, and warnings about default variants that are not available.

    Raises:
        LonasEdgeError: If a requested variant is not available; all problems are listed.
    """
    asked = _default_variants(exported, options) if options.variants is None else options.variants
    names = list(dict.fromkeys((SUBNET, *asked, *([DRAFTED] if options.draft else []))))
    raise_all("Cannot prepare these variants:", _problems(names, exported, options), "Correct --variants.", UsageError)
    folders = [name for name in names if name not in VARIANTS]
    opened = {name: open_exported(Path(name), ours=False, kind=exported.kind) for name in folders}
    if options.data:
        _refuse_other_tokens(exported, opened.values())
    source, warnings = None, []
    if any(name in VARIANTS and name not in (SUBNET, DRAFTED) for name in names):
        progress("Checking base and adapter", None)
        try:
            source = find_source(exported, options.model, options.adapter)
        except LonasEdgeError as error:
            if options.variants is not None or options.model or options.adapter:
                raise
            warnings.append(f"Not compared with {' and '.join(names[1:])}: {error}")
            names = [name for name in names if name in (SUBNET, DRAFTED)]
    own = source.own if source else None
    if UNPRUNED in names and source and own and own.canonical != source.elasticity.canonical(source.elasticity.maximal):
        problem = f"{UNPRUNED}: {source.folder} was fine-tuned for its {own.name} sub-network alone"
        if options.variants is not None:
            raise LonasEdgeError(f"{problem}. Export the unpruned LoRA, and pass its directory in --variants.")
        warnings.append(f"{problem}; to compare with the unpruned LoRA, export it and pass --variants subnet,DIR.")
        names.remove(UNPRUNED)
    inputs = Inputs(exported, options, progress, source)
    variants = [
        VARIANTS[name](name, inputs) if name in VARIANTS else _ir_variant(_label(name), opened[name], inputs) for name in names
    ]
    return variants, warnings


def _refuse_other_tokens(exported: Exported, others: Collection[Exported]) -> None:
    """Refuse directories with another tokenizer: all variants get the same tokens of a data file."""
    ours, *theirs = (require_tokenizer(each.folder, "--data") for each in (exported, *others))
    differ = [
        f"{other.folder}: {line}"
        for other, tokenizer in zip(others, theirs, strict=True)
        for line in tokenizer_differences(tokenizer, ours, padding=False)
    ]
    raise_all(
        f"The tokenizer differs from that of {exported.folder}:",
        differ,
        "Compare them without --data: tables then have TPOT per text.",
    )


def _default_variants(exported: Exported, options: BenchOptions) -> list[str]:
    """Return the variants that differ from the export: with an adapter PyTorch, and the unpruned network if it is larger."""
    manifest = exported.own_manifest
    pruned = manifest.sizes.unpruned.parameters > manifest.sizes.subnetwork.parameters
    return [LORA] * (manifest.adapter is not None and options.data is None) + [UNPRUNED] * pruned


def _problems(names: Sequence[str], exported: Exported, options: BenchOptions) -> list[str]:
    problems = [
        f"{name}: neither a variant ({', '.join(VARIANTS)}) nor a directory"
        for name in names
        if name not in VARIANTS and not Path(name).is_dir()
    ]
    labels = Counter(map(_label, names))
    repeated = [(label, count) for label, count in labels.items() if count > 1]
    problems += [f"{label}: {count} variants have this name; rename a directory" for label, count in repeated]
    needing = [name for name in names if name in (LORA, LORA_MERGED)]
    if not exported.own_manifest.adapter:
        problems += [f"{name}: {exported.folder} was exported without an adapter" for name in needing]
    if options.data:
        problems += [f"{name}: --data compares OpenVINO models only" for name in needing]
    if DRAFTED in names and not options.draft:
        problems.append(f"{DRAFTED}: pass --draft DIR")
    return problems


def _label(name: str) -> str:
    return name if name in VARIANTS else Path(name).resolve().name


def _ir_variant(name: str, opened: Exported, inputs: Inputs) -> Variant:
    """Describe an IR. All IRs get the same properties."""
    exported, options, properties = inputs.exported, inputs.options, dict(inputs.options.properties)
    if exported.kind.generates and not options.device.startswith("NPU"):
        properties = {"KV_CACHE_PRECISION": FORMATS[exported.weight_format].kv_cache, **properties}
    variant = ir_variant(name, opened, options.cases, options.device, properties)
    return replace(variant, ends=options.data is not None)


def _subnet(name: str, inputs: Inputs) -> Variant:
    return _ir_variant(name, inputs.exported, inputs)


def _drafted(name: str, inputs: Inputs) -> Variant:
    """Describe the export with its draft."""
    from lonas_edge.exporting.drafts import open_draft

    assert inputs.options.draft  # `_problems`
    draft = open_draft(inputs.options.draft, inputs.exported)
    alone = _subnet(name, inputs)
    properties = {**draft.properties(alone.device), **alone.properties}
    return replace(alone, draft=draft.folder, num_assistant_tokens=draft.num_assistant_tokens, properties=properties)


def _unpruned(name: str, inputs: Inputs) -> Variant:
    """Export the maximal network in the same weight format, unless the cache has it."""
    manifest, source = inputs.exported.own_manifest, inputs.source
    assert source  # it is needed
    adapter_hashes = manifest.adapter.sha256 if manifest.adapter else None
    storage = {"weight_format": manifest.weight_format, "group_size": manifest.group_size}
    storage |= {"fuse": manifest.fused > 0}
    storage |= {"head_format": manifest.head.weight_format} if manifest.head else {}
    identity = [manifest.base.sha256, adapter_hashes, storage]
    identity += [versions(("lonas-edge", "nncf", "openvino", "optimum-intel", "transformers"))]
    key = json_sha256(identity)[:16]
    folder = inputs.options.cache / f"unpruned-{key}"
    cached = None
    with suppress(LonasEdgeError):  # missing, or damaged
        cached = open_exported(folder)
    if cached is None:
        inputs.progress("Exporting the unpruned network (kept in the cache)", None)
        adapter = str(source.adapter.folder) if source.adapter else None
        try:
            run_in_process(_export_maximal, adapter, str(source.base.folder), folder, storage)
        except LonasEdgeError as error:
            raise LonasEdgeError(f"unpruned: the export failed:\n{error}") from error
    return _ir_variant(name, cached or open_exported(folder), inputs)


def _export_maximal(adapter: str | None, base: str, folder: Path, storage: Mapping[str, Any]) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in `lonas-edge export`
    from lonas_edge.exporting.export import ExportOptions, export
    from lonas_edge.network.source import open_source

    source = open_source(adapter, base)
    export(source, source.select("maximal"), folder, ExportOptions(verify=False, overwrite=True, **storage))


def _torch_variant(name: str, inputs: Inputs, merged: bool) -> Variant:
    source, options = inputs.source, inputs.options
    assert source  # it is needed
    parameters, generates = inputs.exported.own_manifest.sizes.unpruned.parameters, inputs.exported.kind.generates
    return Variant(
        name,
        "torch" if generates else "torch-classifier",
        source.base.folder,
        "cpu",
        options.torch_dtype,
        source.adapter.folder if source.adapter else None,
        merged,
        parameters=parameters,
        bytes_estimate=parameters * DTYPES[options.torch_dtype].bytes,
    )


VARIANTS: dict[str, Callable[[str, Inputs], Variant]] = {  # by name; all but the first two need the base
    SUBNET: _subnet,
    DRAFTED: _drafted,
    LORA: partial(_torch_variant, merged=False),
    LORA_MERGED: partial(_torch_variant, merged=True),
    UNPRUNED: _unpruned,
}


def find_source(exported: Exported, model: str | None, adapter: str | None) -> "Source":
    """Open the base and the adapter that a directory was exported from; check their recorded hashes.

    By default these are the recorded hub ids, and the base that the adapter names. An error lists every file that differs.
    """
    from lonas_edge.network.location import fingerprint
    from lonas_edge.network.source import open_source

    base, recorded = exported.own_manifest.base, exported.own_manifest.adapter
    if recorded and adapter is None:
        if recorded.revision is None:
            raise LonasEdgeError(
                f"{exported.folder}: its adapter {recorded.name!r} is a local directory; pass it with --adapter "
                "(and the base with --model, unless the adapter names it)."
            )
        adapter = recorded.name
    if adapter and not recorded:
        raise LonasEdgeError(f"{exported.folder}: exported without an adapter; omit --adapter {adapter}.")
    if model is None and base.revision is not None:
        model = f"{base.name}@{base.revision}"
    if not recorded and model is None:
        raise LonasEdgeError(f"{exported.folder}: its base {base.name!r} is a local directory; pass it with --model.")
    source = open_source(adapter, model)
    pairs = [("base", source.base.folder, base.sha256)]
    pairs += [("adapter", source.adapter.folder, recorded.sha256)] if recorded and source.adapter else []
    problems = []
    for what, folder, expected in pairs:
        actual = fingerprint(folder)
        for name, sha256 in expected.items():
            if actual.get(name) != sha256:
                found = actual.get(name, "no file")[:12]
                problems.append(f"{what}: {folder / name}: expected SHA-256 {sha256[:12]}, found {found}")
    raise_all(f"{exported.folder}: exported from other files:", problems, "Pass the right ones with --model and --adapter.")
    return source
