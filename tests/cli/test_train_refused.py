"""`lonas-edge train` refuses what it cannot do, before the model is loaded: data, model, machine, wrong usage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import TinySource
from train_commands import arguments, has

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

# the data


def test_all_examples_too_long(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", max_length=12))
    has(error, data, "each of its 40 examples is longer than --max-length 12", "Increase --max-length")


# what does not fit the model


def test_ranks_larger_than_rank(llama: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama, data, tmp_path / "out", rank=4))
    has(error, llama.space, "does not fit the adapter", "Raise --rank")
    has(error, "adapter rank 4, search space rank 8, in 15 modules: model.layers.0.self_attn.q_proj, …")


def test_base_without_tokenizer(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    for name in TOKENIZER:
        (llama_copy.base / name).unlink()
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.base, "training needs the model's tokenizer")


def test_tokens_beyond_the_vocabulary(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    """A tokenizer of another model; the tiny vocabulary has 288 entries."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_copy.base)
    tokenizer.add_tokens([f"zz{index}" for index in range(40)])
    tokenizer.save_pretrained(llama_copy.base)
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, llama_copy.base, "tokens beyond the model's vocabulary, 0 to 287", "('zz39')")


def test_an_adapter_as_the_model(llama_copy: TinySource, data: Path, tmp_path: Path, refused: Callable) -> None:
    error = refused(arguments(llama_copy, data, tmp_path / "out", model=llama_copy.adapter))
    has(error, f"{llama_copy.adapter}: no config.json; expected a Hugging Face model directory")
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # beside a base, where it would be left out
        shutil.copy(llama_copy.adapter / name, llama_copy.base)
    error = refused(arguments(llama_copy, data, tmp_path / "out"))
    has(error, f"{llama_copy.base}: is an adapter", "--model takes a base model")


# the machine


CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        pytest.param({"device": "cuda"}, ("--device cuda", "use --device cpu"), marks=CUDA),
        ({"dtype": "fp16"}, ("--dtype fp16 needs CUDA", "bf16 or fp32")),
        ({"batch_size": 6, "micro_batch_size": 4}, ("--batch-size 6 cannot be divided", "micro-batches of 4")),
    ],
)
def test_options_that_do_not_fit(llama: TinySource, data: Path, tmp_path: Path, refused: Callable, changes, texts) -> None:
    has(refused(arguments(llama, data, tmp_path / "out", **changes)), *texts)
