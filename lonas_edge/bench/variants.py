"""Plain values that the process of a variant receives and returns. Nothing heavy is imported before a variant is used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["ir", "torch", "ir-classifier", "torch-classifier"]

SUBNET, LORA, LORA_MERGED, UNPRUNED = "subnet", "lora", "lora-merged", "unpruned"  # keys of `prepare.VARIANTS`
DRAFTED = "draft"
NPU_LENGTHS = ("MAX_PROMPT_LEN", "MIN_RESPONSE_LEN")  # of openvino_genai's NPU pipeline: tokens of the prompt and the response


@dataclass(frozen=True)
class Variant:
    """A variant."""

    name: str
    kind: Kind  # key of `runners.RUNNERS`
    path: Path  # directory of the IR or of the base model
    device: str = "cpu"  # OpenVINO device; cpu for PyTorch
    precision: str = ""  # weight format of an IR, dtype of a PyTorch model
    adapter: Path | None = None  # for PyTorch, as the following one
    merged: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None  # if known before loading
    bytes_estimate: int = 0  # memory of its weights
    draft: Path | None = None  # a draft model of an IR
    num_assistant_tokens: int = 0  # that it proposes
    ends: bool = False  # whether the token that ends a text ends an answer; otherwise it is ignored

    @property
    def tokens_per_text(self) -> float:
        """Tokens per text, relative to the whole vocabulary where it was trimmed."""
        from lonas_edge.network.vocabulary_record import vocabulary_of

        trimmed = vocabulary_of(self.path)
        return trimmed.tokens_per_text if trimmed else 1.0


@dataclass(frozen=True)
class Case:
    """A setting that every variant is measured at; `new_tokens` is 0 for one pass of a classifier."""

    prompt_len: int
    new_tokens: int  # with `data` at most
    data: str = ""  # name of the file whose prompts are answered; `prompt_len` is their mean length

    def __str__(self) -> str:
        """Format the case as reports show it."""
        if self.data:
            return f"{self.data}, prompts of {self.prompt_len} tokens on average, answers of at most {self.new_tokens}"
        generated = f"+{self.new_tokens}" if self.new_tokens else ""
        return f"{self.prompt_len}{generated} tokens"


@dataclass(frozen=True)
class Placement:
    """Logical processors that a variant may use, and its number of threads."""

    cores: tuple[int, ...]
    threads: int


@dataclass(frozen=True)
class Timing:
    """One generation of a fixed number of tokens, or one pass of a classifier. Seconds from the start."""

    token_times: tuple[float, ...]  # of each new token (those of a batch come together); empty for a classifier
    end_to_end: float

    @property
    def ttft(self) -> float:
        """Time to first token in seconds."""
        return self.token_times[0]

    @property
    def tpot(self) -> float:
        """Time per output token in seconds: the mean interval between tokens after the first."""
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)


@dataclass(frozen=True)
class Facts:
    """Properties of a variant other than latency; None if unknown."""

    load_seconds: float  # from files to ready to run, without imports
    peak_memory_bytes: int | None  # peak resident memory of its process
    disk_bytes: int
    parameters: int | None
    kv_precision: str  # precision of its KV cache; empty without one
