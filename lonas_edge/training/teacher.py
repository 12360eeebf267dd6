"""A teacher: a finished model, frozen, whose answers a training learns from beside those of the data.

It is loaded once, in the dtype that is trained in, and merged: its memory is that of the model's weights, beside the base's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.exporting.exported import file_faults
from lonas_edge.exporting.manifest import MANIFEST, Manifest
from lonas_edge.files import check_model_folder, read_json
from lonas_edge.ir import MODEL
from lonas_edge.network.adapters import CONFIG, adapter_file
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, load_checkpoint, set_parameter
from lonas_edge.network.source import Located, Source, open_source
from lonas_edge.network.tokenizer import load_tokenizer, tokenizer_differences


@dataclass(frozen=True)
class Teacher:
    """A model that is learned from.

    Attributes:
        name: What may be published of where it lies.
        folder: The directory that was named.
        files: What it is made of, but for the base that is trained on.
        load: Reads its weights, in a dtype.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    load: Callable[[torch.dtype], PreTrainedModel]


def open_teacher(reference: str, base: Located) -> Teacher:
    """Open a teacher, and check that it speaks of the same tokens as the model that is trained.

    Args:
        reference: A finished LoRA adapter (a super-adapter is its maximal network), an exported checkpoint, or a base model.
        base: The base model that is trained on.

    Returns:
        The teacher, its weights not read yet.

    Raises:
        LonasEdgeError: If it is none of these, or has another vocabulary or tokenizer.
    """
    folder = Path(reference)
    if (folder / MANIFEST).is_file() or (folder / MODEL).is_file():
        teacher, described = _exported(folder), folder
    else:
        source = _opened(reference, base)
        teacher, described = _of_source(source, base), source.base.folder
    if described.resolve() != base.folder.resolve():
        _check_tokens(teacher.folder, described, base.folder)
    return teacher


def _exported(folder: Path) -> Teacher:
    """What `export --stage checkpoint` wrote."""
    check_model_folder(folder)
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest is None or manifest.stage != "checkpoint":
        raise LonasEdgeError(
            f"{folder}: an OpenVINO IR; a teacher answers in PyTorch. Export it with --stage checkpoint, or name the adapter"
        )
    raise_all(f"{folder}: the exported checkpoint is damaged:", file_faults(folder, manifest), "Export it again.")
    files = (folder / "config.json", *open_tensors(folder).files)
    return Teacher(folder.resolve().name, folder, files, partial(load_checkpoint, folder))


def _opened(reference: str, base: Located) -> Source:
    """A SOURCE; an adapter whose own base is not to be had is on the base that is trained on."""
    try:
        return open_source(reference)
    except LonasEdgeError:
        if not (Path(reference) / CONFIG).is_file():
            raise
        with_ours = open_source(reference, str(base.folder))
    return with_ours


def _of_source(source: Source, base: Located) -> Teacher:
    chosen = source.own or source.subnetwork(source.elasticity.maximal, "maximal")
    model = MaterializedModel(source, chosen)  # compares every shape with the base's
    files = [source.base.folder / "config.json", *model.base.files]
    own = [] if source.base.folder.resolve() == base.folder.resolve() else files
    if source.adapter:
        own += [source.adapter.folder / CONFIG, adapter_file(source.adapter.folder)]
    named = source.adapter or source.base
    return Teacher(named.name, named.folder, tuple(own), partial(_live, model))


def _live(model: MaterializedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The materialized model as a live one, filled tensor by tensor: merged in fp32, rounded once."""
    network = empty_model(model.config(), str(model.source.base.folder))
    for name in dict(network.named_parameters()):  # a tied head is not among them
        set_parameter(network, name, model.tensor(name).to(dtype))
    model.refuse_not_finite()
    network.tie_weights()
    return network


def _check_tokens(teacher: Path, described: Path, student: Path) -> None:
    """Compare vocabularies and tokenizers: logits are compared token by token.

    Args:
        teacher: The directory that was named, for the message.
        described: Where its configuration and tokenizer are.
        student: The base that is trained on.

    Raises:
        LonasEdgeError: If one differs.
    """
    theirs, ours = (read_json(folder / "config.json")["vocab_size"] for folder in (described, student))
    problems = [f"its vocabulary has {theirs} entries, and that of {student} has {ours}"] if theirs != ours else []
    tokenizers = load_tokenizer(described), load_tokenizer(student)
    if tokenizers[0] is None and tokenizers[1] is not None:
        problems.append(f"{described} has no tokenizer to compare with that of {student}")
    elif None not in tokenizers:
        problems += tokenizer_differences(*tokenizers, padding=False)  # what is padded is masked
    raise_all(
        f"{teacher}: cannot teach {student}, whose tokens are others (the teacher's come first):",
        problems,
        "Take a --teacher that is trained on the same base, or one of the same family with the same tokenizer.",
    )
