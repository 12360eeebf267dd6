"""Several data files with weights and of several kinds; the chat template of a training."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinySource
from training_runs import EXAMPLES, OPTIONS, RECORD, write_data
from transformers import AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source
from lonas_edge.training.inputs import open_inputs, open_recovery, with_eval_data
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.tokens import EpochSampler
from lonas_edge.training.train import train

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} plus {b}?"},
            {"role": "assistant", "content": str(a + b)},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes, it is."},
        ]
    }
    for a in range(4)
    for b in range(3)
]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


@pytest.fixture
def talking(llama_copy: TinySource) -> TinySource:
    """The tiny LLaMA with a chat template."""
    (llama_copy.base / "chat_template.jinja").write_text(CHAT)
    return llama_copy


# weights


def test_weights_say_how_often_an_epoch_has_an_example() -> None:
    sampler = EpochSampler([3] * 10 + [5] * 10 + [7] * 4, 4, 42, [(10, 1.0), (10, 0.3), (4, 2.5)])
    epochs = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert all(len(epoch) == len(sampler) == 10 + 3 + 10 for epoch in epochs)
    for epoch in epochs:
        seen = Counter(epoch)
        assert all(seen[index] == 1 for index in range(10))
        assert sorted(seen[index] for index in range(10, 20)) == [0] * 7 + [1] * 3
        assert sorted(seen[index] for index in range(20, 24)) == [2, 2, 3, 3]
    assert {index for epoch in epochs for index in epoch} == set(range(24))  # others each time
    sampler.set_epoch(3)
    assert list(sampler) == epochs[3]
    assert len(EpochSampler([1] * 100, 4, 0, [(100, 0.001)])) == 1


# a training


def test_files_of_all_kinds(talking: TinySource, tmp_path: Path) -> None:
    """Instructions use the chat template, too; the record has each file, and the template."""
    files = (
        (write_data(tmp_path / "a.json", EXAMPLES[:8]), 1.0),
        (write_lines(tmp_path / "b.jsonl", CONVERSATIONS), 0.5),
        (write_lines(tmp_path / "c.jsonl", [{"text": "the in a on " * 40}]), 2.0),
    )
    inputs = open_inputs(str(talking.base), files, talking.space)
    options = {**OPTIONS, "template": None, "max_length": 100, "epochs": 1, "steps": None}
    train(inputs, tmp_path / "out", TrainOptions(**options))
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    by = AutoTokenizer.from_pretrained(talking.base)
    pieces = -(-(len(by("the in a on " * 40)["input_ids"]) + 1) // 100)
    assert pieces == 3
    files = [(file["name"], file["kind"], file["weight"], file["examples"]) for file in record["data"]]
    assert files == [("a.json", "instruction", 1.0, 8), ("b.jsonl", "messages", 0.5, 12), ("c.jsonl", "text", 2.0, pieces)]
    assert record["steps"] == -(-(8 + 6 + 2 * pieces) // 4)
    assert record["chat_template"] == CHAT
    assert record["options"]["template"] == record["prompt"]["name"] == "chat"
    assert record["prompt"]["without_input"] == "<|user|>{instruction}</s>\n<|assistant|>"
    assert record["prompt"]["response"] == "{output}"
    assert "`a.json` (8 examples), `b.jsonl` (12 examples)" in (tmp_path / "out/README.md").read_text()


@pytest.fixture
def trained_on_chat(talking: TinySource, tmp_path: Path) -> Path:
    """A super-adapter trained on conversations."""
    inputs = open_inputs(str(talking.base), write_lines(tmp_path / "chat.jsonl", CONVERSATIONS), talking.space)
    train(inputs, tmp_path / "super", TrainOptions(**{**OPTIONS, "steps": 2, "template": None}))
    return tmp_path / "super"


def test_the_chat_template_stays_that_of_the_training(trained_on_chat: Path, talking: TinySource, tmp_path: Path) -> None:
    """Recovery and held-out prompts use it, not the current template of the base."""
    (talking.base / "chat_template.jinja").write_text("another {{ messages[0].content }}")
    source, by = open_source(str(trained_on_chat)), AutoTokenizer.from_pretrained(talking.base)
    held = source.open_data(tmp_path / "chat.jsonl")
    assert held.description == "chat"
    tokens = [
        by.decode(row[mask.bool()])
        for batch in held.batches(by, 4, 0)
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len(tokens) == 4
    assert all(text.startswith("<|user|>What is ") and "</s>\n<|assistant|>Yes, it is.</s>" in text for text in tokens)
    [batch] = source.open_data(write_data(tmp_path / "new.json")).batches(by, 4, 0)
    assert all(by.decode(row).startswith("<|user|>What is ") for row in batch["input_ids"])
    inputs = open_recovery(str(trained_on_chat), tmp_path / "new.json", "minimal")
    record = train(inputs, tmp_path / "recovered", TrainOptions(**{**OPTIONS, "steps": 1, "template": None}))
    assert record is not None
    assert (record.chat_template, record.prompt) == (CHAT, source.training.prompt)  # type: ignore[union-attr]


# refused


def test_held_out_conversations_need_the_prompt_chat(talking: TinySource, tmp_path: Path) -> None:
    """Their loss would be of a template that is not learned."""
    held_out = write_lines(tmp_path / "chat.jsonl", CONVERSATIONS[:3])
    inputs = open_inputs(str(talking.base), write_data(tmp_path / "data.json", EXAMPLES[:8]), talking.space)
    inputs = with_eval_data(inputs, held_out)
    options = {**OPTIONS, "steps": 1}
    message = rf"--template alpaca: {held_out} holds conversations, which need the model.s chat template. Pass --template chat"
    with pytest.raises(LonasEdgeError, match=message):
        train(inputs, tmp_path / "out", TrainOptions(**{**options, "template": None}))


def test_the_command_line(llama: TinySource, tmp_path: Path, run_cli: Callable) -> None:
    """A weight follows the last colon, unless a file has that name."""
    colon = write_data(tmp_path / "a:2", EXAMPLES[:4])
    files = ["--data", colon, "--data", f"{write_data(tmp_path / 'b.json', EXAMPLES[:8])}:0.5"]
    space = ["--nncf-config", llama.space]
    command = ["train", "--model", llama.base, *space, "--rank", 8, "--steps", 1, "--output"]
    ran = run_cli(*command, tmp_path / "out", *files, "--batch-size", 2).ok()
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert [(file["name"], file["weight"]) for file in record["data"]] == [("a:2", 1.0), ("b.json", 0.5)]
    ran = run_cli(*command, tmp_path / "none", "--data", f"{tmp_path / 'b.json'}:nan")
    assert (ran.code, "a weight must be more than 0" in " ".join(ran.err.split())) == (2, True), ran.err
