"""Fixtures of all tests. `from oracle import …` and `from tiny_models import …` work in every test file."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import ctypes
import functools
import json
import logging
import random
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import published_spaces
import pytest
import torch
from tiny_bert import TinyBert
from tiny_models import CASES, STRUCTURES, VOCAB, TinyModels, TinySource, families

from lonas_edge.cli import main
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network import modeling
from lonas_edge.network.materialize import MaterializedModel, write_weights
from lonas_edge.network.source import Source

# a shell without job control has its background jobs ignore Ctrl-C, and so would the processes that the tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

MANY = 6  # families from which on a test is split over the tiers
LLAMA_7B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA_7B_ADAPTER = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"],
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest module first, and keep one model family per structure in the default tier.

    A test of at least `MANY` cases of `CASES` is slow for the cases outside `STRUCTURES`.
    """
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
    cases: dict[str, set[str]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], set()).update(_families(item))
    for item in items:
        many = len(cases[item.nodeid.partition("[")[0]]) >= MANY
        if many and not _families(item) <= set(STRUCTURES):
            item.add_marker(pytest.mark.slow)


def _families(item: pytest.Item) -> set[str]:
    """The model families among a test's parameters."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return {value for value in parameters.values() if isinstance(value, str) and value in CASES}


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Seed each test by its name, so that its random numbers do not depend on other tests."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


class _SignalStack(ctypes.Structure):
    """`stack_t` of glibc's <signal.h>."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@pytest.fixture(autouse=True)
def _signals_on_the_ordinary_stack() -> None:
    """Reset the signal stack: Cores of stock clients and plain openvino may leave a freed one (see `ir.core`)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(flags=2)), None)  # SS_DISABLE


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Simulate a processor as fast in bf16 as in fp32; `processor(fp32, bf16)` sets other speeds in FLOP/s."""

    def make(fp32: float, bf16: float) -> None:
        monkeypatch.setattr(modeling, "matrix_speed", lambda dtype, _size: {"fp32": fp32, "bf16": bf16}[dtype])

    make(1e11, 1e11)
    return make


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models on disk: `.base(case)`, `.adapter(case, **LoraConfig)`, `.space(case)`, `.source(case)`."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> TinyBert:
    """Tiny BERT classifiers on disk: `.base()`, `.adapter(outputs)`, `.space()`, `.source(outputs)`."""
    return TinyBert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=families())
def any_source(request: pytest.FixtureRequest, tiny_models: TinyModels) -> TinySource:
    """Base, adapter and search space of each case: one case per structure, all model types in the slow tier."""
    return tiny_models.source(request.param)


@pytest.fixture
def llama(tiny_models: TinyModels) -> TinySource:
    """Base, adapter and search space of the tiny untied LLaMA. Not to be changed."""
    return tiny_models.source("llama")


@pytest.fixture
def llama_copy(tiny_models: TinyModels, tmp_path: Path) -> TinySource:
    """A copy of `llama` in `tmp_path` that a test may damage."""
    return tiny_models.source("llama").copied_to(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 short examples."""
    examples = [{"instruction": f"What is {a} plus {b}?", "output": f"the {a + b}"} for a in range(8) for b in range(5)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(examples))
    return path


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token ids [2, 12] for comparing logits."""
    return torch.randint(2, VOCAB, (2, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def choose() -> Callable[[TinySource, str], list[int]]:
    """Widths of a sub-network, picked without the package: `choose(source, "maximal|heuristic|minimal|unequal:SEED")`."""
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


@pytest.fixture(scope="session")
def published_space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published search space of LLaMA-7B, with 96 groups."""
    path = tmp_path_factory.mktemp("published") / "nncf_lonas_llama_7b.json"
    path.write_text(json.dumps(published_spaces.llama_7b()))
    return path


@pytest.fixture(scope="session")
def llama_7b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Directories with only the configurations of LLaMA-7B and of the published adapter."""
    folder = tmp_path_factory.mktemp("llama-7b")
    for name, file, content in (("base", "config.json", LLAMA_7B), ("adapter", "adapter_config.json", LLAMA_7B_ADAPTER)):
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps(content))
    return folder / "base", folder / "adapter"


@pytest.fixture
def materialize(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint: `materialize(source, widths, dtype=…)`, `source` a TinySource or an opened Source."""

    def write(source: TinySource | Source, widths: Sequence[int], dtype: torch.dtype = torch.float32) -> Path:
        source = source.opened() if isinstance(source, TinySource) else source
        model = MaterializedModel(source, source.subnetwork(widths))
        folder = tmp_path / f"materialized-{len(list(tmp_path.glob('materialized-*')))}"
        folder.mkdir()
        write_weights(model, folder, dtype)
        (folder / "config.json").write_text(json.dumps(model.config(str(dtype).removeprefix("torch."))))
        return folder

    return write


@pytest.fixture(scope="session")
def exports(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports once per session: `exports(case, "minimal", weight_format="int8", …) -> Path`. Not to be changed."""

    @functools.cache
    def make(case: str, widths: str, **options: Any) -> Path:
        source, folder = tiny_models.source(case), tmp_path_factory.mktemp("exports") / "out"
        opened = source.opened()
        export(opened, opened.subnetwork(choose_widths(source, widths), widths), folder, ExportOptions(**options))
        return folder

    return make


@dataclass(frozen=True)
class Ran:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def ok(self) -> "Ran":
        """Assert that the command succeeded."""
        assert self.code == 0, self.err
        return self


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the real `lonas-edge` in this process: `run_cli("inspect", SOURCE, …) -> Ran`."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["lonas-edge", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        with warnings.catch_warnings():
            try:
                main()
                code = 0
            except SystemExit as ended:
                code = 0 if ended.code is None else int(ended.code)
        signal.signal(signal.SIGTERM, before)
        logging.disable(logging.NOTSET)
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run
