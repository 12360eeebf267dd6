"""TARGETs of an evaluation: exported directories, sub-networks of super-adapters, base models; opened without their weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lonas_edge.data.pooling import Pooling
from lonas_edge.data.templates import CHAT, Template, choose_prompt
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.encoders import ir_encoder, torch_encoder
from lonas_edge.evaluate.options import RunOptions
from lonas_edge.exporting.exported import changed_files, open_exported
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.families import (
    CAUSAL_LM,
    CLASSIFICATION,
    EMBEDDING,
    ModelKind,
    context_of,
    family_of_config,
    output_names,
)
from lonas_edge.files import check_model_folder, sha256
from lonas_edge.formats import DTYPES
from lonas_edge.ir import MODEL, WEIGHTS
from lonas_edge.network.configuration import parse_config, read_config
from lonas_edge.network.location import TRAINING
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.space.subnetwork import Sizes
from lonas_edge.versions import versions

if TYPE_CHECKING:
    from lonas_edge.network.super_network import SuperNetwork

_FILES = (".safetensors", ".bin", ".xml", ".json", ".model", ".txt", ".jinja")  # that a model is loaded from
_RECORDS = (MANIFEST, TRAINING, "subnetwork.json", "trainer_state.json")  # no answer depends on them
_PACKAGES = ("lonas-edge", "lm-eval", "transformers", "tokenizers")
_LARGE_BYTES = 1_000_000_000  # of weights: batches of larger models are smaller, because a kill loses one
_CONTEXT = 2048  # tokens, where config.json states none


@dataclass(frozen=True)
class Target:
    """A model to evaluate."""

    name: str  # in reports
    kind: str  # `ir` or `torch`
    precision: str  # weight format of an IR, dtype in PyTorch
    prompt: str  # name of the template that it was trained with, where known; else the default
    max_length: int  # the longest sequence in tokens
    tokenizer: Any
    sizes: Sizes | None
    identity: Mapping[str, Any]  # what its answers depend on: hashes of files, sub-network, properties, versions
    batch_size: int  # prompts of a batch
    load: Callable[[], Any]  # loads a model of lm-evaluation-harness, or an encoder
    base: Path | None = None  # the base model's directory, where it is not the target itself
    outputs: tuple[str, ...] = ()  # names of a classifier's outputs
    pooling: Pooling | None = None  # of an embedding model, with the longest text
    template: Template | None = None  # the prompt `chat`; by the tokenizer's chat template when None
    close: Callable[[], None] = lambda: None  # releases what it shares with others; call it once, after the last answer

    @property
    def model_kind(self) -> ModelKind:
        """What the model outputs."""
        return EMBEDDING if self.pooling else CLASSIFICATION if self.outputs else CAUSAL_LM

    @property
    def embedding(self) -> Pooling:
        """The pooling of an embedding model."""
        assert self.pooling
        return self.pooling


def open_targets(
    references: Sequence[str],
    subnets: Sequence[str | None],
    run: RunOptions,
    model: str | None = None,
    nncf_config: Path | None = None,
) -> list[Target]:
    """Open all TARGETs.

    Args:
        references: Exported directories, super-adapters, PEFT adapters, base models.
        subnets: Sub-networks of each super-adapter; they share the network, which is loaded once.
        run: Devices, precision, batch size.
        model: The base model of adapters.
        nncf_config: The search space of adapters.
    """
    opened, elastic = list[Target](), False
    for reference in references:
        folder = Path(reference)
        if (folder / MANIFEST).exists() and Manifest.read(folder / MANIFEST).stage == "checkpoint":
            opened.append(_checkpoint(folder, run))
        elif (folder / MODEL).exists() or (folder / MANIFEST).exists():
            opened.append(_exported(folder, run))
        else:
            source = open_source(reference, model if reference != model else None, nncf_config)
            elastic |= bool(source.space.groups)
            opened += _subnetworks(source, subnets if source.space.groups else [None], run)
    if any(subnets) and not elastic:
        raise LonasEdgeError("--subnet has no effect: no TARGET has a search space")
    names = [target.name for target in opened]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LonasEdgeError(f"{', '.join(twice)}: given twice, or two directories with the same name; rename one of them")
    return opened


def kind_of_targets(targets: Sequence[Target]) -> ModelKind:
    """Return the common kind of the models."""
    kinds = {target.name: target.model_kind for target in targets}
    if len(set(kinds.values())) > 1:
        described = ", ".join(f"{name} is a {kind.name}" for name, kind in kinds.items())
        raise LonasEdgeError(f"{described}: evaluate them separately, because they have no task in common")
    return targets[0].model_kind


def _exported(folder: Path, run: RunOptions) -> Target:
    """An IR."""
    if run.openvino_device.startswith("NPU"):
        raise LonasEdgeError(f"{folder}: an NPU computes one prompt at a time. Pass --device CPU or GPU.")
    exported, properties = open_exported(folder, ours=(folder / MANIFEST).exists()), dict(run.properties)
    tokenizer, max_length = _tokenizer(folder), exported.context or _CONTEXT
    classifies, pooling = exported.kind == CLASSIFICATION, _limit(exported.pooling, tokenizer, max_length)

    def load() -> Any:
        if pooling or classifies:
            return ir_encoder(folder, run.openvino_device, properties, pooling)
        from lonas_edge.evaluate.backends import OpenVinoLM

        return OpenVinoLM(folder, tokenizer, max_length, run.openvino_device, properties)

    batch_size = _batch_size((folder / WEIGHTS).stat().st_size, run)
    packages = (*_PACKAGES, "openvino", "openvino-genai", "optimum-intel", "torch")
    conditions = {"device": run.openvino_device, "properties": properties, "batch_size": batch_size}
    return Target(
        name=folder.resolve().name,
        kind="ir",
        precision=exported.weight_format,
        prompt=_prompt_in(exported.manifest) if exported.manifest else choose_prompt(),
        max_length=max_length,
        tokenizer=tokenizer,
        sizes=exported.manifest.sizes.subnetwork if exported.manifest else None,
        identity={"files": _hash_files(folder), **_stated(pooling), **conditions, "versions": versions(packages)},
        batch_size=batch_size,
        load=load,
        outputs=output_names(parse_config(exported.config, "config.json")) if classifies else (),
        pooling=pooling,
    )


def _checkpoint(folder: Path, run: RunOptions) -> Target:
    """A checkpoint of `export --stage checkpoint`."""
    from lonas_edge.network.modeling import load_checkpoint

    check_model_folder(folder)
    manifest = Manifest.read(folder / MANIFEST)
    raise_all(f"{folder}: the exported checkpoint is damaged:", changed_files(folder, manifest), "Export it again.")

    def load() -> Any:
        return load_checkpoint(folder, DTYPES[run.torch_dtype].torch)

    name, files = folder.resolve().name, {"checkpoint": _hash_files(folder)}
    prompt, sizes = _prompt_in(manifest), manifest.sizes.subnetwork
    return _in_torch(name, folder, load, files, sizes, prompt, read_config(folder), manifest.pooling, run)


def _subnetworks(source: Source, subnets: Sequence[str | None], run: RunOptions) -> list[Target]:
    """Sub-networks of one SOURCE, which share its network."""
    network, elastic = _SharedNetwork(source, run, len(subnets)), bool(source.space.groups)
    source_name = (source.adapter or source.base).name.rsplit("/", 1)[-1]
    files: dict[str, Any] = {"base": _hash_files(source.base.folder)}
    files |= {"search_space": source.space.hash} if elastic else {}
    files |= {"adapter": _hash_files(source.adapter.folder)} if source.adapter else {}
    trained = source.training.prompt if source.training else None
    recorded = trained.name if trained else None
    prompt = choose_prompt(recorded=recorded, search_space=source.space.hash if source.adapter else None)
    config = {**read_config(source.base.folder), **(source.head or {})}
    targets = []
    for subnet in subnets:
        chosen = source.select(subnet)
        name = f"{source_name}:{chosen.name}" if elastic else source_name

        def load(widths: Sequence[int] = chosen.widths) -> Any:
            return network.activate(widths)

        own = {**files, "widths": list(chosen.widths)}
        target = _in_torch(name, source.base.folder, load, own, source.sizes(chosen), prompt, config, source.pooling, run)
        template = trained if recorded == CHAT else None
        targets.append(replace(target, base=source.base.folder, template=template, close=network.close))
    return targets


class _SharedNetwork:
    """A super-network for all its sub-networks: loaded for the first, released after the last."""

    def __init__(self, source: Source, run: RunOptions, users: int):
        self._source, self._run, self._users = source, run, users
        self._network: SuperNetwork | None = None

    def activate(self, widths: Sequence[int]) -> Any:
        """The model with a sub-network activated."""
        from lonas_edge.network.super_network import load_super_network

        if self._network is None:
            self._network = load_super_network(self._source, DTYPES[self._run.torch_dtype].torch)
        self._network.activate(widths)
        return self._network.base

    def close(self) -> None:
        """Count one user less."""
        self._users -= 1
        if not self._users:
            self._network = None


def _in_torch(
    name: str,
    folder: Path,
    load_model: Callable[[], Any],
    files: Mapping[str, Any],
    sizes: Sizes,
    prompt: str,
    config: Mapping[str, Any],
    pooling: Pooling | None,
    run: RunOptions,
) -> Target:
    family = family_of_config(config)
    classifies = family is not None and family.kind == CLASSIFICATION
    if run.torch_device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError(f"{name}: --device cuda: PyTorch finds no CUDA device here")
    tokenizer = _tokenizer(folder)
    batch_size, max_length = _batch_size(sizes.bytes["fp16"], run), context_of(config) or _CONTEXT
    pooling = _limit(pooling, tokenizer, max_length)

    def load() -> Any:
        model = load_model().to(run.torch_device)
        if pooling or classifies:
            return torch_encoder(model, pooling)
        from lonas_edge.evaluate.backends import TorchLM

        return TorchLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")

    conditions = {"device": run.torch_device, "dtype": run.torch_dtype, "batch_size": batch_size}
    return Target(
        name=name,
        kind="torch",
        precision=run.torch_dtype,
        prompt=prompt,
        max_length=max_length,
        tokenizer=tokenizer,
        sizes=sizes,
        identity={"files": files, **_stated(pooling), **conditions, "versions": versions((*_PACKAGES, "torch", "peft"))},
        batch_size=batch_size,
        load=load,
        outputs=output_names(parse_config(config, "config.json")) if classifies else (),
        pooling=pooling,
    )


def _hash_files(folder: Path) -> dict[str, str]:
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in _FILES and path.name not in _RECORDS]
    return {path.name: sha256(path) for path in kept}


def _limit(pooling: Pooling | None, tokenizer: Any, context: int) -> Pooling | None:
    return pooling.limit(tokenizer.model_max_length, context) if pooling else None


def _stated(pooling: Pooling | None) -> dict[str, Any]:
    """Pooling in a target's identity: its files are hashed in the directory itself only."""
    return {"pooling": asdict(pooling)} if pooling else {}


def _tokenizer(folder: Path) -> Any:
    tokenizer = require_tokenizer(folder, "an evaluation")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _batch_size(weight_bytes: int, run: RunOptions) -> int:
    return run.batch_size or (64 if weight_bytes < _LARGE_BYTES else 16)


def _prompt_in(manifest: Manifest) -> str:
    return choose_prompt(recorded=manifest.prompt, search_space=manifest.subnetwork.search_space)
