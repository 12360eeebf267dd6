"""What a training works on: base model, search space, data and machine, opened and checked before the model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from lonas_edge.data.encoding import encode
from lonas_edge.data.instructions import read_examples
from lonas_edge.data.templates import TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.network.adapters import AdapterConfig, rank_misfits
from lonas_edge.network.checkpoints import open_base
from lonas_edge.network.configuration import read_generation_config
from lonas_edge.network.source import Located, open_source
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import SearchSpace, read_search_space
from lonas_edge.training.plan import TrainOptions


@dataclass(frozen=True)
class Inputs:
    """What a training works on. A search space without groups is plain LoRA; `nncf_config` is its file, or None."""

    base: Located
    elasticity: Elasticity
    nncf_config: Path | None
    data: Path
    examples: list[Example]

    @property
    def architecture(self) -> Architecture:
        """The base model's shapes."""
        return self.elasticity.architecture

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.elasticity.space


def open_inputs(
    model: str, data: Path, nncf_config: Path | None = None, revision: str | None = None, elastic: bool = True
) -> Inputs:
    """Read the configurations and the data of a training and check that they belong together.

    Args:
        model: The base model.
        data: The instruction data.
        nncf_config: The search space, or None.
        revision: The base model's revision on the hub.
        elastic: Whether sub-networks are trained; a plain LoRA adapter takes nothing but the stages from the search space.

    Returns:
        The inputs, no weights read yet.

    Raises:
        LonasEdgeError: If something is missing or does not fit.
    """
    examples = read_examples(data)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay, so that the baseline is trained as long
    source = open_source(None, model, revision=revision)
    if source.adapter:
        raise LonasEdgeError(
            f"{source.adapter.folder}: holds an adapter, which training would not go on with; --model is the base model alone"
        )
    read_generation_config(source.base.folder)  # transformers reads it with the weights
    return Inputs(source.base, bind(source.architecture, space, str(nncf_config)), nncf_config, data, examples)


def resolved(options: TrainOptions, architecture: Architecture) -> TrainOptions:
    """The options, with the family's target modules where none are named."""
    targets = architecture.family.default_targets if options.target_modules is None else options.target_modules
    return replace(options, target_modules=targets)


def lora_config(options: TrainOptions, architecture: Architecture) -> LoraConfig:
    """PEFT's configuration of the adapter that resolved options describe."""
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(options.target_modules or ()),
        task_type=architecture.family.task.peft,
    )


def adapter_ranks(options: TrainOptions, architecture: Architecture) -> dict[str, int]:
    """The adapter's rank on each layer that gets one, by module path, from resolved options."""
    return AdapterConfig(Path("--target-modules"), lora_config(options, architecture)).ranks(architecture)


def check(inputs: Inputs, options: TrainOptions) -> None:
    """Refuse, before the model is loaded, what cannot be trained.

    Args:
        inputs: Base model, search space and data.
        options: How to train, resolved.

    Raises:
        LonasEdgeError: Lists every misfit of the search space and of the target modules.
    """
    architecture = inputs.architecture
    problems = [
        f"target module {target!r}: the model has no such linear layer"
        for target in options.target_modules or ()
        if not any(name == target or name.endswith(f".{target}") for name in architecture.linears)
    ]
    leaves = sorted({name.rpartition(".")[2] for name in architecture.linears})
    raise_all(f"{inputs.base.name}: --target-modules do not fit the model:", problems, f"It has {', '.join(leaves)}.")
    raise_all(
        f"{inputs.nncf_config}: the search space does not fit --rank and --target-modules:",
        rank_misfits(inputs.elasticity, adapter_ranks(options, architecture)),
        "Raise --rank, add the module, or write a search space with smaller ranks.",
    )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise LonasEdgeError("--device cuda: PyTorch sees no CUDA device; take --device cpu")
    if options.precision == "fp16" and device_of(options) == "cpu":
        raise LonasEdgeError("--precision fp16 needs CUDA; on a CPU take bf16 or fp32")
    open_base(inputs.base.folder, architecture)


def device_of(options: TrainOptions) -> str:
    """Where it is trained: cuda or cpu."""
    return "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"


def precision_of(options: TrainOptions) -> str:
    """What it is computed in: fp32, bf16 or fp16."""
    if options.precision != "auto":
        return options.precision
    if device_of(options) == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def tokenized(inputs: Inputs, options: TrainOptions) -> tuple[Any, list[dict[str, list[int]]]]:
    """Make the examples tokens.

    Args:
        inputs: Base model and data.
        options: How to train.

    Returns:
        The tokenizer; `input_ids` and `labels`, each [tokens], of every example that has an output and is not too long.

    Raises:
        LonasEdgeError: If there is no usable tokenizer, it is another model's, or no example is left.
    """
    tokenizer = _tokenizer(inputs.base.folder)
    encoded = encode(inputs.examples, TEMPLATES[options.prompt], tokenizer, options.max_length, options.train_on_prompt)
    if not encoded:
        raise LonasEdgeError(
            f"{inputs.data}: each of its {len(inputs.examples)} examples is longer than --max-length {options.max_length} "
            "tokens, or has no output. Raise it."
        )
    for example in encoded:
        refuse_beyond_vocabulary(example["input_ids"], inputs)
    pad = tokenizer.pad_token_id  # shorter examples are filled with it, and the model looks it up
    refuse_beyond_vocabulary([tokenizer.eos_token_id, *([] if pad is None else [pad])], inputs)
    return tokenizer, encoded


def refuse_beyond_vocabulary(ids: Sequence[int], inputs: Inputs) -> None:
    """Refuse tokens that the model does not have.

    Args:
        ids: Token ids.
        inputs: Says the model.

    Raises:
        LonasEdgeError: If one is larger than the model's vocabulary.
    """
    size, largest = inputs.architecture.config.vocab_size, max(ids, default=0)
    if largest >= size:
        raise LonasEdgeError(
            f"{inputs.base.folder}: the tokenizer gives token {largest}, and the model's vocabulary has {size} entries. "
            "Do tokenizer and model belong together?"
        )


def _tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{folder}: training needs the model's tokenizer; there are no tokenizer files")
    if tokenizer.eos_token_id is None:
        raise LonasEdgeError(f"{folder}: the tokenizer has no EOS token; set one in tokenizer_config.json")
    return tokenizer
