"""Accuracy as a quality: held-out examples evaluated as `eval` does, of sub-networks activated in one super-network."""

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
from lonas_edge.evaluate.protocols import GENERATE, PROTOCOLS, TASKS, Protocol, Sample, choose_protocol
from lonas_edge.search.quality import Score

if TYPE_CHECKING:
    from lonas_edge.evaluate.targets import Target
    from lonas_edge.network.heldout import HeldOut
    from lonas_edge.network.super_network import Batch, SuperNetwork

BATCH_SIZE = 32


def score_of(held: "HeldOut", network: "SuperNetwork", tokenizer: Any, batches: "Sequence[Batch]") -> Score:
    """Make the function that scores accuracy in percent: by a protocol, or by the metric of a GLUE task."""
    if held.template is None:
        return metric_score(metric_of(held), network, batches)
    protocol, samples = read_samples(held.path, held.template.name, held.order[: held.prompts])
    return protocol_score(network, samples, protocol, held.template, tokenizer)


def metric_of(held: "HeldOut") -> str:
    """Name the metric of a GLUE task or of scored pairs, or the protocol; refuses data without labels."""
    if held.metric:
        return held.metric
    if held.template is None:
        raise LonasEdgeError(
            f"{held.path}: --quality accuracy needs labels: of an embedding model scored pairs, such as STS-B's; of a "
            "classifier data of GLUE. Use kl, the distance from the unpruned network."
        )
    return read_samples(held.path, held.template.name, held.order[: held.prompts])[0].name


def read_samples(data: Path, prompt: str, order: Sequence[int]) -> tuple[Protocol, dict[str, list[Sample]]]:
    """Choose the protocol as `eval` does, and group examples by the task whose answers and form they have.

    Args:
        data: A JSON list of {instruction, input, output, answer}, as of LLM-Adapters.
        prompt: Name of the prompt template.
        order: Indices of the examples to take.
    """
    try:
        items = json.loads(data.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise LonasEdgeError(f"{data}: --quality accuracy needs a JSON list of examples: {error}") from error
    samples: dict[str, list[Sample]] = defaultdict(list)
    problems = []
    tasks = filter(None, (_task(PROTOCOLS[GENERATE], items[index]) for index in order))  # this protocol has all tasks
    protocol = choose_protocol(None, [prompt], list(tasks) or TASKS)
    for index in order:
        task = _task(protocol, items[index])
        if task:
            samples[task].append(items[index])
        else:
            problems.append(f"example {index}: no answer that the protocol {protocol.name} can evaluate")
    hint = (
        'Each example needs "answer" and the instruction of a commonsense task, or each one that of a math task. '
        "--quality kl and loss take any data."
    )
    raise_all(f"{data}: cannot measure accuracy:", problems, hint)
    return protocol, dict(samples)


def _task(protocol: Protocol, item: Any) -> str | None:
    """Return the first task that an example fits."""
    for name, task in protocol.tasks.items():
        if task.fault(item) is None:
            with suppress(ValueError):
                protocol.documents([item], name, next(iter(PROMPTS)))
                return name
    return None


def protocol_score(
    network: "SuperNetwork", samples: dict[str, list[Sample]], protocol: Protocol, prompt: Template, tokenizer: Any
) -> Score:
    """Make the function that evaluates a protocol."""
    from lonas_edge.evaluate.run import evaluate
    from lonas_edge.evaluate.settings import EvalSettings

    def score(widths: Sequence[int]) -> float:
        network.activate(widths)
        network.model.eval()
        with tempfile.TemporaryDirectory() as scratch:
            for task, chosen in samples.items():
                folder = Path(scratch) / task
                folder.mkdir()
                (folder / "test.json").write_text(json.dumps(chosen), encoding="utf-8")
            settings = EvalSettings(tuple(samples), Path(scratch), protocol, prompt.name)
            record, _ = evaluate([_target(network, widths, prompt, tokenizer)], settings)
        results = record.targets[0].tasks
        return sum(task.accuracy * task.questions for task in results) / sum(task.questions for task in results)

    return score


def metric_score(metric: str, network: "SuperNetwork", batches: "Sequence[Batch]") -> Score:
    """Make the function that computes one of GLUE's metrics: of classes, numbers, or the cosines of pairs of embeddings."""
    from lonas_edge.evaluate.glue import METRICS

    def score(widths: Sequence[int]) -> float:
        predictions, labels = network.objective.predicted(*network.answers(widths, batches))
        return 100 * METRICS[metric](labels.numpy(), predictions.float().numpy())

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
