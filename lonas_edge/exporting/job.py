"""An export in progress: what its stages share, their measured steps, and the verification that comes first in each."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.pooling import Pooling
from lonas_edge.exporting import verify
from lonas_edge.exporting.manifest import Calibrated, Compression, FileHash, Step, hash_files
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.exporting.parity import Parity, compare, compare_embeddings
from lonas_edge.families import CAUSAL_LM, ModelKind, tokens_of
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.tokenizer import TEXTS
from lonas_edge.processes import peak_memory
from lonas_edge.progress import Progress

_PROMPT_TOKENS, _FEWEST_TOKENS = 16, 4  # with fewer, rotary tables and attention are not tested
_PAIR_TOKENS = 24  # of a pair, padding included


@dataclass
class Steps:
    """The steps so far: seconds of each, and the largest resident memory of this process up to its end."""

    report: Progress
    taken: dict[str, Step] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, shown: str) -> Iterator[Callable[[float], None]]:
        """Measure a step while the block runs, and yield a function that takes the share done."""
        self.report(shown, None)
        start = time.perf_counter()
        yield lambda done: self.report(shown, done)
        self.taken[name] = Step(round(time.perf_counter() - start, 3), peak_memory())


@dataclass(frozen=True)
class Job:
    """An export whose inputs are read and checked.

    Attributes:
        tokenizer: The base's, with the chat template of the training; or None.
        pooling: Pooling of an embedding model, with the longest text; or None.
        folder: The output while it is written.
        stored: The IR's format or the checkpoint's dtype.
        background: Hashes files while others are verified.
    """

    model: MaterializedModel
    tokenizer: Any
    pooling: Pooling | None
    folder: Path
    options: ExportOptions
    stored: str
    steps: Steps
    background: Executor

    def hash_files(self) -> Future[dict[str, FileHash]]:
        """Start to hash the files of the complete output."""
        return self.background.submit(hash_files, self.folder)

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return the inputs of compared networks by name, each [prompts, tokens]."""
        architecture = self.model.source.architecture
        return compared_inputs(architecture.family.kind, self.tokenizer, architecture.config)

    def compare(self, reference: torch.Tensor, outputs: torch.Tensor) -> Parity:
        """Compare the outputs of a network for `inputs` with those of a reference."""
        if self.pooling is None:
            return compare(reference, outputs)
        return compare_embeddings(reference, outputs, self.inputs()["attention_mask"], self.pooling)

    def verify_weights(self) -> tuple[torch.Tensor, Parity]:
        """Compare the materialized model with the activated super-network, and fail if they differ.

        Returns:
            The materialized model's logits in float64, and the comparison.
        """
        with self.steps.step("verify_weights", "Comparing with the activated super-network"):
            inputs = self.inputs()
            reference = verify.super_network_logits(self.model, inputs)
            materialized = verify.materialized_logits(self.model, inputs)
            parity = self.compare(reference, materialized)
            verify.check_materialized(self.model.source.folder, parity, reference)
        return materialized, parity


@dataclass(frozen=True)
class Outcome:
    """Results of a stage, for the manifest; `fused` is the number of the IR's matrices that are part of others."""

    files: Future[dict[str, FileHash]]
    parity: dict[str, Parity]
    compression: tuple[Compression, ...] = ()
    head: Compression | None = None
    fused: int = 0
    calibrated: Calibrated | None = None


def compared_inputs(kind: ModelKind, tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make inputs to compare networks of a kind on, by name, each [prompts, tokens]; random without a usable tokenizer."""
    if kind is not CAUSAL_LM:
        return _compared_pairs(tokenizer, config)
    size = tokens_of(config.to_dict())
    if tokenizer is not None:
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        length = min(_PROMPT_TOKENS, *map(len, encoded))
        ids = torch.tensor([row[:length] for row in encoded])
        if length >= _FEWEST_TOKENS and int(ids.max()) < size and len(set(ids.flatten().tolist())) > len(TEXTS):
            return {"input_ids": ids}
    draw = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(0, size, (len(TEXTS), _PROMPT_TOKENS), generator=draw)}


def _compared_pairs(tokenizer: Any, config: Any) -> dict[str, torch.Tensor]:
    """Make pairs of texts of unequal lengths, so that mask and segments matter."""
    rows, last = [], getattr(config, "type_vocab_size", 1) - 1
    for number, text in enumerate(TEXTS):
        length = min(_PAIR_TOKENS, config.max_position_embeddings) - number
        row = encode_pairs([(text, TEXTS[number - 1])], tokenizer, length)[0] if tokenizer is not None else {"input_ids": []}
        ids, segments = row["input_ids"], row.get("token_type_ids", [])
        if len(set(ids)) <= _FEWEST_TOKENS or max(ids) >= config.vocab_size:
            draw = torch.Generator().manual_seed(number)
            ids = torch.randint(0, config.vocab_size, (max(1, length),), generator=draw).tolist()
            segments = [int(position > length // 2) for position in range(len(ids))]
        segments = [min(segment, last) for segment in segments]
        rows.append({"input_ids": ids, "token_type_ids": segments, "labels": 0})
    batch = collate_pairs(rows, config.pad_token_id or 0)
    del batch["labels"]
    return batch
