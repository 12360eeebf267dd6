"""Checks of a training before its model is loaded: what one of its inputs does not show alone."""

from pathlib import Path

import torch

from lonas_edge.data.language import MESSAGES
from lonas_edge.data.pooling import EMBEDS
from lonas_edge.data.task import Task
from lonas_edge.data.templates import CHAT
from lonas_edge.data.texts import PAIR
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import CLASSIFICATION, EMBEDDING, context_of
from lonas_edge.network.adapters import load_adapter, rank_errors
from lonas_edge.network.checkpoints import open_base
from lonas_edge.training.defaults import adapter_ranks, device_of
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Check that the training can run, before the model is loaded."""
    architecture = inputs.architecture
    if not inputs.teacher:
        _check_labels(inputs.data, inputs.eval_data)
    if inputs.eval_data:
        check_conversations(inputs.eval_data, inputs.eval_data.files[0].path, options.prompt)
    if PAIR in inputs.data.kinds and not inputs.teacher and 1 in (options.batch_size, options.micro_batch_size):
        raise LonasEdgeError(
            "A pair is learned by comparing it with the other pairs of a micro-batch; expected at least 2. Raise --batch-size "
            "or --micro-batch-size."
        )
    if not inputs.data.kind.generates:
        _check_context(inputs, options)
    adapter = inputs.source.adapter_config
    may_lack_head = inputs.data.labelled or adapter  # a teacher alone trains no new head
    base = open_base(inputs.base.folder, architecture, architecture.head if may_lack_head else {})
    if adapter:
        load_adapter(adapter.path.parent, adapter, architecture, base)
    else:
        _check_targets(inputs, options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch finds no CUDA device; use --device cpu")
    if options.precision == "fp16" and device_of(options) == "cpu":
        raise LonasEdgeError("--precision fp16 needs CUDA; on a CPU use bf16 or fp32")


def check_conversations(eval_data: Task, path: Path, prompt: str | None) -> None:
    """Refuse held-out conversations for a training with another prompt than the chat template; `path` is for the error."""
    if prompt != CHAT and MESSAGES in eval_data.kinds:
        raise LonasEdgeError(
            f"{path}: --eval-data holds conversations, which need --prompt {CHAT}; the training has "
            f"--prompt {prompt}. Pass --prompt {CHAT}, or --eval-data of the kind of --data."
        )


def _check_labels(data: Task, eval_data: Task | None) -> None:
    """Refuse texts without labels, and for an embedding model several kinds of records."""
    kinds = dict.fromkeys([*data.kinds, *(eval_data.kinds if eval_data else ())])
    if data.labelled and (data.kind is not EMBEDDING or len(kinds) == 1):
        return
    found, file = " and ".join(f"{kind}s" for kind in kinds), data.files[0].path
    if data.labelled:
        raise LonasEdgeError(
            f"{file}: {found} cannot be learned together; use one kind in a training, or pass --teacher MODEL."
        )
    learned = {
        EMBEDDING: "Without a teacher, an embedding model learns pairs, triplets or scored pairs.",
        CLASSIFICATION: f"Without a teacher, a classifier learns a GLUE task (TSV). {EMBEDS}",
    }
    raise LonasEdgeError(
        f"{file}: {found} without labels need --teacher MODEL, such as the unpruned model. {learned[data.kind]}"
    )


def _check_context(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse texts longer than the context of the model or its teacher: there are no embeddings of later positions."""
    contexts = {inputs.base.name: inputs.architecture.context}
    if inputs.teacher:
        contexts[inputs.teacher.name] = context_of(inputs.teacher.config)
    errors = [
        f"{name} has a context of {size} tokens" for name, size in contexts.items() if size and (options.max_length or 0) > size
    ]
    raise_all(f"--max-length {options.max_length}:", errors)


def _check_targets(inputs: Inputs, options: TrainOptions) -> None:
    architecture = inputs.architecture
    errors = [
        f"target module {target!r}: the model has no such linear layer"
        for target in options.target_modules or ()
        if not any(name == target or name.endswith(f".{target}") for name in architecture.linears)
    ]
    leaves = sorted({name.rpartition(".")[2] for name in architecture.linears})
    raise_all(f"{inputs.base.name}: --target-modules do not fit the model:", errors, f"It has {', '.join(leaves)}.")
    raise_all(
        f"{inputs.nncf_config}: the search space does not fit --rank and --target-modules:",
        rank_errors(inputs.elasticity, adapter_ranks(options, architecture)),
        "Raise --rank, add --target-modules, or write a search space with other ranks (`lonas-edge space --ranks`).",
    )
