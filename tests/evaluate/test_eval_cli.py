"""`lonas-edge eval` on tiny models and a few samples of every task; accuracies are recomputed with plain transformers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from lm_eval.tasks import TaskManager
from tiny_models import TinyModels, TinySource, say_only
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.data.test_sets import COMMONSENSE as TASKS
from lonas_edge.evaluate import targets
from lonas_edge.evaluate.backends import TorchLM
from lonas_edge.exporting.export import ExportOptions, export

DATA = Path(__file__).parent / "data"
F32 = ("--property", "INFERENCE_PRECISION_HINT=f32", "--property", "KV_CACHE_PRECISION=f32")
QUICK = ("--datasets", DATA, "--protocol", "option-text", "--json")


@pytest.fixture(scope="module")
def roomy(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> TinySource:
    """The tiny LLaMA with a context that the prompts fit in. Not to be changed."""
    source = tiny_models.source("llama").copied_to(tmp_path_factory.mktemp("roomy"))
    path = source.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 1024}))
    return source


@pytest.fixture(scope="module")
def exported(roomy: TinySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its heuristic sub-network as fp32 IR. Not to be changed."""
    source, folder = roomy.opened(), tmp_path_factory.mktemp("exported") / "ir"
    export(source, source.select(), folder, ExportOptions(weight_format="fp32", verify=False))
    return folder


def result(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def accuracies(target: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {task["task"]: {name: m["value"] for name, m in task["metrics"].items()} for task in target["tasks"]}


def test_all_tasks_by_option_text_as_plain_transformers_ranks_them(roomy: TinySource, run_cli: Callable):
    found = result(run_cli("eval", roomy.base, *QUICK))
    model = AutoModelForCausalLM.from_pretrained(roomy.base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(roomy.base)
    assert accuracies(found["targets"][0]).keys() == TASKS.keys()
    for task in TASKS:
        samples = json.loads((DATA / task / "test.json").read_text())
        plain, normalized = [], []
        for sample in samples:
            question, options, right = parse(task, sample)
            scores = [likelihood(model, tokenizer, f"Question: {question}\nAnswer:", f" {option}") for option in options]
            plain.append(scores.index(max(scores)) == right)
            shares = [score / len(option) for score, option in zip(scores, options, strict=True)]
            normalized.append(shares.index(max(shares)) == right)
        values = accuracies(found["targets"][0])[task]
        assert values["acc"] == pytest.approx(sum(plain) / len(samples)), task
        assert values["acc_norm"] == pytest.approx(sum(normalized) / len(samples)), task


def parse(task: str, sample: dict[str, str]) -> tuple[str, list[str], int]:
    """Question, options, and the index of the correct one, by string operations."""
    head, _, tail = sample["instruction"].partition("\n\nAnswer format: ")
    words = tail.split("/")
    body = head.split(": ", 1)[1]
    if task == "boolq":
        return body, words, words.index(sample["answer"])
    question, _, rest = body.partition("\n\n")
    for word in words:
        rest = rest.replace(f"{word.capitalize()}: ", "\0")
    return question, [text.strip() for text in rest.split("\0")[1:]], words.index(sample["answer"])


def likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    start = len(tokenizer(context)["input_ids"])
    ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(-1)
    return sum(logits[index - 1, ids[0, index]].item() for index in range(start, ids.shape[1]))


def test_ir_and_activated_super_network_answer_alike(roomy: TinySource, exported: Path, run_cli: Callable):
    sources = [roomy.adapter, "--model", roomy.base, "--nncf-config", roomy.space, "--subnet", "heuristic,minimal"]
    found = result(run_cli("eval", exported, *sources, *QUICK, *F32))
    assert [target["name"] for target in found["targets"]] == ["ir", "adapter:heuristic", "adapter:minimal"]
    assert [target["kind"] for target in found["targets"]] == ["ir", "torch", "torch"]
    same = [difference for difference in found["differences"] if difference["target"] == "adapter:heuristic"]
    assert {(difference["identical"], difference["points"]) for difference in same} == {(1.0, 0.0)}
    assert {difference["scope"] for difference in same} == {*TASKS, "average"}
    sizes = [target["sizes"] for target in found["targets"]]
    assert sizes[0] == sizes[1]
    assert sizes[2]["macs"] < sizes[1]["macs"]


MATH = ("gsm8k", "AQuA")


def answer_in(task: str, text: str) -> str:
    """The reference's rules: the first capital of A to E, or the last number."""
    if task == "AQuA":
        return next((letter for letter in text if letter in "ABCDE"), "")
    numbers = re.findall(r"-?[0-9]+\.?[0-9]*", text.replace(",", ""))
    return str(float(numbers[-1])) if numbers else ""


def test_math_equals_a_plain_loop(roomy: TinySource, run_cli: Callable, tmp_path: Path):
    """The head emits digits and letters only. The second sample's answer is the loop's (or 0.0004 more), the first is wrong."""
    roomy = roomy.copied_to(tmp_path / "copy")
    say_only(roomy.base, "0123456789.,-%ABCDE ", louder="ABCDE")
    model = AutoModelForCausalLM.from_pretrained(roomy.base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(roomy.base)
    data, expected = tmp_path / "data", {}
    for task in MATH:
        samples, found = json.loads((DATA / task / "test.json").read_text())[:2], []
        for index, sample in enumerate(samples):
            prompt = (
                "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
                f"{28 * ' '}### Instruction:\n{28 * ' '}{sample['instruction']}\n\n{28 * ' '}### Response:\n{28 * ' '}"
            )
            ids = tokenizer(prompt, return_tensors="pt")
            tokens = model.generate(**ids, max_new_tokens=256, num_beams=4, do_sample=False, pad_token_id=1)
            text = tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            found.append((text, answer_in(task, text)))
            answer, is_right = found[-1][1], index % 2
            assert answer
            if task == "AQuA":
                sample["answer"] = answer if is_right else "BCDEA"["ABCDE".index(answer)]
            else:
                sample["answer"] = str(float(answer) + (0.0004 if is_right else 0.004))
        expected[task] = found
        (data / task).mkdir(parents=True)
        (data / task / "test.json").write_text(json.dumps(samples))
    options = ["--template", "lonas", "--tasks", "gsm8k,aqua", "--output", tmp_path / "out"]
    (target,) = result(run_cli("eval", roomy.base, "--datasets", data, *options, "--json"))["targets"]
    assert target["prompt"] == "lonas"
    for task in MATH:
        (log,) = tmp_path.glob(f"out/samples/*/samples_{task}.jsonl")
        logged = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(line["resps"][0][0], line["filtered_resps"][0]) for line in logged] == expected[task]
    assert accuracies(target) == {task: {"acc": 0.5} for task in MATH}
    for task in target["tasks"]:
        value = task["metrics"]["acc"]
        assert value["stderr"] == pytest.approx(0.5)  # of two: (0.5 * 0.5 / (2 - 1)) ** 0.5
    report = (tmp_path / "out/eval.md").read_text()
    assert "| GSM8K | AQuA | Average |" in report


def test_math_needs_the_protocol_generate(roomy: TinySource, run_cli: Callable):
    """The harness has a gsm8k, too: it is used by its full name only."""
    options = ["--datasets", DATA, "--protocol", "option-text", "--tasks"]
    ran = run_cli("eval", roomy.base, *options, "boolq,gsm8k,svamp")
    assert ran.code == 1
    message = " ".join(ran.err.split())
    assert "Not available with the protocol option-text: - gsm8k: a task of the protocol generate - SVAMP: a task" in message
    assert "--protocol generate; harness:NAME is lm-evaluation-harness's own" in message
    ran = run_cli("eval", roomy.base, "--datasets", DATA, "--tasks", "harness:gsm8k")
    assert "task gsm8k: its data is not available" in ran.err
    (target,) = result(run_cli("eval", roomy.base, *options, "all", "--limit", 1, "--json"))["targets"]
    assert [task["task"] for task in target["tasks"]] == list(TASKS)


def test_a_task_of_the_harness_with_the_name_of_ours(roomy: TinySource, run_cli: Callable, monkeypatch, tmp_path: Path):
    rows = []
    for sample in json.loads((DATA / "openbookqa/test.json").read_text()):
        question, options, right = parse("openbookqa", sample)
        choices = {"text": options, "label": list("ABCD")}
        rows.append({"question_stem": question, "choices": choices, "answerKey": "ABCD"[right]})
    split = Dataset.from_list(rows)
    monkeypatch.setattr("datasets.load_dataset", lambda **_: DatasetDict({"train": split, "validation": split, "test": split}))
    options = ["--tasks", "harness:openbookqa,openbookqa", "--output", tmp_path / "out"]
    found = result(run_cli("eval", roomy.base, roomy.adapter, "--model", roomy.base, *QUICK, *options))
    assert [task["task"] for task in found["targets"][0]["tasks"]] == ["openbookqa", "harness:openbookqa"]
    assert {each["scope"] for each in found["differences"]} == {"openbookqa", "harness:openbookqa", "average"}
    assert {each["questions"] for each in found["differences"]} == {5, 10}
    assert "harness:openbookqa: acc_norm, as lm-evaluation-harness defines it" in (tmp_path / "out/eval.md").read_text()
    assert len(list((tmp_path / "out/samples").rglob("*.jsonl"))) == 4


TASK = """
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "(never)"}, {function: take_first}]}
  - {name: loose, filter: [{function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_a_task_read_in_two_ways_counts_by_the_first(roomy: TinySource, run_cli: Callable, tmp_path: Path, monkeypatch):
    (tmp_path / "test.json").write_text(
        "\n".join(json.dumps({"question": f"How many {n}?", "answer": str(n)}) for n in range(4))
    )
    (tmp_path / "counting.yaml").write_text(TASK.replace("DATA", str(tmp_path / "test.json")))
    monkeypatch.setattr(
        "lonas_edge.evaluate.language.TaskManager", lambda: TaskManager(include_path=tmp_path, include_defaults=False)
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = result(run_cli("eval", roomy.base, roomy.adapter, "--model", roomy.base, "--tasks", "counting", "--json"))
    (task,) = found["targets"][0]["tasks"]
    assert (task["metric"], task["accuracy"], task["questions"]) == ("exact_match", 0.0, 4)
    assert set(task["metrics"]) == {"exact_match", "exact_match,loose"}
    assert [each["questions"] for each in found["differences"]] == [4]
    assert found["differences"][0]["identical"] == 1.0  # "[invalid]" both


def test_a_killed_evaluation_continues(roomy: TinySource, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["eval", *roomy.arguments(), "--subnet", "minimal,maximal", *QUICK, "--tasks", "boolq,piqa"]
    monkeypatch.setattr(targets, "_batch_size", lambda weight_bytes: 2)
    expected = result(run_cli(*command))
    batches: list[int] = []
    loglikelihood = TorchLM.loglikelihood

    def interrupted(model: TorchLM, requests: list[Any], **options: Any) -> Any:
        batches.append(len(requests))
        if len(batches) == 8:
            raise KeyboardInterrupt
        return loglikelihood(model, requests, **options)

    command += ["--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(TorchLM, "loglikelihood", interrupted)
        ran = run_cli(*command)
    assert ran.code == 1 and [path.name for path in tmp_path.glob("out*")] == ["out.partial"]
    assert f"The work so far is kept in {tmp_path / 'out.partial'}. The same command continues from it." in ran.err
    assert str(roomy.base.parent) not in (tmp_path / "out.partial/answers.jsonl").read_text()
    ran = run_cli(*command, "--limit", 3, "--protocol", "answer-word", "--template", "question")
    assert ran.code == 1
    changes = ("protocol: was option-text, is answer-word", "prompt: ", "limit: ")
    assert all(change in ran.err for change in changes)
    found = result(run_cli(*command))
    assert [target["answered"] for target in expected["targets"]] == [11, 11]
    assert [target["answered"] for target in found["targets"]] == [0, 9], "seven batches are kept: 6 + 5 prompts, and 2"
    assert found["differences"] == expected["differences"]
    assert [target["tasks"] for target in found["targets"]] == [target["tasks"] for target in expected["targets"]]
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    assert not (tmp_path / "out/answers.jsonl").exists()


def test_prompts_beyond_the_context_are_skipped_and_listed(llama: TinySource, run_cli: Callable):
    found = result(run_cli("eval", llama.base, *QUICK, "--tasks", "ARC-Easy,winogrande"))
    tokenizer = AutoTokenizer.from_pretrained(llama.base)
    for task in found["targets"][0]["tasks"]:
        samples = json.loads((DATA / task["task"] / "test.json").read_text())
        expected = []
        for index, sample in enumerate(samples):
            question, options, _ = parse(task["task"], sample)
            longest = max(len(tokenizer(option)["input_ids"]) for option in options)
            if len(tokenizer(f"Question: {question}\nAnswer:")["input_ids"]) + longest > 128:
                expected.append(index)
        assert [sample["sample"] for sample in task["skipped"]] == expected
        assert task["questions"] == len(samples) - len(expected)
    limited = result(run_cli("eval", llama.base, *QUICK, "--tasks", "ARC-Easy", "--limit", 2))
    (task,) = limited["targets"][0]["tasks"]
    assert task["questions"] + len(task["skipped"]) == 2
    ran = run_cli("eval", llama.base, "--datasets", DATA, "--protocol", "generate", "--tasks", "boolq")
    assert ran.code == 1
    assert "no prompt fits the context" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["MODEL"], 1, "given twice"),
        (["--tasks", "openbokqa"], 1, "openbokqa: no such task; did you mean openbookqa?"),
        (["--tasks", "arc_easy"], 1, "task arc_easy: its data is not available"),
        (["--tasks", "boolq", "--datasets", "nowhere"], 1, "nowhere/boolq/test.json: missing"),
        (["--device", "cuda", "--tasks", "boolq"], 1, "PyTorch finds no CUDA device"),
        (["--device", "XPU"], 1, "--device XPU: not on this machine"),
        (["--subnet", "minimal"], 1, "--subnet has no effect: no TARGET has a search space"),
        (["--protocol", "option-text", "--template", "alpaca"], 2, "--template has no effect: option-text has its own"),
        (["--overwrite"], 2, "--overwrite needs --output"),
    ],
)
def test_bad_input(arguments: list[str], code: int, message: str, roomy: TinySource, run_cli: Callable):
    arguments = [str(roomy.base) if argument == "MODEL" else argument for argument in arguments]
    ran = run_cli("eval", roomy.base, "--datasets", DATA, *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in " ".join(ran.err.split())


def test_model_and_adapter_alone(roomy: TinySource, run_cli: Callable):
    options = [*QUICK, "--tasks", "boolq"]
    ran = run_cli("eval", roomy.base, "--tasks", "boolq,piqa")
    assert ran.code == 1 and "--datasets DIR is needed for boolq, piqa" in ran.err
    assert result(run_cli("eval", "--model", roomy.base, *options))["targets"][0]["name"] == "base"
    found = result(run_cli("eval", roomy.adapter, "--model", roomy.base, *options))
    assert found["targets"][0]["name"] == "adapter"
