"""Several files of data with weights, conversations and texts among them; and what is made of a chat template afterwards."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
import openvino_genai
import pytest
from gguf_model import fields_of
from tiny_models import TinySource
from training_runs import EXAMPLES, OPTIONS, RECORD, write_data
from transformers import AutoTokenizer

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.source import open_source
from lonas_edge.training.inputs import open_inputs, open_recovery
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.sampler import EpochSampler
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
    """Instructions are put in the chat template, too; the record has each file, and the template."""
    files = (
        (write_data(tmp_path / "a.json", EXAMPLES[:8]), 1.0),
        (write_lines(tmp_path / "b.jsonl", CONVERSATIONS), 0.5),
        (write_lines(tmp_path / "c.jsonl", [{"text": "the in a on " * 40}]), 2.0),
    )
    inputs = open_inputs(str(talking.base), files, talking.space)
    made = train(
        inputs, tmp_path / "out", TrainOptions(**{**OPTIONS, "prompt": None, "max_length": 100, "epochs": 1, "steps": None})
    )
    assert made is not None
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    by = AutoTokenizer.from_pretrained(talking.base)
    pieces = -(-(len(by("the in a on " * 40)["input_ids"]) + 1) // 100)
    assert pieces == 3
    found = [(one["name"], one["kind"], one["weight"], one["examples"], one["dropped"]) for one in record["data"]]
    assert found == [
        ("a.json", "instruction", 1.0, 8, 0),
        ("b.jsonl", "messages", 0.5, 12, 0),
        ("c.jsonl", "text", 2.0, pieces, 0),
    ]
    assert record["steps"] == -(-(8 + 6 + 2 * pieces) // 4)
    assert record["chat_template"] == CHAT
    assert record["options"]["prompt"] == record["prompt"]["name"] == "chat"
    assert record["prompt"]["without_input"] == "<|user|>{instruction}</s>\n<|assistant|>"
    assert record["prompt"]["response"] == "{output}"
    card = (tmp_path / "out/README.md").read_text()
    assert "`a.json` (8 examples), `b.jsonl` (12 examples), `c.jsonl` (3 examples), prompt `chat`" in card
    assert "<|user|>{instruction}</s>\n<|assistant|>{output}" in card


@pytest.fixture
def trained_on_chat(talking: TinySource, tmp_path: Path) -> Path:
    """A super-adapter that has learned conversations."""
    data = write_lines(tmp_path / "chat.jsonl", CONVERSATIONS)
    train(
        open_inputs(str(talking.base), data, talking.space),
        tmp_path / "super",
        TrainOptions(**{**OPTIONS, "steps": 2, "prompt": None}),
    )
    return tmp_path / "super"


def test_the_chat_template_stays_that_of_the_training(trained_on_chat: Path, talking: TinySource, tmp_path: Path) -> None:
    """In specializing and in what is held out, whatever becomes of the base's own."""
    (talking.base / "chat_template.jinja").write_text("another {{ messages[0].content }}")
    source, by = open_source(str(trained_on_chat)), AutoTokenizer.from_pretrained(talking.base)
    held = read_held_out(source, tmp_path / "chat.jsonl", 4, 0)
    assert (held.template.name, held.unseen) == ("chat", False)
    tokens = [
        by.decode(row[mask.bool()])
        for batch in held.batches(by)
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len(tokens) == 4
    assert all(text.startswith("<|user|>What is ") and "</s>\n<|assistant|>Yes, it is.</s>" in text for text in tokens)
    instructions = read_held_out(source, write_data(tmp_path / "new.json"), 4, 0)
    [batch] = instructions.batches(by)
    assert instructions.unseen is True
    assert all(by.decode(row).startswith("<|user|>What is ") for row in batch["input_ids"])
    inputs = open_recovery(str(trained_on_chat), tmp_path / "new.json", "minimal")
    record = train(inputs, tmp_path / "special", TrainOptions(**{**OPTIONS, "steps": 1, "prompt": None}))
    assert record is not None
    assert (record.chat_template, record.prompt) == (CHAT, source.training.prompt)  # type: ignore[union-attr]


def test_eval_and_export_ask_in_the_chat_template(
    trained_on_chat: Path, talking: TinySource, tmp_path: Path, run_cli: Callable
) -> None:
    """What is logged as asked is the training's template, which exports have by their tokenizer, whatever the base's is now."""
    (talking.base / "chat_template.jinja").write_text("another {{ messages[0].content }}")
    (tmp_path / "boolq").mkdir()
    sample = {"instruction": "Please answer: is it {so}?\n\nAnswer format: true/false", "input": "", "answer": "true"}
    (tmp_path / "boolq/test.json").write_text(json.dumps([sample]))
    solved = ("--solve", tmp_path / "chat.jsonl", "--num-prompts", 6)
    for name, options in (("checkpoint", (*solved, "--stage", "checkpoint")), ("ir", ())):
        ran = run_cli("export", trained_on_chat, *options, "--output", tmp_path / name)
        assert ran.code == 0, ran.err
        assert json.loads((tmp_path / name / "lonas_edge.json").read_text())["prompt"] == "chat"
    expected = "<|user|>Please answer: is it {so}?\n\nAnswer format: true/false</s>\n<|assistant|>"
    asked = ("--tasks", "boolq", "--datasets", tmp_path, "--protocol", "answer-word", "--output")
    for target in (trained_on_chat, tmp_path / "checkpoint", tmp_path / "ir"):
        ran = run_cli("eval", target, *asked, tmp_path / f"report-{target.name}")
        assert ran.code == 0, ran.err
        (log,) = (tmp_path / f"report-{target.name}/samples").glob("*/samples_*.jsonl")
        (line,) = log.read_text().splitlines()
        assert json.loads(line)["doc"]["prompt"] == expected
        assert json.loads(line)["doc"]["choices"] == ["the correct answer is true", "the correct answer is false"]


def test_clients_of_an_export_have_the_training_s_chat_template(
    trained_on_chat: Path, talking: TinySource, tmp_path: Path
) -> None:
    """In the tokenizer's files, in the OpenVINO tokenizer that openvino_genai asks, in the GGUF file."""
    (talking.base / "chat_template.jinja").write_text("another {{ messages[0].content }}")
    source = open_source(str(trained_on_chat))
    widths = source.select("maximal")
    export(source, widths, tmp_path / "checkpoint", ExportOptions(stage="checkpoint", verify=False))
    export(source, widths, tmp_path / "gguf", ExportOptions(stage="gguf", gguf_type="f32", verify=False))
    export(source, widths, tmp_path / "ir", ExportOptions(verify=False))
    for folder in (tmp_path / "checkpoint", tmp_path / "ir"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT
    assert openvino_genai.Tokenizer(tmp_path / "ir").get_original_chat_template() == CHAT
    tokenizer = openvino.Core().read_model(tmp_path / "ir/openvino_tokenizer.xml")
    assert tokenizer.get_rt_info("chat_template").value == CHAT
    assert fields_of(tmp_path / "gguf/model.F32.gguf")["tokenizer.chat_template"] == CHAT


def test_the_base_s_chat_template_where_none_was_trained_in(talking: TinySource, tmp_path: Path) -> None:
    """An adapter without a record."""
    source = talking.opened()
    export(source, source.select("maximal"), tmp_path / "out", ExportOptions(stage="checkpoint", verify=False))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == CHAT


# what is refused


def test_a_model_without_a_chat_template(llama: TinySource, data: Path, tmp_path: Path) -> None:
    chat = write_lines(tmp_path / "chat.jsonl", CONVERSATIONS)
    with pytest.raises(LonasEdgeError, match=rf"{llama.base}: the model has no chat template"):
        train(open_inputs(str(llama.base), chat, llama.space), tmp_path / "out", TrainOptions(**{**OPTIONS, "prompt": None}))
    with pytest.raises(LonasEdgeError, match=rf"{llama.base}: the model has no chat template"):
        train(open_inputs(str(llama.base), data, llama.space), tmp_path / "out", TrainOptions(**{**OPTIONS, "prompt": "chat"}))
    with pytest.raises(LonasEdgeError, match=rf"{llama.base}: the model has no chat template"):
        read_held_out(llama.opened(), chat, 4, 0)


def test_conversations_in_another_prompt(talking: TinySource, tmp_path: Path) -> None:
    chat = write_lines(tmp_path / "chat.jsonl", CONVERSATIONS)
    with pytest.raises(LonasEdgeError, match=rf"--prompt question: {chat} holds conversations"):
        train(open_inputs(str(talking.base), chat, talking.space), tmp_path / "out", TrainOptions(**OPTIONS))
    with pytest.raises(LonasEdgeError, match=rf"--prompt alpaca: {chat} holds conversations"):
        read_held_out(talking.opened(), chat, 4, 0, "alpaca")


def test_faults_of_all_files_are_listed(llama: TinySource, tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    files = [(tmp_path / "empty.json", 1.0), (tmp_path / "none.json", 1.0), (write_data(tmp_path / "good.json"), 1.0)]
    with pytest.raises(LonasEdgeError, match=r"empty\.json: holds no examples[\s\S]*none\.json: the data cannot be read"):
        open_inputs(str(llama.base), files, llama.space)


def test_the_command_line(llama: TinySource, tmp_path: Path, run_cli: Callable) -> None:
    """A weight is what follows the last colon, unless the file itself is called so."""
    colon = write_data(tmp_path / "a:2", EXAMPLES[:4])
    files = ["--data", colon, "--data", f"{write_data(tmp_path / 'b.json', EXAMPLES[:8])}:0.5"]
    space = ["--nncf-config", llama.space]
    command = ["train", "--model", llama.base, *space, "--rank", 8, "--steps", 1, "--output"]
    ran = run_cli(*command, tmp_path / "out", *files, "--batch-size", 2, "--json")
    assert ran.code == 0, ran.err
    assert [(one["name"], one["weight"]) for one in json.loads(ran.out)["data"]] == [("a:2", 1.0), ("b.json", 0.5)]
    for weight in ("0", "-1", "nan", "inf"):
        ran = run_cli(*command, tmp_path / "none", "--data", f"{tmp_path / 'b.json'}:{weight}")
        assert (ran.code, "a weight must be more than 0" in " ".join(ran.err.split())) == (2, True), ran.err
    ran = run_cli(*command, tmp_path / "none", "--data", f"{tmp_path / 'b.json'}:often")
    assert (ran.code, "b.json:often: the data cannot be read" in ran.err) == (1, True), ran.err
