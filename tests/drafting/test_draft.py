"""`draft`: its output runs in openvino_genai, answers are the model's own, inputs that do not fit are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from draft_runs import Made, write_prompts
from openvino_models import F32
from tiny_bert import TinyBert
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.prepare import prepare_variants
from lonas_edge.cli import chat
from lonas_edge.drafting import answers, training
from lonas_edge.drafting.answers import generate_answers
from lonas_edge.drafting.options import DraftOptions
from lonas_edge.drafting.run import make_draft
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate import backends
from lonas_edge.exporting.answering import Prompts, read_prompts
from lonas_edge.exporting.drafts import PRECISION, DraftRecord, check_takes_draft, open_draft
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import DRAFT
from lonas_edge.network.source import open_source
from lonas_edge.progress import silent

EXACT = {**F32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
PROMPTS = [f"<user>say {number}\n<assistant>" for number in range(12)]


def texts(model: Path, draft: Path | None = None, proposed: int = 3, **options: Any) -> list[str]:
    """Answers of 24 tokens at most by a plain pipeline, with arithmetic in fp32."""
    drafted = {"draft_model": openvino_genai.draft_model(draft, "CPU", **EXACT)} if draft else {}
    pipeline = openvino_genai.LLMPipeline(model, "CPU", **EXACT, **drafted)
    options |= {"num_assistant_tokens": proposed} if draft else {}
    return [str(pipeline.generate(prompt, max_new_tokens=24, apply_chat_template=False, **options)) for prompt in PROMPTS]


@pytest.mark.parametrize("proposed", [1, 3, 7])
def test_answers_are_the_models_own(made: Made, proposed: int) -> None:
    """Greedy, in fp32 with an f32 cache and without quantized activations: token by token. Each letter is one token."""
    assert texts(made.model, made.draft, proposed) == texts(made.model)


def test_prompts_that_share_a_step(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt is divided: with a draft, openvino_genai 2026.4.1 then loses its first tokens."""
    monkeypatch.setattr(backends, "_PROMPT_TOKENS", 40)
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.apply_chat_template = 24, False, False
    inputs = [openvino.Tensor(np.array([tokenizer(text)["input_ids"]], np.int64)) for text in PROMPTS]
    answered = []
    for draft in (None, open_draft(made.draft, open_exported(made.model))):
        if draft:
            config.num_assistant_tokens = 3
        pipeline = backends.batching_pipeline(made.model, "CPU", EXACT, draft)
        answered.append([each.m_generation_ids for each in pipeline.generate(inputs, [config] * len(inputs))])
    assert answered[0] == answered[1]


def test_the_output(made: Made) -> None:
    record, names = made.record, {path.name for path in made.draft.iterdir()}
    assert DraftRecord.read(made.draft / DRAFT) == record
    assert [(speed.num_assistant_tokens, speed.precision) for speed in record.speeds] == [
        (0, None), (2, None), (3, None), (0, "f32"), (2, "f32"), (3, "f32"),
    ]  # fmt: skip
    best = min((speed for speed in record.speeds if speed.num_assistant_tokens), key=lambda each: each.answer_ratio[0])
    assert (record.num_assistant_tokens, record.precision) == (best.num_assistant_tokens, best.precision)
    assert record.best is best
    assert record.prompts == {"train": 32, "held_out": 8, "timed": 3, "cut": 40}  # no letter ends a text
    assert all(1 <= speed.tokens_per_pass <= speed.num_assistant_tokens + 1 for speed in record.speeds)
    assert record.model.keys() == {"openvino_model.xml", "openvino_model.bin"}
    for name in ("openvino_tokenizer.bin", "openvino_detokenizer.bin"):
        assert (made.draft / name).read_bytes() == (made.model / name).read_bytes()
    assert not names & {"lonas_edge.json", "subnetwork.json", "training.pt"}
    config = json.loads((made.draft / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["vocab_size"]) == ("llama", 2, 288)
    card = (made.draft / "README.md").read_text()
    assert f"num_assistant_tokens={record.num_assistant_tokens}" in card and "| no draft |" in card and "| 3, f32 |" in card


def test_prompts_are_those_of_the_chat_template(made: Made) -> None:
    """Of a conversation with several turns, the last answer is generated."""
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    prompts = read_prompts(open_exported(made.model), made.data, 0, least=1)
    expected = {f"<user>say {number}\n<assistant>" for number in range(39)}
    expected.add("<user>hello\n<assistant>yes\n<user>say 39\n<assistant>")
    assert {tokenizer.decode(tokens) for tokens in prompts.tokens} == expected
    assert prompts.limit == 32
    few = read_prompts(open_exported(made.model), made.data, 0, least=1, most=5)
    assert few.tokens == prompts.tokens[:5]
    made.data.with_name("plain.jsonl").write_text('{"instruction": "say 3", "output": "3"}\n')
    [plain] = read_prompts(open_exported(made.model), made.data.with_name("plain.jsonl"), 0, least=1).tokens
    assert tokenizer.decode(plain) == "<user>say 3\n<assistant>"  # not Alpaca's, which no client has


def test_answers_are_generated_greedily_and_once(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As plain transformers does; an answer without an end is marked as cut."""
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    prompts = Prompts([tuple(tokenizer(text)["input_ids"]) for text in PROMPTS[:4]], 6)
    monkeypatch.setattr(answers, "batching_pipeline", lambda folder, device, _: pipeline_in_f32(folder, device))
    source, folder = open_source(str(made.base)), tmp_path / "fp32"
    export(source, source.select("maximal"), folder, ExportOptions(weight_format="fp32", verify=False))
    generated = generate_answers(folder, prompts, tmp_path / "log", silent)
    model = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    for each in generated:
        ids = model.generate(torch.tensor([each.prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        assert each.answer == tuple(ids[len(each.prompt) :].tolist())
        assert each.cut
    monkeypatch.setattr(answers, "batching_pipeline", None)
    assert generate_answers(folder, prompts, tmp_path / "log", silent) == generated


def pipeline_in_f32(folder: Path, device: str) -> Any:
    return openvino_genai.ContinuousBatchingPipeline(folder, openvino_genai.SchedulerConfig(), device, EXACT)


def test_a_killed_run_continues(made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and training are kept; the weights are those of a run without a kill."""
    options = DraftOptions(exported=made.model, data=made.data, output=tmp_path / "out")

    def interrupt(what: str, done: float | None) -> None:
        if what.startswith("Training") and done and done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(LonasEdgeError, match=r"The same command continues"):
        make_draft(options, interrupt)
    assert not options.output.exists()
    monkeypatch.setattr(answers, "batching_pipeline", None)
    steps: list[float] = []
    make_draft(options, lambda what, done: steps.append(done or 0) if what.startswith("Training") else None)
    assert steps[0] == 0.5
    name = "openvino_model.bin"
    assert (options.output / name).read_bytes() == (made.draft / name).read_bytes()
    assert not options.output.with_name("out.partial").exists()


# what is refused


def test_an_existing_output(made: Made, run_cli: Callable) -> None:
    ran = run_cli("draft", made.model, "--data", made.data, "--output", made.draft)
    assert (ran.code, ran.err) == (1, f"error: {made.draft}: already exists. Choose another --output, or pass --overwrite.\n")


def test_few_prompts(made: Made, run_cli: Callable, tmp_path: Path) -> None:
    data = write_prompts(tmp_path / "few.jsonl", 31)
    data.write_text(data.read_text() + data.read_text())  # the same again
    ran = run_cli("draft", made.model, "--data", data, "--output", tmp_path / "out")
    assert ran.code == 1 and f"{data}: 31 distinct prompts of at most 992 tokens; expected 32 or more." in ran.err
    assert not list(tmp_path.glob("out*"))


def test_a_directory_without_a_tokenizer(made: Made, run_cli: Callable, tmp_path: Path) -> None:
    model = shutil.copytree(made.model, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "lonas_edge.json"):
        (model / name).unlink()
    ran = run_cli("draft", model, "--data", made.data, "--output", tmp_path / "out")
    assert ran.code == 1 and f"{model}: no tokenizer files; a draft needs the model's tokenizer" in ran.err


def test_an_encoder(made: Made, run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    source = tiny_bert.source(2).opened()
    export(source, source.select("maximal"), tmp_path / "bert", ExportOptions(weight_format="fp32", verify=False))
    ran = run_cli("draft", tmp_path / "bert", "--data", made.data, "--output", tmp_path / "out")
    assert ran.code == 1 and "generates nothing; only language models take a draft" in ran.err


def test_a_hybrid(exports: Callable[..., Path]) -> None:
    folder = exports("granite4-mamba", "maximal", weight_format="fp32", verify=False)
    with pytest.raises(LonasEdgeError, match=r"granitemoehybrid has states besides keys and values, such as .*takes no draft"):
        check_takes_draft(open_exported(folder))


def test_a_draft_of_another_tokenizer(made: Made, tmp_path: Path) -> None:
    draft = shutil.copytree(made.model, tmp_path / "draft")
    (draft / "lonas_edge.json").unlink()  # has the hashes of its files
    (draft / "openvino_detokenizer.bin").write_bytes(b"other")
    content = json.loads((draft / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (draft / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as caught:
        open_draft(draft, open_exported(made.model))
    assert f"{draft}: its tokenizer is not that of {made.model}:" in str(caught.value)
    assert "'a' and 'b'" in str(caught.value)


def test_a_trained_draft_of_another_tokenizer(made: Made, tmp_path: Path) -> None:
    """It has the tokenizer for openvino_genai alone. Another padding side, which exporters choose, does not matter."""
    draft = shutil.copytree(made.draft, tmp_path / "draft")
    assert not (draft / "tokenizer.json").exists()
    (draft / "openvino_tokenizer.bin").write_bytes(b"other")
    assert open_draft(draft, open_exported(made.model)).folder == draft
    (draft / "openvino_detokenizer.bin").write_bytes(b"other")
    with pytest.raises(
        LonasEdgeError, match=r"its tokenizer is not that of[^$]*openvino_detokenizer\.bin: not the same tokens"
    ):
        open_draft(draft, open_exported(made.model))


def test_any_language_model_can_be_a_draft(made: Made) -> None:
    """Without a record it proposes five tokens."""
    assert open_draft(made.model, open_exported(made.model)).num_assistant_tokens == 5
    assert open_draft(made.draft, open_exported(made.model)).num_assistant_tokens == made.record.num_assistant_tokens


def test_a_stock_directory(made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As optimum-intel writes it: without our record."""
    monkeypatch.setattr(training, "STEPS", 2)
    model = shutil.copytree(made.model, tmp_path / "model")
    for name in ("lonas_edge.json", "subnetwork.json", "README.md"):
        (model / name).unlink()
    make_draft(DraftOptions(exported=model, data=made.data, output=tmp_path / "out"))
    assert len(texts(model, tmp_path / "out")) == len(PROMPTS)


# the commands that take a draft


def test_chat(made: Made, run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As openvino_genai answers with the draft. One next to the model, as `compress` writes it, is used without asking."""
    draft = openvino_genai.draft_model(made.draft, "CPU")
    pipeline = openvino_genai.LLMPipeline(made.model, "CPU", draft_model=draft, **made.record.properties)
    config = pipeline.get_generation_config()
    config.max_new_tokens, config.do_sample, config.num_assistant_tokens = 8, False, made.record.num_assistant_tokens
    [expected] = pipeline.generate(openvino_genai.ChatHistory([{"role": "user", "content": "say 3"}]), config).texts
    monkeypatch.setattr(chat, "_LONGEST", 8)
    drafted = run_cli("chat", made.model, "--draft", made.draft, "--prompt", "say 3")
    assert (drafted.code, drafted.out) == (0, f"{expected}\n")
    shutil.copytree(made.model, tmp_path / "model")
    shutil.copytree(made.draft, tmp_path / "draft")
    beside = run_cli("chat", tmp_path / "model", "--prompt", "say 3")
    assert (beside.code, beside.out) == (0, f"{expected}\n")
    (tmp_path / "draft/openvino_model.bin").unlink()  # or that of another model
    without = run_cli("chat", tmp_path / "model", "--prompt", "say 3").ok()
    assert f"not used: {tmp_path / 'draft'}: the exported directory is damaged" in without.err
    assert run_cli("chat", made.model, "--draft", tmp_path / "draft", "--prompt", "say 3").code == 1


def test_the_measured_precision_is_used_on_a_cpu(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `bench`, `eval` and `chat`; a property that a user names wins."""
    draft = shutil.copytree(made.draft, tmp_path / "draft")
    replace(made.record, precision="f32").write(draft / DRAFT)
    given: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(openvino_genai, "draft_model", lambda _folder, device, **options: given.append((device, options)))
    opened = open_draft(draft, open_exported(made.model))
    assert opened.options("CPU") == {"draft_model": None, PRECISION: "f32"}
    assert opened.options("GPU") == {"draft_model": None}
    assert given == [("CPU", {}), ("GPU", {})]  # openvino_genai compiles it with the properties of the model
    monkeypatch.setattr(openvino_genai, "ContinuousBatchingPipeline", lambda _folder, _scheduler, _device, options: options)
    assert backends.batching_pipeline(made.model, "CPU", {PRECISION: "bf16"}, opened)[PRECISION] == "bf16"
    assert backends.batching_pipeline(made.model, "CPU", {}, opened)[PRECISION] == "f32"
    options = BenchOptions(exported=made.model, draft=draft, variants=("subnet",))
    alone, drafted = prepare_variants(open_exported(made.model), options, silent)[0]
    assert drafted.draft == draft and drafted.properties == {**alone.properties, PRECISION: "f32"}
    options = replace(options, properties=((PRECISION, "bf16"),))
    assert prepare_variants(open_exported(made.model), options, silent)[0][1].properties[PRECISION] == "bf16"


def test_eval_answers_with_and_without(made: Made, run_cli: Callable, tmp_path: Path) -> None:
    properties = [word for name, value in EXACT.items() for word in ("--property", f"{name}={value}")]
    ran = run_cli(
        "eval", made.model, "--draft", made.draft, "--data", made.data, "--metric", "chrf", "--json", *properties
    ).ok()
    found = json.loads(ran.out)
    assert [target["name"] for target in found["targets"]] == ["model", "model + draft"]
    assert found["differences"][0]["identical"] == 1.0
    ran = run_cli("eval", made.base, "--draft", made.draft, "--data", made.data)
    assert ran.code == 1 and "--draft has no effect: no TARGET is an exported directory" in ran.err


def test_bench_answers_the_prompts_of_a_file(made: Made, run_cli: Callable, tmp_path: Path) -> None:
    line = ["bench", made.model, "--draft", made.draft, "--data", made.data, "--variants", "subnet", "--rounds", 2, "--json"]
    ran = run_cli(*line).ok()
    found = json.loads(ran.out)
    assert [variant["name"] for variant in found["variants"]] == ["subnet", "draft"]
    [case] = {json.dumps(row["case"]) for row in found["rows"]}
    assert json.loads(case)["data"] == "chat.jsonl" and json.loads(case)["new_tokens"] == 32
    times = {sample["variant"]: sample["timing"]["token_times"] for sample in found["samples"]}
    assert {name: len(each) for name, each in times.items()} == {"subnet": 32, "draft": 32}
    assert all(list(each) == sorted(each) for each in times.values())
    ran = run_cli(*line, "--prompt-len", 8)
    assert ran.code == 2 and "--prompt-len has no effect: --data has its own prompts" in ran.err
    assert run_cli("bench", made.model, "--variants", "draft").err.endswith("draft: pass --draft DIR\nCorrect --variants.\n")
