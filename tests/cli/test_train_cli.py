"""`lonas-edge train` through the real command line: bad input, --json, killed runs, and what follows a training."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinySource

import lonas_edge.training.train
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.training.train import ElasticTrainer

ADAPTER, RECORD, TOKENIZER = "adapter_model.safetensors", "training.json", ("tokenizer.json", "tokenizer_config.json")
OPTIONS = {
    "--rank": 8,
    "--alpha": 16,
    "--steps": 8,
    "--save-steps": 3,
    "--log-steps": 1,
    "--batch-size": 4,
    "--lr": 0.01,
    "--prompt": "question",
    "--device": "cpu",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 short examples."""
    examples = [{"instruction": f"What is {a} plus {b}?", "output": str(a + b)} for a in range(8) for b in range(5)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(examples))
    return path


def arguments(source: TinySource, file: Path, output: Path, *flags: str, **changes: Any) -> list[str]:
    """The command; `changes` replace options (`batch_size=6`), None leaves one out."""
    options = {"--model": source.base, "--nncf-config": source.space, "--data": file, "--output": output, **OPTIONS}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    return ["train", *given, *flags]


@pytest.fixture
def refused(run_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command that must fail before the model is loaded, leaving everything as it was; returns the error."""

    def run(command: list[str], code: int = 1) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        with monkeypatch.context() as patch:
            patch.setattr(lonas_edge.training.train, "load_base", forbidden)
            ran = run_cli(*command)
        assert ran.code == code, ran
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert "Traceback" not in ran.err
        assert not ran.out
        return ran.err

    return run


def forbidden(*_arguments: object) -> None:
    """In place of what takes long."""
    raise AssertionError("the model was loaded")


@pytest.fixture
def unfinished(run_cli: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Runs a command that is interrupted in its 6th step."""

    def run(command: list[str]) -> None:
        training_step = ElasticTrainer.training_step

        def interrupted(self: ElasticTrainer, *given: Any, **options: Any) -> Any:
            if self.state.global_step == 5:
                raise KeyboardInterrupt
            return training_step(self, *given, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ElasticTrainer, "training_step", interrupted)
            ran = run_cli(*command)
        assert ran.code == 1
        assert "interrupted" in ran.err

    return run


def has(error: str, *texts: object) -> None:
    """Every text occurs in the error."""
    for text in texts:
        assert str(text) in error, f"{text!r} is not in:\n{error}"


# the data


def test_no_such_data(llama: TinySource, tmp_path: Path, refused: Callable) -> None:
    missing = tmp_path / "missing.json"
    has(refused(arguments(llama, missing, tmp_path / "out")), f"{missing}: the data cannot be read", "No such file")


@pytest.mark.parametrize("content", ["", "[]", " \n"])
def test_empty_data(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, content: str) -> None:
    data.write_text(content)
    has(refused(arguments(llama, data, tmp_path / "out")), f"{data}: holds no examples")


GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (f'[{GOOD},\n {{"question": "a", "answer": "b"}},\n\n 7]', ["line 2: no text in 'instruction' and 'output'", "line 4"]),
        (f'{GOOD}\n{GOOD}\n{{"instruction": "a", "output": ""}}\n', ["line 3: no text in 'output'"]),
        (f"{GOOD}\n{GOOD[:-2]}\n", ["line 2: not JSON"]),
        (f'[{GOOD},\n{{"instruction": "a", "input": ["b"], "output": "c"}}]', ["line 2: 'input' is not text"]),
        (f"[{GOOD},\n{GOOD}", ["the list is not closed"]),
        ("instruction,output\na,b\n", ["line 1: not JSON"]),
    ],
)
def test_data_of_another_format(llama: TinySource, data: Path, tmp_path: Path, refused, content: str, texts) -> None:
    data.write_text(content)
    error = refused(arguments(llama, data, tmp_path / "out"))
    has(error, f"{data}: not instruction data", *texts, 'Expected a JSON list of {"instruction": "…"', "one such object a line")


def test_all_examples_too_long(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", max_length=12))
    has(error, data, "each of its 40 examples is longer than --max-length 12 tokens", "Raise it")


# what does not fit the model


def test_search_space_of_another_model(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    """A deeper and wider one: every misfit is listed."""
    content = json.loads(llama_copy.space.read_text())
    width = content["bootstrapNAS"]["training"]["elasticity"]["width"]
    width["overwrite_groups"][8] = [
        node.replace("DecoderLayer[2]", "DecoderLayer[31]") for node in width["overwrite_groups"][8]
    ]
    width["overwrite_groups_widths"][4] = [11008, 8256]
    llama_copy.space.write_text(json.dumps(content))
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.space, "group 4: width 11008 of model.layers.1.mlp.gate_proj", "group 8", "DecoderLayer[31]")


def test_ranks_larger_than_rank(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", rank=4))
    has(error, llama.space, "does not fit --rank and --target-modules", "Raise --rank")
    for group, layer in enumerate(("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")):
        has(error, f"group {group}: rank 8 of {layer}, but the adapter's rank there is 4")
    has(error, "group 8: rank 8 of model.layers.2.mlp.gate_proj")


def test_elastic_ranks_without_an_adapter(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", target_modules="q_proj,v_proj"))
    has(error, "group 0: elastic rank of model.layers.0.self_attn.k_proj, on which the adapter has nothing", "add the module")
    has(error, "group 6: elastic rank of model.layers.0.mlp.up_proj")


def test_target_modules_of_another_model(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", target_modules="q_proj,c_attn,proj"))
    has(error, "--target-modules", "target module 'c_attn': the model has no such linear layer", "target module 'proj'")
    has(error, "It has down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj.")
    assert "'q_proj'" not in error


def test_no_target_modules(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", target_modules=" ,")), "--target-modules")


def test_base_without_tokenizer(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    for name in TOKENIZER:
        (llama_copy.base / name).unlink()
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.base, "training needs the model's tokenizer")


def test_tokens_beyond_the_vocabulary(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    """A tokenizer of another model, seen in the sixth example only; the tiny vocabulary has 288 entries."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_copy.base)
    tokenizer.add_tokens([f"zz{index}" for index in range(40)])
    tokenizer.save_pretrained(llama_copy.base)
    examples = json.loads(data.read_text())
    examples[5]["output"] = "zz39"
    data.write_text(json.dumps(examples))
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.base, "gives token 3", "288 entries")


def test_tokenizer_without_eos(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    path = llama_copy.base / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.base, "no EOS token", "tokenizer_config.json")


def test_truncated_base(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    weights = llama_copy.base / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    has(refused(arguments(llama_copy, data, tmp_path / "out")), weights, "truncated")


def test_no_such_model(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", model=tmp_path / "nothing"))
    has(error, tmp_path / "nothing", "no such directory")


# the machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", device="cuda")), "--device cuda", "take --device cpu")


def test_fp16_on_a_cpu(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", precision="fp16")), "--precision fp16 needs CUDA", "bf16 or fp32")


@pytest.mark.parametrize("changes", [{"batch_size": 6, "micro_batch_size": 4}, {"batch_size": 2, "micro_batch_size": 4}])
def test_batch_that_cannot_be_divided(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, changes) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", **changes))
    has(error, f"--batch-size {changes['batch_size']} cannot be divided", "micro-batches of 4", "Choose a multiple")


def test_full_disk(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    has(refused(arguments(llama, data, tmp_path / "out")), tmp_path / "out", "not enough room")


def test_unknown_report_to(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", report_to="nonsense")), "nonsense is not supported")


@pytest.mark.parametrize("epochs", [0, -1, "inf"])
def test_no_epochs(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, epochs: float | str) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", steps=None, epochs=epochs)), "--epochs", "must be positive")


# wrong usage


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"nncf_config": None}, "--nncf-config"),
        ({"data": None}, "--data"),
        ({"steps": 0}, "--steps"),
        ({"rank": 0}, "--rank"),
        ({"distill": 1.5}, "--distill"),
        ({"dropout": 1}, "--dropout"),
        ({"sampling": "all"}, "--sampling"),
        ({"precision": "int8"}, "--precision"),
    ],
)
def test_wrong_usage(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, changes, text: str) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", **changes), code=2), text)


# outputs and unfinished trainings


def test_existing_output(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine").write_text("mine")
    has(refused(arguments(llama, data, output)), f"{output}: exists and is kept as it is", "--overwrite")
    has(refused(arguments(llama, data, output, "--resume")), f"{output}: exists and is kept as it is")
    assert (output / "mine").read_text() == "mine"


def test_unfinished_training_is_kept(llama: TinySource, data: Path, tmp_path: Path, refused, unfinished: Callable) -> None:
    output = tmp_path / "out"
    unfinished(arguments(llama, data, output))
    error = refused(arguments(llama, data, output))
    has(error, f"{output}.training: an unfinished training is kept there", "--resume goes on", "--overwrite starts again")


def test_nothing_to_resume(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", "--resume"))
    has(error, f"{tmp_path / 'out'}.training: there is no unfinished training to --resume")


def test_resume_with_other_settings(
    llama: TinySource, llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable, unfinished: Callable
) -> None:
    """All of them are listed: options, data, search space and base."""
    output = tmp_path / "out"
    unfinished(arguments(llama, data, output))
    data.write_text(data.read_text().replace("What is 7 plus 4?", "What is 4 plus 7?"))
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][3] = [128, 64]
    llama_copy.space.write_text(json.dumps(content))
    config = json.loads((llama_copy.base / "config.json").read_text())
    (llama_copy.base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    changes = {"rank": 16, "alpha": 32, "steps": 9, "seed": 1, "sampling": "sandwich", "distill": 0.5}
    changes |= {"batch_size": 8, "micro_batch_size": 2}
    free = {"lr": 0.001, "save_steps": 2, "log_steps": 2}
    error = refused(arguments(llama_copy, data, output, "--resume", "--no-reorder", **changes, **free))
    has(error, f"{output}.training: cannot be resumed with other settings", "Give the same; or start again, with --overwrite")
    has(error, *(f"{key}: not the same as before" for key in ("base", "data", "search_space", "stages")))
    has(error, "rank: was 8, is 16", "alpha: was 16.0, is 32.0", "steps: was 8, is 9", "seed: was 42, is 1")
    has(error, "sampling: was 'random', is 'sandwich'", "distill: was 0.0, is 0.5", "batch_size: was 4, is 8")
    has(error, "reorder: was True, is False", "micro_batch_size: was None, is 2")
    assert error.count("\n  - ") == 4 + 9


def test_resume_with_damaged_settings(llama: TinySource, data: Path, tmp_path: Path, refused, unfinished: Callable) -> None:
    output = tmp_path / "out"
    unfinished(arguments(llama, data, output))
    (tmp_path / "out.training/settings.json").write_text("{}")
    has(refused(arguments(llama, data, output, "--resume")), f"{output}.training")


def test_not_finite(llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    ran = run_cli(*arguments(llama, data, tmp_path / "out", lr=1e30, save_steps=1))
    assert ran.code == 1
    assert not ran.out
    assert "Traceback" not in ran.err
    has(ran.err, "Training stopped: the loss is", "The last good checkpoint is kept", "--resume", "--lr")
    assert not (tmp_path / "out").exists()


# what is printed


def test_json_is_one_document(llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable, unfinished: Callable) -> None:
    output = tmp_path / "out"
    unfinished(arguments(llama, data, output))
    ran = run_cli(*arguments(llama, data, output, "--json", "--resume", log_steps=2))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == json.loads((output / RECORD).read_text())
    assert "step 8/8" in ran.err


def test_what_a_person_reads(llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    ran = run_cli(*arguments(llama, data, tmp_path / "out"))
    assert ran.code == 0, ran.err
    losses = json.loads((tmp_path / "out" / RECORD).read_text())["losses"]
    has(ran.out, f"{tmp_path / 'out'}: super-adapter, rank 8, 8 steps of 4 examples on cpu (fp32)")
    has(ran.out, f"loss {losses[0]['loss']:.3f} at step 1, {losses[-1]['loss']:.3f} at the end")
    has(ran.out, f"next: lonas-edge export {tmp_path / 'out'} --subnet heuristic --output DIR")


# killed runs

STALLED = """
import time
from lonas_edge.training.train import ElasticTrainer
training_step = ElasticTrainer.training_step

def stall(self, *arguments, **options):  # the real command, stopped in the middle
    if self.state.global_step == STEP:
        print("in the middle", flush=True)
        time.sleep(600)
    return training_step(self, *arguments, **options)

ElasticTrainer.training_step = stall
from lonas_edge.cli import main
main()
"""


@pytest.mark.parametrize(
    ("number", "step", "checkpoint"), [(signal.SIGKILL, 5, 3), (signal.SIGINT, 5, 3), (signal.SIGKILL, 1, None)]
)
def test_killed_and_resumed(
    llama: TinySource, data: Path, tmp_path: Path, run_cli: Callable, refused: Callable, number, step: int, checkpoint
) -> None:
    """As if nothing had happened: the same losses, bitwise the same adapter."""
    output, changes = tmp_path / "out", {"dropout": 0.1, "weight_decay": 0.1}
    command = arguments(llama, data, output, **changes)
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED.replace("STEP", str(step)), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the middle\n"
    assert (tmp_path / "out.training/checkpoint-3/complete").exists() == (checkpoint == 3)
    for flag in ("--resume", "--overwrite"):  # its directory is not taken away from it
        has(refused([*command, flag]), f"{output}.training: another training is writing there")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (1 if number == signal.SIGINT else -number)
    assert "Traceback" not in error
    if number == signal.SIGINT:
        has(error, "Training interrupted", f"The last good checkpoint is kept: {output}.training/checkpoint-3", "--resume")
    lock = [".out.training.lock"] if number == signal.SIGKILL else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [*lock, "data.json", "out.training"]
    ran = run_cli(*command, "--resume")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "out"]
    assert run_cli(*arguments(llama, data, tmp_path / "whole", **changes)).code == 0
    resumed, whole = (json.loads((folder / RECORD).read_text()) for folder in (output, tmp_path / "whole"))
    assert (resumed["resumed_from_step"], whole["resumed_from_step"]) == (checkpoint, None)
    assert resumed["losses"] == whole["losses"]
    assert (output / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


# what follows


def test_a_super_adapter_needs_no_other_argument(
    llama_copy: TinySource, data: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch, choose, ids
) -> None:
    """Trained with relative paths; inspected and exported from elsewhere, also after all was moved together."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    command = arguments(llama_copy, Path(data.name), Path("made/out"), model="base", nncf_config="space.json")
    ran = run_cli(*command)
    assert ran.code == 0, ran.err
    elsewhere = tmp_path / "far/away"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    (tmp_path / "moved").mkdir()
    for name in ("base", "made"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    folder, base = Path("../../moved/made/out"), tmp_path / "moved/base"
    ran = run_cli("inspect", folder, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)
    ran = run_cli("export", folder, "--stage", "checkpoint", "--dtype", "fp32", "--output", "exported")
    assert ran.code == 0, ran.err
    widths = choose(llama_copy, "heuristic")
    assert json.loads(Path("exported/subnetwork.json").read_text())["widths"] == widths
    with torch.no_grad():
        found = load_checkpoint("exported")(input_ids=ids, use_cache=False).logits
    expected = oracle_logits(base, tmp_path / "moved/made/out", llama_copy.space, widths, ids)
    assert (found - expected).abs().max() < 1e-4


def test_the_base_is_found_from_the_super_adapter(
    llama_copy: TinySource, data: Path, tmp_path: Path, run_cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not from the working directory, where another model may lie at the same relative path."""
    ran = run_cli(*arguments(llama_copy, data, tmp_path / "out", steps=1))
    assert ran.code == 0, ran.err
    other = tmp_path / "other"
    shutil.copytree(llama_copy.base, other / "base")
    (other / "here").mkdir()
    monkeypatch.chdir(other / "here")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "../base"
    assert open_source(str(tmp_path / "out")).base.folder.resolve() == (tmp_path / "base").resolve()
    weights = tmp_path / "base/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)  # and it is no longer the one that was trained on
    ran = run_cli("export", tmp_path / "out", "--stage", "checkpoint", "--output", tmp_path / "exported")
    assert ran.code == 1
    has(ran.err, "not the base that the super-adapter was trained on", "model.safetensors: SHA-256")
    assert not (tmp_path / "exported").exists()


def test_plain_lora_is_trained_as_long(llama_copy: TinySource, data: Path, tmp_path: Path, run_cli: Callable) -> None:
    """--no-elastic keeps the search space's stages: epochs and learning rate of the baseline are the same."""
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"] = [{"epochs": 2, "init_lr": 0.004}]
    llama_copy.space.write_text(json.dumps(content))
    records = []
    for flag in ("--elastic", "--no-elastic"):
        command = arguments(llama_copy, data, tmp_path / f"out{flag}", flag, "--json", steps=None, lr=None, batch_size=16)
        ran = run_cli(*command)
        assert ran.code == 0, ran.err
        records.append(json.loads(ran.out))
    elastic, plain = records
    assert (elastic["steps"], plain["steps"]) == (6, 6)
    assert [e["learning_rate"] for e in plain["losses"]] == [e["learning_rate"] for e in elastic["losses"]]
    assert plain["losses"][0]["learning_rate"] == pytest.approx(0.004)
    assert plain["search_space"] is None
    assert elastic["search_space"] is not None
    assert not (tmp_path / "out--no-elastic/nncf_config.json").exists()
