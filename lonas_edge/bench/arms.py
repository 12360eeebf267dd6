"""Arms: what is compared. An arm is described here with plain values, so that a process of its own can be told to run it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["ir", "ir-draft", "torch", "gguf", "ir-classifier", "torch-classifier"]

SUBNET, LORA, UNPRUNED = "subnet", "lora", "unpruned"  # the arms by default; `making.ARMS` has all
SPECULATIVE = "draft"
HUGE_PAGES = "huge-pages"
NPU_LENGTHS = ("MAX_PROMPT_LEN", "MIN_RESPONSE_LEN")  # of openvino_genai's pipeline for NPUs: tokens of a prompt, of an answer


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: What it is called in reports.
        kind: What runs it, one of `runners.ENGINES`.
        path: Directory of the IR or of the base model, or the GGUF file.
        device: OpenVINO device, or cpu or cuda for PyTorch.
        precision: Weight format of an IR, dtype of a PyTorch model, or what the GGUF file holds; for the report.
        adapter: Directory of the PEFT adapter (PyTorch).
        merged: Whether the adapter is merged (PyTorch).
        properties: OpenVINO run-time properties.
        parameters: Parameters, where known before it is loaded.
        bytes_estimate: Memory of its weights in bytes, before it is loaded.
        environment: Environment variables of its process, beside those of ours.
        outputs: Outputs of a classifier's head (PyTorch).
        draft: Directory of the draft's IR (speculative decoding).
        assistant_tokens: Tokens that the draft proposes for each pass of the main model.
    """

    name: str
    kind: Kind
    path: Path
    device: str = "cpu"
    precision: str = ""
    adapter: Path | None = None
    merged: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None
    bytes_estimate: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    outputs: int = 0
    draft: Path | None = None
    assistant_tokens: int = 0


@dataclass(frozen=True)
class Case:
    """One setting that every arm is measured at.

    Attributes:
        prompt_len: Tokens of the prompt.
        new_tokens: Tokens generated, always all of them; 0 where the prompts are passed through once and nothing is generated.
        batch_size: Prompts computed together.
    """

    prompt_len: int
    new_tokens: int
    batch_size: int = 1

    def __str__(self) -> str:
        """As in reports."""
        generated = f"+{self.new_tokens}" if self.new_tokens else ""
        return f"{self.prompt_len}{generated} tokens, batch {self.batch_size}"


def npu_lengths(cases: Iterable[Case]) -> dict[str, str]:
    """Run-time properties that say which static shapes openvino_genai compiles for an NPU; a shorter prompt takes as long.

    "OpenVINO GenAI on NPU" (docs.openvino.ai, 2026) has them. They are 1,024 and 128 where they are not told.

    Args:
        cases: What is run.

    Returns:
        The lengths of the longest case, by name.
    """
    longest = [max(lengths) for lengths in zip(*((case.prompt_len, case.new_tokens) for case in cases), strict=True)]
    return dict(zip(NPU_LENGTHS, map(str, longest), strict=True))


@dataclass(frozen=True)
class Facts:
    """What is known of an arm apart from its latency.

    Attributes:
        load_seconds: From its files to ready to run, imports not counted.
        compile_seconds: Of those, reading and compiling the IR alone; None for other kinds, and where it was not measured.
        peak_memory_bytes: Largest resident memory of a process that loads it and runs the largest case once; None where
            that was not measured.
        disk_bytes: Its files.
        parameters: Its parameters, where known.
        macs_per_token: Multiply-accumulates of its linear layers for one token.
        weight_bytes_per_token: Bytes of weights that one decoded token reads; a classifier's, that one pass reads.
        kv_precision: Precision of its KV cache; empty where it has none.
    """

    load_seconds: float
    compile_seconds: float | None
    peak_memory_bytes: int | None
    disk_bytes: int
    parameters: int | None
    macs_per_token: int | None
    weight_bytes_per_token: int | None
    kv_precision: str
