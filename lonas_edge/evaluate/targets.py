"""TARGETs of an evaluation: an exported directory, a super-adapter with a sub-network, a base; opened without their weights."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lonas_edge.data.templates import EVALUATION_TEMPLATES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import EVALUATION, Exported, open_exported
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.files import read_json, sha256
from lonas_edge.formats import DTYPES
from lonas_edge.ir import MODEL, RUNTIME
from lonas_edge.network.source import TRAINING, Source, open_source
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.space.subnetwork import select
from lonas_edge.versions import versions

if TYPE_CHECKING:
    from lm_eval.api.model import LM

_FILES = (".safetensors", ".bin", ".xml", ".json", ".model", ".txt", ".jinja")  # what a model is loaded from
_RECORDS = (MANIFEST, RUNTIME, EVALUATION, TRAINING, "subnetwork.json", "trainer_state.json")  # what says how it came to be
_PACKAGES = ("lonas-edge", "lm-eval", "transformers", "tokenizers")
_LARGE_BYTES = 1_000_000_000  # of weights, from where on a batch is smaller: a finished one is what a kill leaves
PUBLISHED, CLEAN = "lonas", "alpaca"  # prompts of adapters that say nothing: published LoNAS adapters, and others


@dataclass(frozen=True)
class RunOptions:
    """How targets are run.

    Attributes:
        device: OpenVINO device of the IRs.
        properties: OpenVINO run-time properties, over those that `bench --tune` stored.
        torch_device: cpu or cuda, for what runs in PyTorch.
        torch_dtype: fp32, bf16 or fp16, for what runs in PyTorch.
        batch_size: Prompts of a batch; by the model's size when None.
    """

    device: str = "CPU"
    properties: Mapping[str, str] = field(default_factory=dict)
    torch_device: str = "cpu"
    torch_dtype: str = "fp32"
    batch_size: int | None = None


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Attributes:
        name: What it is called in reports.
        kind: `ir` or `torch`.
        precision: Weight format of an IR, dtype in PyTorch.
        prompt: The template it was trained with, as far as is known.
        max_length: The longest sequence in tokens.
        tokenizer: Its transformers tokenizer.
        sizes: `linear_weights`, `macs`, `seq_len`, `parameters`; empty where they are not known.
        identity: What its answers depend on: hashes of files, sub-network, properties, versions.
        batch_size: Prompts of a batch.
        folder: Of a directory that `lonas-edge export` wrote, whose model card can be added to; None for others.
        load: Loads it as a model of lm-evaluation-harness.
    """

    name: str
    kind: str
    precision: str
    prompt: str
    max_length: int
    tokenizer: Any
    sizes: Mapping[str, Any]
    identity: Mapping[str, Any]
    batch_size: int
    folder: Path | None
    load: "Callable[[], LM]"


def open_targets(
    references: Sequence[str],
    subnets: Sequence[str | None],
    run: RunOptions,
    model: str | None = None,
    nncf_config: Path | None = None,
    revision: str | None = None,
) -> list[Target]:
    """Open every TARGET.

    Args:
        references: Exported directories, super-adapters, PEFT adapters, bases.
        subnets: Sub-networks of each super-adapter among them.
        run: How they are run.
        model: The base of the adapters among them.
        nncf_config: The search space of the adapters among them.
        revision: The base's revision on the hub.

    Returns:
        The targets, each with a name of its own.

    Raises:
        LonasEdgeError: If one cannot be opened, or two are the same.
    """
    found: list[Target] = []
    elastic = False
    for reference in references:
        folder = Path(reference)
        if (folder / MODEL).exists() or (folder / MANIFEST).exists():
            found.append(_checkpoint(folder, run) if _is_checkpoint(folder) else _exported(folder, run))
        else:
            source = open_source(reference, model if reference != model else None, nncf_config, revision)
            chosen = subnets if source.space.groups else [None]
            elastic |= bool(source.space.groups)
            found += [_in_pytorch(source, name, run) for name in chosen]
    given = [name for name in subnets if name]
    if given and not elastic:
        raise LonasEdgeError(f"--subnet {','.join(given)}: there is no search space: no TARGET is a super-adapter")
    names = [target.name for target in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LonasEdgeError(f"{', '.join(twice)}: given twice, or two directories of one name; rename one of them")
    return found


def _is_checkpoint(folder: Path) -> bool:
    return (folder / MANIFEST).exists() and Manifest.read(folder / MANIFEST).stage == "checkpoint"


def _tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{folder}: no tokenizer; an evaluation needs one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _hashes(folder: Path) -> dict[str, str]:
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in _FILES and path.name not in _RECORDS]
    return {path.name: sha256(path) for path in kept}


def _batch_size(weight_bytes: int, run: RunOptions) -> int:
    return run.batch_size or (64 if weight_bytes < _LARGE_BYTES else 16)


def _prompt_of(known: str | None, elastic: object) -> str:
    if known in EVALUATION_TEMPLATES:
        return str(known)
    return PUBLISHED if elastic else CLEAN


def _prompt_in(manifest: Manifest | None) -> str:
    return _prompt_of(manifest.prompt, manifest.subnetwork.search_space) if manifest else CLEAN


def _exported(folder: Path, run: RunOptions) -> Target:
    if run.device.startswith("NPU"):
        raise LonasEdgeError(f"{folder}: an NPU answers one prompt at a time; --device CPU or GPU evaluates")
    exported: Exported = open_exported(folder, ours=(folder / MANIFEST).exists())
    properties = {**exported.properties, **run.properties}
    tokenizer, max_length = _tokenizer(folder), exported.context or 2048

    def load() -> "LM":
        from lonas_edge.evaluate.openvino_lm import OpenVinoLM

        return OpenVinoLM(folder, tokenizer, max_length, run.device, properties)

    weights = (folder / MODEL).with_suffix(".bin")
    batch_size = _batch_size(weights.stat().st_size, run)
    identity = {"files": _hashes(folder), "device": run.device, "properties": properties}
    return Target(
        name=folder.resolve().name,
        kind="ir",
        precision=exported.weight_format,
        prompt=_prompt_in(exported.manifest),
        max_length=max_length,
        tokenizer=tokenizer,
        sizes=exported.manifest.sizes.subnetwork.to_json() if exported.manifest else {},
        identity={
            **identity,
            "batch_size": batch_size,
            "versions": versions((*_PACKAGES, "openvino", "openvino-genai", "optimum-intel", "torch")),
        },
        batch_size=batch_size,
        folder=folder if exported.manifest else None,
        load=load,
    )


def _checkpoint(folder: Path, run: RunOptions) -> Target:
    from lonas_edge.network.modeling import load_checkpoint

    manifest = Manifest.read(folder / MANIFEST)
    files = {"checkpoint": _hashes(folder)}
    load = partial(load_checkpoint, folder, DTYPES[run.torch_dtype].torch)
    name, sizes = folder.resolve().name, manifest.sizes.subnetwork.to_json()
    return replace(_torch_target(name, folder, load, files, sizes, _prompt_in(manifest), run), folder=folder)


def _in_pytorch(source: Source, subnet: str | None, run: RunOptions) -> Target:
    from lonas_edge.network.super_network import load_super_network

    chosen = select(source.space, subnet)
    name = (source.adapter or source.base).name.rsplit("/", 1)[-1]

    def load() -> Any:
        network = load_super_network(source, DTYPES[run.torch_dtype].torch)
        network.activate(chosen.widths)
        return network.model.get_base_model() if source.adapter else network.model

    files: dict[str, Any] = {"base": _hashes(source.base.folder), "widths": list(chosen.widths)}
    if source.space.groups:
        files["search_space"] = source.space.hash
    if source.adapter:
        files["adapter"] = _hashes(source.adapter.folder)
    recorded = source.training.prompt.name if source.training else None
    prompt = _prompt_of(recorded, source.space.groups and source.adapter)
    label = f"{name}:{chosen.name}" if source.space.groups else name
    return _torch_target(label, source.base.folder, load, files, source.sizes(chosen.widths).to_json(), prompt, run)


def _torch_target(
    name: str,
    folder: Path,
    load_model: Callable[[], Any],
    files: Mapping[str, Any],
    sizes: Mapping[str, Any],
    prompt: str,
    run: RunOptions,
) -> Target:
    if run.torch_device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError(f"{name}: --torch-device cuda: PyTorch finds no CUDA device here")
    tokenizer = _tokenizer(folder)
    batch_size = _batch_size(sizes["bytes"]["fp16"], run)

    def load() -> "LM":
        from lonas_edge.evaluate.torch_lm import TorchLM

        model = load_model().to(run.torch_device)
        return TorchLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")

    config = read_json(folder / "config.json")
    conditions = {"device": run.torch_device, "dtype": run.torch_dtype, "batch_size": batch_size}
    return Target(
        name=name,
        kind="torch",
        precision=run.torch_dtype,
        prompt=prompt,
        max_length=config.get("max_position_embeddings") or 2048,
        tokenizer=tokenizer,
        sizes=sizes,
        identity={"files": files, **conditions, "versions": versions((*_PACKAGES, "torch", "peft"))},
        batch_size=batch_size,
        folder=None,
        load=load,
    )


def cache_folder() -> Path:
    """Where finished answers are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lonas-edge" / "eval"
