"""GLUE's files: columns, quotes and labels of each task, and refused files."""

from pathlib import Path

import pytest
import torch
from tiny_bert import tokenizer

from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import TASKS, task_of
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError

# a line of each task as GLUE distributes it, with its header where there is one; made up
FILES = {
    "CoLA": "gj04\t1\t\tThe cat sat.\nbc01\t0\t*\tCat the sat.\n",
    "SST-2": "sentence\tlabel\na fine film \t1\nnot good \t0\n",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    '1\t7\t8\tHe said no .\t" No , he said .\n0\t1\t2\tYes .\tNo .\n',
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tnews\tMSR\t2012\t1\tnone\tnone\tA man rides.\tA man is riding.\t4.750\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t3\t4\tWhat is it?\tWhat is this?\t1\n",
    "MNLI": "index\tpromptID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\tx\tIt is so.\tIt is not.\tneutral\tcontradiction\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\tWho is it?\tIt is Ann.\tentailment\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\tAnn is ill.\tAnn is well.\tnot_entailment\n",
}
READ = {
    "CoLA": [Texts(("The cat sat.",), 1), Texts(("Cat the sat.",), 0)],
    "SST-2": [Texts(("a fine film ",), 1), Texts(("not good ",), 0)],
    "MRPC": [Texts(("He said no .", '" No , he said .'), 1), Texts(("Yes .", "No ."), 0)],
    "STS-B": [Texts(("A man rides.", "A man is riding."), 4.75)],
    "QQP": [Texts(("What is it?", "What is this?"), 1)],
    "MNLI": [Texts(("It is so.", "It is not."), 2)],
    "QNLI": [Texts(("Who is it?", "It is Ann."), 0)],
    "RTE": [Texts(("Ann is ill.", "Ann is well."), 1)],
}


def written(folder: Path, task: str, text: str) -> Path:
    (folder / task).mkdir(exist_ok=True)
    path = folder / task / "train.tsv"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_reads_each_task(task: str, windows: bool, tmp_path: Path) -> None:
    path = written(tmp_path, task, FILES[task].replace("\n", "\r\n") if windows else FILES[task])
    assert TASKS[task].read(path) == READ[task]
    assert task_of(path) is TASKS[task]


def test_quotes_are_characters(tmp_path: Path) -> None:
    """An open quote swallows no lines; only a newline ends a line."""
    text = 'index\tsentence1\tsentence2\tlabel\n0\t"A\tB"" "\tentailment\n1\tC\u2028\x0bD\x85\t"\tnot_entailment\n'
    assert TASKS["RTE"].read(written(tmp_path, "RTE", text)) == [Texts(('"A', 'B"" "'), 0), Texts(("C\u2028\x0bD\x85", '"'), 1)]


@pytest.mark.parametrize(
    ("task", "text", "messages"),
    [
        (
            "RTE",
            "index\tsentence1\tlabel\n0\ta\tentailment\n",
            ["sentence2 missing; expected the columns sentence1, sentence2, label"],
        ),
        ("RTE", "index\tsentence1\tsentence2\n0\ta\tb\n", ["label missing", "GLUE's test sets have no labels; take train.tsv"]),
        ("CoLA", "", ["holds no examples"]),
        (
            "RTE",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tneutral\n1\ta\tb\n2\t \tb\tentailment\n3\ta\tb\tentailment\n",
            [
                "line 2: label 'neutral': expected entailment or not_entailment",
                "line 3: 3 columns, expected 4 with text",
                "line 4: 4 columns, expected 4 with text",
            ],
        ),
        ("SST-2", "sentence\tlabel\na\t2\nb\t-1\n", ["line 2: label '2': expected 0 or 1", "line 3: label '-1'"]),
        (
            "STS-B",
            "sentence1\tsentence2\tscore\na\tb\t5.1\na\tb\tnan\na\tb\thigh\n",
            [
                f"line {line}: score '{score}': expected a number from 0 to 5"
                for line, score in ((2, "5.1"), (3, "nan"), (4, "high"))
            ],
        ),
    ],
)
def test_refused(task: str, text: str, messages: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, task, text)
    with pytest.raises(LonasEdgeError) as raised:
        TASKS[task].read(path)
    assert str(path) in str(raised.value)
    assert all(part in str(raised.value) for part in messages), str(raised.value)


def test_torn_lines_of_qqp(tmp_path: Path) -> None:
    """The published files have incomplete lines and pairs without one question, which are skipped."""
    torn = "2\t5\t6\tWhat is\n" + "4\t5\t6\tWhat is it?\t\t0\n" + "5\t5\t6\t \tWhat is it?\t0\n"
    path = written(tmp_path, "QQP", FILES["QQP"] + torn + "3\t5\t6\ta\tb\t0\n")
    assert TASKS["QQP"].read(path) == [*READ["QQP"], Texts(("a", "b"), 0)]


def test_unknown_tasks(tmp_path: Path) -> None:
    path = written(tmp_path, "mine", FILES["RTE"])
    assert task_of(path, "rte") is TASKS["RTE"]
    with pytest.raises(LonasEdgeError, match=r"Cannot infer the GLUE task from folder 'mine'; rename it to one of CoLA"):
        task_of(path)


@pytest.mark.parametrize(
    ("task", "outputs", "message"), [("STS-B", 2, "regression"), ("RTE", 1, "classification"), ("MNLI", 2, "3")]
)
def test_heads_of_another_kind(task: str, outputs: int, message: str) -> None:
    assert TASKS[task].head_error(len(TASKS[task].outputs)) is None
    assert message in str(TASKS[task].head_error(outputs))


@pytest.mark.parametrize(
    ("outputs", "numbers"),
    [
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), [2, 1, 0]),  # as roberta-large-mnli
        (("contradiction", "entailment", "neutral"), [1, 2, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2]),
        (("neutral", "entailment", "other"), [0, 1, 2]),  # the names of another task
        (("neutral", "NEUTRAL", "entailment"), [0, 1, 2]),
    ],
)
def test_classes_of_a_head(outputs: tuple[str, ...], numbers: list[int]) -> None:
    """By name in any case if all match, else in the task's order: entailment, neutral, contradiction."""
    task, pairs = TASKS["MNLI"], [Texts(("a", "b"), number) for number in range(3)]
    assert task.numbers_in(outputs) == numbers
    assert task.renumber(pairs, outputs) == [Texts(("a", "b"), number) for number in numbers]
    scored = [Texts(("a", "b"), 4.75)]
    assert TASKS["STS-B"].renumber(scored, ("score",)) == scored


def test_pairs_as_tokens() -> None:
    """[CLS] A [SEP] B [SEP], segments 0 and 1; the longer text is cut; padded on the right."""
    pairs = [("the good", "bad"), ("is", "the film is good")]
    by = tokenizer()
    names = {name: by.convert_tokens_to_ids(name) for name in ("the", "good", "bad", "is", "film")}
    cls, sep = 2, 3
    first, second = encode_pairs(pairs, by, 6)
    assert first["input_ids"] == [cls, names["the"], names["good"], sep, names["bad"], sep]
    assert first["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert second["input_ids"] == [cls, names["is"], sep, names["the"], names["film"], sep]
    assert len(encode_pairs(pairs, by, None)[1]["input_ids"]) == 8
    batch = collate_pairs([{**first, "labels": 1}, {"input_ids": [2, 3], "token_type_ids": [0, 0], "labels": 0}], 0)
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert batch["input_ids"][1].tolist() == [2, 3, 0, 0, 0, 0] and batch["labels"].dtype == torch.long
    assert collate_pairs([{**first, "labels": 2.5}], 0, True)["labels"].tolist() == [2.5]
