"""TARGETs of an evaluation: exported directories, sub-networks of super-adapters, base models; opened without their weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lonas_edge.data.encoding import check_padding
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.templates import PromptRecord, choose_prompt
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.encoders import ir_encoder, torch_encoder
from lonas_edge.evaluate.options import RunOptions
from lonas_edge.exporting.drafts import Draft, open_draft
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
from lonas_edge.files import READ_OF_A_MODEL, check_model_folder, sha256
from lonas_edge.ir import MODEL, WEIGHTS
from lonas_edge.network.configuration import parse_config, read_config
from lonas_edge.network.location import TRAINING
from lonas_edge.network.source import Source, open_source
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.space.subnetwork import Sizes
from lonas_edge.versions import versions

if TYPE_CHECKING:
    from lonas_edge.network.super_network import SuperNetwork

_RECORDS = (MANIFEST, TRAINING, "subnetwork.json", "trainer_state.json")  # no answer depends on them
_LIBRARIES = ("lm-eval", "transformers", "tokenizers", "torch", "peft")
PACKAGES = ("lonas-edge", *_LIBRARIES, "openvino", "openvino-genai", "optimum-intel")
_LARGE_BYTES = 1_000_000_000  # of weights: batches of larger models are smaller, because a kill loses one
_CONTEXT = 2048  # tokens, where config.json states none
DRAFTED = " + draft"  # after the name of a target that answers with a draft


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model to evaluate."""

    name: str  # in reports
    kind: str  # `ir` or `torch`
    model_kind: ModelKind  # by what the model outputs
    precision: str  # weight format of an IR; fp32 in PyTorch
    prompt: str  # name of the template that it was trained with, where known; else the default
    max_length: int  # the longest sequence in tokens
    tokenizer: Any
    sizes: Sizes | None
    batch_size: int  # prompts of a batch
    conditions: Mapping[str, Any]  # hashes of files, sub-network, device, properties
    load: Callable[[], Any]  # makes a model of lm-evaluation-harness, or an encoder
    base: Path | None = None  # the base model's directory, where it is not the target itself
    outputs: tuple[str, ...] = ()  # names of a classifier's outputs
    pooling: Pooling | None = None  # of an embedding model, with the longest text
    record: PromptRecord = field(default_factory=PromptRecord)  # the prompts of its training
    close: Callable[[], None] = lambda: None  # releases what it shares with others; call it once, after the last answer

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that its answers depend on."""
        stated = {"pooling": asdict(self.pooling)} if self.pooling else {}  # its files may be in another directory
        return {**self.conditions, **stated, "batch_size": self.batch_size, "versions": versions(PACKAGES)}


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
        run: Devices, runtime properties, batch size.
        model: The base model of adapters.
        nncf_config: The search space of adapters.
    """
    opened, elastic = list[Target](), False
    for reference in references:
        folder = Path(reference)
        manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).exists() else None
        if manifest and manifest.stage == "checkpoint":
            opened.append(_checkpoint(folder, manifest, run))
        elif manifest or (folder / MODEL).exists():
            opened += _exported(folder, run)
        else:
            source = open_source(reference, model if reference != model else None, nncf_config)
            elastic |= bool(source.space.groups)
            opened += _subnetworks(source, subnets if source.space.groups else [None], run)
    if run.draft and not any(target.name.endswith(DRAFTED) for target in opened):
        raise LonasEdgeError("--draft has no effect: no TARGET is an exported directory")
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


def _exported(folder: Path, run: RunOptions) -> list[Target]:
    """Open an IR; with a draft it is a second target, which answers with the draft."""
    if run.openvino_device.startswith("NPU"):
        raise LonasEdgeError(f"{folder}: an NPU computes one prompt at a time. Pass --device CPU or GPU.")
    exported, properties = open_exported(folder, ours=False), dict(run.properties)
    manifest, device = exported.manifest, run.openvino_device
    common = _common(folder, exported.config, exported.kind, exported.pooling)

    draft = open_draft(run.draft, exported) if run.draft else None

    def load(draft: Draft | None = None) -> Any:
        if not exported.kind.generates:
            return ir_encoder(folder, device, properties, common["pooling"])
        from lonas_edge.evaluate.backends import OpenVinoLM

        return OpenVinoLM(folder, common["tokenizer"], common["max_length"], device, properties, draft)

    target = Target(
        **common,
        name=folder.resolve().name,
        kind="ir",
        precision=exported.weight_format,
        prompt=_prompt_in(manifest) if manifest else choose_prompt(),
        sizes=manifest.sizes.subnetwork if manifest else None,
        batch_size=_batch_size((folder / WEIGHTS).stat().st_size),
        conditions={"files": _hash_files(folder), "device": device, "properties": properties},
        load=load,
    )
    if draft is None:
        return [target]
    conditions = {
        **target.conditions,
        "draft": _hash_files(draft.folder),
        "proposed": draft.num_assistant_tokens,
        "precision": draft.precision,
    }
    return [target, replace(target, name=target.name + DRAFTED, conditions=conditions, load=partial(load, draft))]


def _checkpoint(folder: Path, manifest: Manifest, run: RunOptions) -> Target:
    """Open a checkpoint of `export --stage checkpoint`."""
    from lonas_edge.network.modeling import load_checkpoint

    check_model_folder(folder)
    raise_all(f"{folder}: the exported checkpoint is damaged:", changed_files(folder, manifest), "Export it again.")

    load = partial(load_checkpoint, folder, torch.float32)
    name, files = folder.resolve().name, {"checkpoint": _hash_files(folder)}
    prompt, sizes = _prompt_in(manifest), manifest.sizes.subnetwork
    return _in_torch(name, folder, load, files, sizes, prompt, read_config(folder), manifest.pooling, run)


def _subnetworks(source: Source, subnets: Sequence[str | None], run: RunOptions) -> list[Target]:
    """Open sub-networks of one SOURCE, which share its network: loaded for the first, released after the last."""
    elastic, base = bool(source.space.groups), source.base.folder
    source_name = (source.adapter or source.base).name.rsplit("/", 1)[-1]
    files: dict[str, Any] = {"base": _hash_files(base)}
    files |= {"search_space": source.space.hash} if elastic else {}
    files |= {"adapter": _hash_files(source.adapter.folder)} if source.adapter else {}
    trained = source.training.prompt if source.training else None
    prompt = choose_prompt(
        recorded=trained.name if trained else None, search_space=source.space.hash if source.adapter else None
    )
    config = {**read_config(base), **(source.head or {})}

    @cache
    def network() -> "SuperNetwork":
        from lonas_edge.network.super_network import load_super_network

        return load_super_network(source)

    def activate(widths: Sequence[int]) -> Any:
        network().activate(widths)
        return network().base

    targets = []
    for subnet in subnets:
        chosen = source.select(subnet)
        name, own = f"{source_name}:{chosen.name}" if elastic else source_name, {**files, "widths": list(chosen.widths)}
        load = partial(activate, chosen.widths)
        target = _in_torch(name, base, load, own, source.sizes(chosen), prompt, config, source.pooling, run)
        targets.append(replace(target, base=base, record=source.prompt_record))
    return [*targets[:-1], replace(targets[-1], close=network.cache_clear)]


def _in_torch(
    name: str,
    folder: Path,
    network: Callable[[], Any],
    files: Mapping[str, Any],
    sizes: Sizes,
    prompt: str,
    config: Mapping[str, Any],
    pooling: Pooling | None,
    run: RunOptions,
) -> Target:
    """Open a model in PyTorch."""
    device, family = run.torch_device, family_of_config(config)
    if device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError(f"{name}: --device cuda: PyTorch finds no CUDA device here")

    classifies = family is not None and family.kind == CLASSIFICATION
    kind = EMBEDDING if pooling else CLASSIFICATION if classifies else CAUSAL_LM
    common, batch_size = _common(folder, config, kind, pooling), _batch_size(sizes.bytes["fp16"])

    def load() -> Any:
        model = network().to(device)
        if not kind.generates:
            return torch_encoder(model, common["pooling"])
        from lonas_edge.evaluate.backends import TorchLM

        return TorchLM(pretrained=model, tokenizer=common["tokenizer"], batch_size=batch_size, backend="causal")

    return Target(
        **common,
        name=name,
        kind="torch",
        precision="fp32",
        prompt=prompt,
        sizes=sizes,
        batch_size=batch_size,
        conditions={"files": files, "device": device, "dtype": "fp32"},
        load=load,
    )


def _common(folder: Path, config: Mapping[str, Any], kind: ModelKind, pooling: Pooling | None) -> dict[str, Any]:
    """Read the fields that IRs and models in PyTorch have in common; `folder` has the tokenizer."""
    tokenizer, max_length = require_tokenizer(folder, "an evaluation"), context_of(config) or _CONTEXT
    family = family_of_config(config, kind)
    if family and family.ends_at_padding:
        check_padding(tokenizer, config.get("pad_token_id"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return {
        "model_kind": kind,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "outputs": output_names(parse_config(config, "config.json")) if kind == CLASSIFICATION else (),
        "pooling": pooling.limit(tokenizer.model_max_length, max_length) if pooling else None,
    }


def _batch_size(weight_bytes: int) -> int:
    return 64 if weight_bytes < _LARGE_BYTES else 16


def _hash_files(folder: Path) -> dict[str, str]:
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in READ_OF_A_MODEL and path.name not in _RECORDS]
    return {path.name: sha256(path) for path in kept}


def _prompt_in(manifest: Manifest) -> str:
    return choose_prompt(recorded=manifest.prompt, search_space=manifest.subnetwork.search_space)
