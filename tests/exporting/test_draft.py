"""A draft beside the main model: what openvino_genai runs, what is recorded, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai
import pytest
from tiny_bert import TinyBert
from tiny_models import TinyModels, TinySource, tokenizer
from tokenizers import normalizers

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.draft import DraftOptions
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported, untuned
from lonas_edge.network.tokenizer import tokenizer_differences

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 3, 200, 17]]
NEW = 16


@pytest.fixture(scope="module")
def pair(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maximal network of the tiny LLaMA in fp32, its draft the minimal one in INT8. Not to be changed."""
    folder, source = tmp_path_factory.mktemp("draft") / "pair", tiny_models.source("llama").opened()
    draft = DraftOptions(source.select("minimal"), weight_format="int8")
    export(source, source.select("maximal"), folder, ExportOptions(weight_format="fp32", draft=draft))
    return folder


@pytest.fixture(scope="module")
def alone(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The minimal network, INT8, exported by itself. Not to be changed."""
    folder, source = tmp_path_factory.mktemp("draft") / "alone", tiny_models.source("llama").opened()
    export(source, source.select("minimal"), folder, ExportOptions(weight_format="int8", verify=False))
    return folder


def answer(pipeline: openvino_genai.LLMPipeline, prompt: list[int], **options: object) -> list[int]:
    ids = np.array([prompt], np.int64)
    config = openvino_genai.GenerationConfig(max_new_tokens=NEW, ignore_eos=True, **options)
    inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    return list(pipeline.generate(inputs, config).tokens[0])


def test_answers_are_those_without_it(pair: Path) -> None:
    plain = openvino_genai.LLMPipeline(pair, "CPU", **EXACT)
    both = openvino_genai.LLMPipeline(pair, "CPU", draft_model=openvino_genai.draft_model(pair / "draft", "CPU"), **EXACT)
    for prompt in PROMPTS:
        expected = answer(plain, prompt)
        assert answer(both, prompt) == expected  # by the clients' own number of tokens ahead
        assert answer(both, prompt, num_assistant_tokens=2) == expected


@pytest.mark.parametrize("case", ["llama", "gemma3", "bloom"])
def test_unequal_heads_and_blocks_that_are_left_out(case: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """What stock clients run alone they run as a draft: fewer heads, two blocks left out, everything narrow; q, k, v as one."""
    source = (tiny_models.deep_source if case == "bloom" else tiny_models.heads_source)(case)
    groups = source.groups()
    deep = [group[-1] for group in groups[:-3]] + ([1, 0, 1] if case == "gemma3" else [0, 1, 0])
    draft = DraftOptions(source.subnetwork(deep, "deep"), weight_format="int8")
    options = ExportOptions(weight_format="fp32", verify=False, draft=draft)
    folder = tmp_path / "pair"
    export(source.opened(), source.subnetwork([group[0] for group in groups], "whole"), folder, options)
    plain = openvino_genai.LLMPipeline(folder, "CPU", **EXACT)
    both = openvino_genai.LLMPipeline(folder, "CPU", draft_model=openvino_genai.draft_model(folder / "draft", "CPU"), **EXACT)
    assert answer(both, PROMPTS[0], num_assistant_tokens=3) == answer(plain, PROMPTS[0])


def test_what_is_recorded(pair: Path) -> None:
    main, draft = open_exported(pair), open_exported(pair / "draft")
    told = main.own_manifest.draft
    assert told is not None
    assert (told.base, told.subnetwork, told.weight_format) == (main.own_manifest.base.name, "minimal", "int8")
    assert told.bytes == (pair / "draft/openvino_model.bin").stat().st_size
    assert told.parameters == draft.own_manifest.sizes.subnetwork.parameters < main.own_manifest.sizes.subnetwork.parameters
    assert draft.own_manifest.verified and {"materialized", "ir_stored", "ir"} <= draft.own_manifest.parity.keys()
    assert draft.own_manifest.draft is None
    card = (pair / "README.md").read_text()
    assert "`minimal` sub-network, int8" in card and 'draft_model("THIS_DIRECTORY/draft", "CPU")' in card
    assert "Speculative" not in (pair / "draft/README.md").read_text()


def test_a_damaged_draft_is_told(pair: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    weights = copy / "draft/openvino_model.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(LonasEdgeError, match=r"draft/openvino_model\.bin: not what was exported"):
        open_exported(copy)


def test_a_tuned_pair_is_found_as_it_was(pair: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pair, tmp_path / "copy"))
    machine = {"device_name": "a CPU", "threads": 4}
    properties = {"ENABLE_CPU_PINNING": "NO"}
    kept = {"device": "CPU", "date": "2026-11-25", "objective": "tpot", "properties": properties, "ratios": {}}
    kept |= {"mean_kl": 0.0, "conditions": {"machine": machine}, "in_ir": [], "replaced_in_ir": {}}
    (copy / "lonas_edge_runtime.json").write_text(json.dumps({"schema": "lonas-edge/runtime/1", **kept}))
    with untuned(open_exported(copy)) as before:
        assert before.folder != copy and before.properties == {}
        assert (before.folder / "draft/openvino_model.bin").exists()


def test_a_directory_that_was_exported_before(run_cli: Callable, llama: TinySource, alone: Path, tmp_path: Path) -> None:
    (alone.parent / "alone/notes.txt").write_text("mine")
    arguments = ["--subnet", "maximal", "--draft", alone, "--no-verify", "--output", tmp_path / "out", "--json"]
    ran = run_cli("export", *llama.arguments(), *arguments)
    (alone / "notes.txt").unlink()
    assert ran.code == 0, ran.err
    own = open_exported(alone).own_manifest
    assert json.loads(ran.out)["draft"] == {
        "base": own.base.name,
        "subnetwork": "minimal",
        "weight_format": "int8",
        "parameters": own.sizes.subnetwork.parameters,
        "bytes": (alone / "openvino_model.bin").stat().st_size,
    }
    assert {path.name for path in (tmp_path / "out/draft").iterdir()} == {path.name for path in alone.iterdir()}
    open_exported(tmp_path / "out/draft")
    ran = run_cli("export", *llama.arguments(), "--draft", tmp_path / "out", "--output", tmp_path / "more")
    assert ran.code == 1 and "has a draft of its own" in ran.err and not (tmp_path / "more").exists()


def test_what_a_person_sees(run_cli: Callable, llama: TinySource, tmp_path: Path) -> None:
    """By default in INT4; an INT4 network beside an equal one is no smaller, which is said; and nothing else is."""
    arguments = ["--weight-format", "int4", "--no-verify", "--overwrite", "--output", tmp_path / "out"]
    ran = run_cli("export", *llama.arguments(), *arguments, "--subnet", "maximal", "--draft", "minimal")
    assert ran.code == 0, ran.err
    assert "minimal sub-network, int4" in " ".join(ran.out.split()) and "warning" not in ran.out + ran.err
    for subnet, draft, told in (("minimal", "maximal", "larger than"), ("minimal", "minimal", "as large as")):
        ran = run_cli("export", *llama.arguments(), *arguments, "--subnet", subnet, "--draft", draft)
        assert ran.code == 0, ran.err
        assert f"warning: the draft is {told} the main model" in " ".join(ran.err.split())
    ran = run_cli(
        "export", *llama.arguments(), *arguments, "--subnet", "maximal", "--draft", "minimal", "--draft-format", "fp32"
    )
    assert "warning: the draft is larger than the main model" in " ".join(ran.err.split())


def test_a_draft_of_another_tokenizer(run_cli: Callable, llama: TinySource, alone: Path, tmp_path: Path) -> None:
    """Two tokens have changed places: texts of one length, special tokens alike, which openvino_genai takes for the same."""
    other = Path(shutil.copytree(alone, tmp_path / "other"))
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    manifest = json.loads((other / "lonas_edge.json").read_text())
    manifest["files"] = None
    (other / "lonas_edge.json").write_text(json.dumps(manifest))
    ran = run_cli("export", *llama.arguments(), "--draft", other, "--output", tmp_path / "out")
    told = " ".join(ran.err.split())
    assert ran.code == 1 and not (tmp_path / "out").exists()
    assert "the draft's tokenizer is not the main model's" in told
    assert f"token {vocabulary['a']}: 'a' and 'b'" in told and f"token {vocabulary['b']}: 'b' and 'a'" in told


def test_how_tokenizers_differ() -> None:
    one, other = tokenizer(), tokenizer()
    assert tokenizer_differences(one, other) == []
    other.add_tokens(["more"])
    assert tokenizer_differences(one, other) == [f"token {len(one)}: None and 'more'"]
    other = tokenizer()
    other.pad_token = "<s>"
    assert tokenizer_differences(one, other) == ["pad token: 1 and 0"]
    other = tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert len(tokenizer_differences(one, other)) == 3  # the texts that have capitals
    assert all("divided into other tokens" in fault for fault in tokenizer_differences(one, other))


def test_a_classifier_has_no_draft(run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    source = tiny_bert.source()
    ran = run_cli("export", *source.arguments(), "--draft", "minimal", "--output", tmp_path / "out")
    assert ran.code == 1 and "--draft works on a causal language model; bert is a sequence classifier" in " ".join(
        ran.err.split()
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--draft", "minimal", "--stage", "checkpoint"], 2, "--draft goes with an IR, which openvino_genai runs"),
        (["--draft-format", "int4"], 2, "--draft-format goes with --draft"),
        (["--draft", "ALONE", "--draft-format", "int4"], 2, "--draft-format goes with a sub-network"),
        (["--draft", "minimal", "--draft-format", "int8", "--calibration", "x"], 2, "and int8 needs no data"),
        (["--draft", "nothing"], 1, "sub-network 'nothing': neither a name"),
        (["--draft", "BASE"], 1, "no lonas_edge.json; expected a directory that `lonas-edge export` wrote"),
    ],
)
def test_refused(
    run_cli: Callable, llama: TinySource, alone: Path, tmp_path: Path, options: list[str], code: int, told: str
) -> None:
    given = [{"ALONE": alone, "BASE": llama.base}.get(option, option) for option in options]
    ran = run_cli("export", *llama.arguments(), *given, "--output", tmp_path / "out")
    assert (ran.code, ran.out) == (code, "") and told in " ".join(ran.err.split()), ran.err
    assert not list(tmp_path.iterdir())


def test_a_draft_that_fails_leaves_nothing(llama: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft is written before the main model: what fails after it takes it along."""
    source = llama.opened()

    def failing(*_arguments: object) -> None:
        raise LonasEdgeError("failed")

    monkeypatch.setattr("lonas_edge.exporting.export._manifest", failing)
    draft = DraftOptions(source.select("minimal"))
    with pytest.raises(LonasEdgeError, match="failed"):
        export(source, source.select("maximal"), tmp_path / "out", ExportOptions(verify=False, draft=draft))
    assert not list(tmp_path.iterdir())
