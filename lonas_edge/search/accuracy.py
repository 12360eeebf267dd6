"""Accuracy as a quality: held-out questions asked as `eval` asks them, of sub-networks activated in one super-network."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.data.templates import CHAT, PROMPTS, Template
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.protocols import PROTOCOLS, Protocol, Sample
from lonas_edge.search.quality import Score

if TYPE_CHECKING:
    from lonas_edge.evaluate.targets import Target
    from lonas_edge.network.heldout import HeldOut
    from lonas_edge.network.super_network import Batch, SuperNetwork

BATCH_SIZE = 32


def read_questions(data: Path, protocol: str, order: Sequence[int]) -> dict[str, list[Sample]]:
    """Questions of the data by the task whose answer words and form they have.

    Args:
        data: A list of {instruction, input, output, answer}, as of LLM-Adapters.
        protocol: How they are asked.
        order: Places of the questions to take.

    Returns:
        Questions by task.

    Raises:
        LonasEdgeError: If one has no answer, or no task that the protocol can ask; all are listed.
    """
    try:
        items = json.loads(data.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LonasEdgeError(f"{data}: accuracy needs a JSON list of questions: {error}") from error
    found: dict[str, list[Sample]] = defaultdict(list)
    faults = []
    for place in order:
        task = _task(PROTOCOLS[protocol], items[place])
        if task:
            found[task].append(items[place])
        else:
            faults.append(f"example {place}: no answer that {protocol} can ask for")
    way_out = (
        'Accuracy needs "answer" and the instructions of a commonsense task, or with --protocol generate those of a math task; '
        "--quality kl and loss take any data."
    )
    raise_all(f"{data}: accuracy cannot be measured on it:", faults, way_out)
    return dict(found)


def _task(protocol: Protocol, item: Any) -> str | None:
    """The first task that a question can be one of."""
    for name, task in protocol.tasks.items():
        if task.fault(item) is None:
            with suppress(ValueError):
                protocol.documents([item], name, next(iter(PROMPTS)))
                return name
    return None


def accuracy_score(
    network: "SuperNetwork", questions: dict[str, list[Sample]], protocol: str, prompt: Template, tokenizer: Any
) -> Score:
    """How accuracy is scored.

    Args:
        network: The super-network.
        questions: Questions by task.
        protocol: How they are asked.
        prompt: What makes the prompt.
        tokenizer: The model's.

    Returns:
        Scores a sub-network: right answers, in percent.
    """
    from lonas_edge.evaluate.run import evaluate
    from lonas_edge.evaluate.settings import EvalSettings

    def score(widths: Sequence[int]) -> float:
        network.activate(widths)
        network.model.eval()
        with tempfile.TemporaryDirectory() as scratch:
            for task, samples in questions.items():
                folder = Path(scratch) / task
                folder.mkdir()
                (folder / "test.json").write_text(json.dumps(samples), encoding="utf-8")
            settings = EvalSettings(tuple(questions), Path(scratch), PROTOCOLS[protocol], prompt.name)
            record, _ = evaluate([_target(network, widths, prompt, tokenizer)], settings)
        results = record.targets[0].tasks
        asked = sum(one.questions for one in results)
        return sum(one.accuracy * one.questions for one in results) / asked

    return score


def check_questions(held: "HeldOut", protocol: str) -> None:
    """Refuse data on which accuracy cannot be measured.

    Args:
        held: The data.
        protocol: How it would be asked.

    Raises:
        LonasEdgeError: If an example has no answer that can be asked for; all are listed.
    """
    if held.template is not None:
        read_questions(held.path, protocol, held.order[: held.prompts])


def score_of(held: "HeldOut", network: "SuperNetwork", protocol: str, tokenizer: Any, batches: "Sequence[Batch]") -> Score:
    """How accuracy is scored on data: by a protocol, or by the metric of a task of GLUE.

    Args:
        held: The data.
        network: The super-network.
        protocol: How prompts are asked.
        tokenizer: The model's.
        batches: The data's.

    Returns:
        Scores a sub-network, in percent.
    """
    if held.template is None:
        return metric_score(str(held.metric), network, batches)
    questions = read_questions(held.path, protocol, held.order[: held.prompts])
    return accuracy_score(network, questions, protocol, held.template, tokenizer)


def metric_score(metric: str, network: "SuperNetwork", batches: "Sequence[Batch]") -> Score:
    """How one of GLUE's metrics is scored.

    Args:
        metric: The metric.
        network: The super-network.
        batches: Texts with their labels.

    Returns:
        Scores a sub-network, in percent.
    """
    from lonas_edge.evaluate.glue import METRICS

    def score(widths: Sequence[int]) -> float:
        logits, labels = network.answers(widths, batches)
        answers = logits.argmax(-1) if logits.shape[1] > 1 else logits[:, 0]
        return 100 * METRICS[metric](labels.numpy(), answers.float().numpy())

    return score


def _target(network: "SuperNetwork", widths: Sequence[int], prompt: Template, tokenizer: Any) -> "Target":
    from lonas_edge.evaluate.targets import Target
    from lonas_edge.evaluate.torch_lm import TorchLM

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Target(
        name="sub-network",
        kind="torch",
        precision=str(network.base.dtype).removeprefix("torch."),
        prompt=prompt.name,
        max_length=getattr(network.base.config, "max_position_embeddings", None) or 2048,
        tokenizer=tokenizer,
        sizes=None,
        identity={"widths": list(widths)},
        batch_size=BATCH_SIZE,
        folder=None,
        load=partial(TorchLM, pretrained=network.base, tokenizer=tokenizer, batch_size=BATCH_SIZE, backend="causal"),
        uses=frozenset(),
        template=prompt if prompt.name == CHAT else None,
    )
