"""What ends a training early, injected wherever it may come: one line, what is kept is named, resuming is as if it had not."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TinySource
from training_runs import ADAPTER, EXAMPLES, VARIANTS, names_in, run, run_killed, same, working, write_data

import lonas_edge.training.elastic_trainer
import lonas_edge.training.train
from lonas_edge.errors import LonasEdgeError

VARIANT = "middle-of-epoch"
CHANGES = VARIANTS[VARIANT][1]


@pytest.fixture
def killed(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> tuple[Path, Path]:
    """Data and output of a training that was killed after its checkpoints of steps 3 and 6."""
    data = uninterrupted(VARIANT)[0]
    run_killed(llama, data, tmp_path / "out", at=7, **CHANGES)
    assert names_in(working(tmp_path / "out")) == ["channel_order.safetensors", "checkpoint-3", "checkpoint-6", "settings.json"]
    return data, tmp_path / "out"


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"), [("optimizer.pt", cut), ("rng_state.pth", Path.unlink), (ADAPTER, cut), ("complete", cut)]
)
def test_the_older_good_checkpoint_is_taken(
    llama: TinySource, uninterrupted: Callable, killed: tuple[Path, Path], name: str, damage: Callable[[Path], None]
) -> None:
    data, output = killed
    damage(working(output) / "checkpoint-6" / name)
    record = run(llama, data, output, resume=True, **CHANGES)
    assert record["resumed_from_step"] == 3
    assert len(record["damaged_checkpoints"]) == 1
    assert record["damaged_checkpoints"][0].startswith(f"checkpoint-6/{name}: ")
    same(output, record, *uninterrupted(VARIANT)[1:])
    assert names_in(output.parent) == ["out"]


def test_checkpoints_of_the_version_before(llama: TinySource, uninterrupted: Callable, killed: tuple[Path, Path]) -> None:
    """Their mark is an empty file."""
    data, output = killed
    for step in (3, 6):
        (working(output) / f"checkpoint-{step}/complete").write_bytes(b"")
    record = run(llama, data, output, resume=True, **CHANGES)
    assert (record["resumed_from_step"], record["damaged_checkpoints"]) == (6, [])
    same(output, record, *uninterrupted(VARIANT)[1:])


def test_another_adapter_in_a_checkpoint_without_hashes(llama: TinySource, killed: tuple[Path, Path]) -> None:
    data, output = killed
    newest = working(output) / "checkpoint-6"
    (newest / "complete").write_bytes(b"")
    tensors = load_file(newest / ADAPTER)
    del tensors[next(iter(tensors))]
    save_file(tensors, newest / ADAPTER)
    with pytest.raises(LonasEdgeError, match=rf"{newest / ADAPTER}: holds other tensors"):
        run(llama, data, output, resume=True, **CHANGES)


def test_what_else_lies_in_a_checkpoint_is_not_loaded(
    llama: TinySource, uninterrupted: Callable, killed: tuple[Path, Path]
) -> None:
    """transformers would take these before the adapter."""
    data, output = killed
    newest = working(output) / "checkpoint-6"
    save_file({"base_model.model.lm_head.weight": torch.ones(2, 2)}, newest / "model.safetensors")
    (newest / "pytorch_model.bin").write_bytes(b"garbage")
    (newest / "config.json").write_text("[")
    record = run(llama, data, output, resume=True, **CHANGES)
    assert record["resumed_from_step"] == 6
    same(output, record, *uninterrupted(VARIANT)[1:])


def test_a_new_checkpoint_is_whole_before_an_old_one_goes(
    llama: TinySource, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[list[str]] = []
    discard = lonas_edge.training.elastic_trainer.discard

    def look(path: Path) -> None:
        there.append(sorted(mark.parent.name for mark in path.parent.glob("*/complete")))
        discard(path)

    monkeypatch.setattr(lonas_edge.training.elastic_trainer, "discard", look)
    run(llama, data, tmp_path / "out", save_steps=2)
    assert there == [[f"checkpoint-{step - back}" for back in (4, 2, 0)] for step in (6, 8)]


# a disk that is full


def fails(error: BaseException, at: str) -> Callable[..., Any]:
    """A `torch.save` that writes a little and fails at one file of the second checkpoint."""
    save = torch.save

    def failing(content: object, path: Any, *arguments: Any, **options: Any) -> None:
        if str(path).endswith(f"checkpoint-6/{at}"):
            Path(path).write_bytes(b"PK")
            raise error
        save(content, path, *arguments, **options)

    return failing


@pytest.mark.parametrize("at", ["optimizer.pt", "rng_state.pth"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: …"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
    ],
)
def test_a_checkpoint_that_cannot_be_saved(
    llama: TinySource,
    uninterrupted: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    at: str,
) -> None:
    data, output = uninterrupted(VARIANT)[0], tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError) as raised:
        patch.setattr(torch, "save", fails(error, at))
        run(llama, data, output, **CHANGES)
    kept = working(output)
    assert str(raised.value).startswith(f"Training stopped: {kept / 'checkpoint-6'} could not be saved (is the disk full?): ")
    assert f"The last good checkpoint is kept: {kept / 'checkpoint-3'}. The same command with --resume" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert names_in(tmp_path) == ["out.training"]
    assert names_in(kept) == ["channel_order.safetensors", "checkpoint-3", "settings.json"]
    record = run(llama, data, output, resume=True, **CHANGES)
    assert record["resumed_from_step"] == 3
    same(output, record, *uninterrupted(VARIANT)[1:])


def test_files_that_may_not_grow(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    """As `ulimit -f`, met by torch's own writer."""
    resource = pytest.importorskip("resource")
    data, output, limits = uninterrupted(VARIANT)[0], tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: int, *_: object) -> None:
        if step == 5:
            size = (working(output) / "checkpoint-3/optimizer.pt").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, limits[1]))

    try:
        with pytest.raises(LonasEdgeError) as raised:
            run(llama, data, output, report=limit, **CHANGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "checkpoint-6 could not be saved" in str(raised.value)
    assert f"The last good checkpoint is kept: {working(output) / 'checkpoint-3'}." in str(raised.value)
    assert names_in(working(output)) == ["channel_order.safetensors", "checkpoint-3", "settings.json"]
    same(output, run(llama, data, output, resume=True, **CHANGES), *uninterrupted(VARIANT)[1:])


def test_no_memory(llama: TinySource, killed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, output = killed
    for place in ("tokenized", "load_base", "write_super_adapter"):
        with monkeypatch.context() as patch, pytest.raises(LonasEdgeError) as raised:
            patch.setattr(lonas_edge.training.train, place, raising(MemoryError()))
            run(llama, data, output, resume=True, **CHANGES)
        assert str(raised.value).startswith("Training stopped: out of memory. A smaller --micro-batch-size")
        assert "The last good checkpoint is kept: " in str(raised.value)


def raising(error: BaseException) -> Callable[..., None]:
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


# Ctrl-C

PLACES = ["tokenized", "make_plan", "load_base", "by_importance", "make_record", "write_super_adapter"]


@pytest.mark.parametrize("place", PLACES)
def test_interrupted_anywhere(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    data, output = uninterrupted(VARIANT)[0], tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match=r"^Training interrupted\. [^\n]*$") as raised:
        patch.setattr(lonas_edge.training.train, place, raising(KeyboardInterrupt()))
        run(llama, data, output, **CHANGES)
    late = place in ("make_record", "write_super_adapter")
    assert names_in(tmp_path) == (["out.training"] if late else [])
    assert ("checkpoint-8. The same command with --resume" if late else "nothing is kept") in str(raised.value)


@pytest.mark.parametrize("place", ["tokenized", "load_base", "write_super_adapter"])
def test_a_resumed_training_interrupted_anywhere(
    llama: TinySource,
    uninterrupted: Callable,
    killed: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    data, output = killed
    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match=r"Training interrupted\. .*checkpoint-[68]"):
        patch.setattr(lonas_edge.training.train, place, raising(KeyboardInterrupt()))
        run(llama, data, output, resume=True, **CHANGES)
    same(output, run(llama, data, output, resume=True, **CHANGES), *uninterrupted(VARIANT)[1:])


@pytest.mark.parametrize("at", ["optimizer.pt", "rng_state.pth"])
def test_interrupted_while_saving(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    data, output = uninterrupted(VARIANT)[0], tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(LonasEdgeError, match=r"Training interrupted\. .*checkpoint-3\. "):
        patch.setattr(torch, "save", fails(KeyboardInterrupt(), at))
        run(llama, data, output, **CHANGES)
    assert names_in(working(output)) == ["channel_order.safetensors", "checkpoint-3", "settings.json"]
    same(output, run(llama, data, output, resume=True, **CHANGES), *uninterrupted(VARIANT)[1:])


# tokens that the model does not have


def with_tokens(source: TinySource, **special: str) -> None:
    """Give the base a tokenizer with 40 more tokens than its vocabulary of 288 has, some of them special."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.base)
    tokenizer.add_tokens([f"zz{index}" for index in range(40)])
    tokenizer.save_pretrained(source.base)
    path = source.base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | special))


@pytest.mark.parametrize("special", ["eos_token", "pad_token"])
@pytest.mark.parametrize("prompt", ["question", "lonas"])
def test_special_tokens_beyond_the_vocabulary(
    llama_copy: TinySource, data: Path, tmp_path: Path, special: str, prompt: str
) -> None:
    with_tokens(llama_copy, **{special: "zz39"})
    with pytest.raises(LonasEdgeError, match=r"the tokenizer gives token 3\d\d, and the model's vocabulary has 288 entries"):
        run(llama_copy, data, tmp_path / "out", prompt=prompt, max_length=20 if prompt == "lonas" else 256)
    assert not working(tmp_path / "out").exists()


def test_tokens_of_an_example_that_is_left_out(llama_copy: TinySource, tmp_path: Path) -> None:
    """The order of importance is taken from all prompts."""
    with_tokens(llama_copy)
    long = {"instruction": "zz39" + " and more" * 40, "output": "b"}
    data = write_data(tmp_path / "data.json", [long, *EXAMPLES[:7]])
    with pytest.raises(LonasEdgeError, match="the tokenizer gives token 3"):
        run(llama_copy, data, tmp_path / "out", max_length=64)
    assert not working(tmp_path / "out").exists()
