"""Trainings of tiny models: runs, reference values, and the observer of a run."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinySource
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.training.checkpoints import COMPLETE
from lonas_edge.training.inputs import open_inputs
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

ADAPTER, SPACE, ORDER, RECORD = "adapter_model.safetensors", "nncf_config.json", "channel_order.safetensors", "training.json"
EOS, IGNORED = 1, -100
OPTIONS = {
    "rank": 8,
    "alpha": 16,
    "steps": 8,
    "save_steps": 3,
    "log_steps": 1,
    "batch_size": 4,
    "lr": 0.01,
    "warmup_steps": 2,
    "template": "question",
    "device": "cpu",
    "dtype": "fp32",
}
EXAMPLES = [
    {"instruction": f"What is {a} plus {b}?", "output": " ".join(["It", "is"] * (b % 3) + [str(a + b)])}
    for a in range(8)
    for b in range(5)
]
TWELVE = EXAMPLES[:12]  # 3 steps an epoch: a checkpoint at step 3 or 6 is the end of one
EIGHT = EXAMPLES[:8]  # 2 steps an epoch: a checkpoint at step 3 is in the middle of the second
TEN = EXAMPLES[:10]  # 3 steps an epoch, the last of 2 examples
VARIANTS: dict[str, tuple[Sequence[dict[str, str]], dict[str, Any]]] = {
    "middle-of-epoch": (EIGHT, {}),
    "end-of-epoch": (TWELVE, {"weight_decay": 0.1, "reorder": False}),
    "accumulated": (TEN, {"micro_batch_size": 2}),
}


def write_data(path: Path, examples: Sequence[dict[str, str]] = EXAMPLES) -> Path:
    """An instruction data file."""
    path.write_text(json.dumps(list(examples)))
    return path


def run(
    source: TinySource,
    data: Path,
    output: Path,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[..., None] = lambda *_: None,
    **changes: Any,
) -> dict[str, Any]:
    """Train on a tiny model; `changes` go to `TrainOptions`, over `OPTIONS`. Returns the record as it is written."""
    inputs = open_inputs(str(source.base), data, source.space)
    record = train(inputs, output, TrainOptions(**{**OPTIONS, **changes}), resume, overwrite, report)
    assert TrainingRecord.read(output / RECORD) == record
    return json.loads((output / RECORD).read_text())


def run_killed(*arguments: Any, at: int, **changes: Any) -> None:
    """Train until step `at` has ended."""

    def kill(step: int, _steps: int, _log: Any) -> None:
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises((LonasEdgeError, KeyboardInterrupt)):
        run(*arguments, report=kill, **changes)


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a live model, which may share keys and values by its cache."""
    with torch.no_grad():
        return model(input_ids=ids).logits


def plain_base(source: TinySource, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base as a user of transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(source.base, dtype=dtype).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors."""
    return load_file(folder / ADAPTER)


def difference(one: Path, other: Path) -> float:
    """The largest difference between two adapters."""
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    return max((left[key] - right[key]).abs().max().item() for key in left)


def names_in(folder: Path) -> list[str]:
    """The entries of a directory without lock files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def working(output: Path) -> Path:
    """The working directory of an output."""
    return output.with_name(f"{output.name}.partial")


def without_dropout(base: Path, folder: Path) -> Path:
    """A copy of a BERT whose losses in a training are those of the oracle."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(folder: Path, step: int) -> Path:
    """A complete, nearly empty checkpoint."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"a": torch.zeros(2)}, path / ADAPTER)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.zeros(3)}, path / name)
    TrainerState(global_step=step).save_to_json(str(path / "trainer_state.json"))
    (path / COMPLETE).touch()
    return path


def same(folder: Path, record: dict[str, Any], other: Path, other_record: dict[str, Any]) -> None:
    """Bitwise the same adapter, the same history."""
    assert (folder / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
    assert record["losses"] == other_record["losses"]
    assert [entry["step"] for entry in record["losses"]] == list(range(1, 9))


@dataclass(frozen=True)
class Tokens:
    """An example, tokenized from the `question` template."""

    ids: list[int]
    prompt: int

    @classmethod
    def of(cls, source: TinySource, example: dict[str, str]) -> "Tokens":
        tokenizer = AutoTokenizer.from_pretrained(source.base)
        prompt = tokenizer(f"Question: {example['instruction']}\nAnswer:")["input_ids"]
        return cls([*prompt, *tokenizer(f" {example['output']}")["input_ids"], EOS], len(prompt))

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.prompt

    def for_training(self) -> dict[str, list[int]]:
        """As the Trainer gets it."""
        return {"input_ids": self.ids, "labels": [IGNORED] * self.prompt + self.ids[self.prompt :]}

    def log_probabilities(self, logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """[learned, vocabulary]: log-probabilities at the places in front of each learned token."""
        logits = logits_of_ids(torch.tensor([self.ids]))[0, self.prompt - 1 : -1]
        return logits - logits.logsumexp(-1, keepdim=True)

    def cross_entropy(self, logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """-log p, summed over the learned tokens."""
        chosen = torch.tensor(self.ids[self.prompt :])
        return -self.log_probabilities(logits_of_ids)[torch.arange(self.learned), chosen].sum()


def cross_entropy(tokens: list[Tokens], logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Averaged over the learned tokens of all examples."""
    return sum(t.cross_entropy(logits_of_ids).item() for t in tokens) / sum(t.learned for t in tokens)


def divergence(tokens: list[Tokens], teacher: Callable, student: Callable) -> float:
    """KL(teacher ‖ student), averaged over the learned tokens."""
    total = 0.0
    for example in tokens:
        log_p, log_q = example.log_probabilities(teacher), example.log_probabilities(student)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return total / sum(t.learned for t in tokens)


def active_part(name: str, shape: torch.Size, ranks: dict[str, int], outputs: dict[str, int]) -> torch.Tensor:
    """True where a sub-network has the adapter's parameter `name` of a PEFT model; `ranks`, `outputs` of `read_groups`."""
    module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
    path, _, kind = module.rpartition(".")
    rank, rows, columns = ranks.get(module), outputs.get(module), None
    if kind in ("down_proj", "dense_4h_to_h", "output_linear"):
        columns = next(width for layer, width in outputs.items() if layer.startswith(f"{path}."))
    active = torch.zeros(shape, dtype=torch.bool)
    if factor.startswith("A"):
        active[:rank, :columns] = True
    else:
        first = torch.arange(shape[0])[:rows]
        if rows is not None and kind in ("gate_up_proj", "input_linear"):  # gate and up are fused
            first = torch.cat([first, shape[0] // 2 + first])
        active[first, :rank] = True
    return active


@dataclass
class Update:
    """One call of the optimizer: parameters, gradients and AdamW's state by name, before and after."""

    step: int
    lr: float
    before: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    states: dict[str, dict[str, torch.Tensor]]
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    states_after: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Watched:
    """Events of a run: model, passes (step, widths), optimizer steps, autocast dtypes."""

    model: Any = None
    network: Any = None
    passes: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    autocast: set[torch.dtype | None] = field(default_factory=set)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)


def plain_adamw(update: Update, name: str, weight_decay: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A whole parameter after a step of plain AdamW."""
    parameter = nn.Parameter(update.before[name].clone())
    parameter.grad = update.gradients[name].clone()
    optimizer = torch.optim.AdamW([parameter], lr=update.lr, weight_decay=weight_decay)
    if update.states[name]:
        optimizer.state[parameter] = {key: value.clone() for key, value in update.states[name].items()}
    optimizer.step()
    return parameter.detach(), optimizer.state[parameter]
