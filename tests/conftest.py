"""Fixtures of all tests. `from oracle import …` and `from tiny_models import …` work in every test file."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import CASES, VOCAB, TinyModels, TinySource


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Makes tiny bases, adapters and search spaces: `.base(case)`, `.adapter(case, **LoraConfig)`, `.space(case)`, `.source(case)`."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=CASES)
def any_source(request: pytest.FixtureRequest, tiny_models: TinyModels) -> TinySource:
    """Base, adapter and search space of each case in turn: every model type tied and untied, and LLaMA with biases."""
    return tiny_models.source(request.param)


@pytest.fixture
def llama(tiny_models: TinyModels) -> TinySource:
    """Base, adapter and search space of the tiny untied LLaMA. Not to be changed."""
    return tiny_models.source("llama")


@pytest.fixture
def llama_copy(tiny_models: TinyModels, tmp_path: Path) -> TinySource:
    """A copy of `llama` in `tmp_path` that a test may damage."""
    return tiny_models.source("llama").copied_to(tmp_path)


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token ids [2, 12] for comparing logits."""
    return torch.randint(2, VOCAB, (2, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def choose() -> Callable[[TinySource, str], list[int]]:
    """Widths of a sub-network, picked from the search-space file without the package: maximal, heuristic, minimal, unequal:SEED."""
    return choose_widths


def choose_widths(source: TinySource, name: str) -> list[int]:
    """See the fixture `choose`."""
    groups = source.groups()
    if name.startswith("unequal:"):
        draw = random.Random(int(name.removeprefix("unequal:")))
        widths = [draw.choice(values) for values in groups]
        mlp = [index for index, values in enumerate(groups) if max(values) > 8]
        for index, position in zip(mlp, draw.sample(range(3), 3), strict=True):  # three layers of three widths
            widths[index] = groups[index][position]
        return widths
    position = {"maximal": lambda n: 0, "heuristic": lambda n: (n - 1) // 2, "minimal": lambda n: n - 1}[name]
    return [values[position(len(values))] for values in groups]
