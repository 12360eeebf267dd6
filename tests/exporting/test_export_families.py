"""Export of a tiny model of every family: its IR vs. the oracle, its manifest, and errors that the verification finds."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openvino_models import ir_logits, stored_matrices
from oracle import oracle_logits
from tiny_models import CASES, LAYERS, TinyModels, TinySource, families

from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import stage_checkpoint, stage_ir
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.network import adapters, materialize
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.source import open_source

Choose = Callable[[TinySource, str], list[int]]

# Largest allowed mean KL, in nats, between the oracle and an INT8 IR whose activations stay fp32. Rounding a weight to 8 bits
# moves it by 0.3 % of its row's range; the tiny models show 1e-4 to 4e-4 from that.
INT8_KL = 2e-3

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "graph.pbtxt",
    "lonas_edge.json",
    "openvino_detokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_config.json",
    "openvino_model.bin",
    "openvino_model.xml",
    "openvino_tokenizer.bin",
    "openvino_tokenizer.xml",
    "subnetwork.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def run_export(tiny: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    """Export with the tiny source's files."""
    source = open_source(str(tiny.adapter), str(tiny.base), tiny.space)
    return export(source, source.subnetwork(widths, "unequal"), output, ExportOptions(**options))


def oracle_of(tiny: TinySource, widths: list[int], ids: torch.Tensor) -> torch.Tensor:
    return oracle_logits(tiny.base, tiny.adapter, tiny.space, widths, ids)


def mean_kl(reference: torch.Tensor, logits: torch.Tensor) -> float:
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def assert_nothing_of_this_machine(folder: Path, *private: Path) -> None:
    """No file carries an absolute path or a temporary directory's name, in text or in binary."""
    forbidden = {str(path.resolve()).encode() for path in private} | {str(Path.home()).encode() + b"/"}
    forbidden |= {part.encode() for path in private for part in path.resolve().parts if "pytest" in part}
    forbidden.add(str(Path(materialize.__file__).parents[2]).encode())
    for path in folder.rglob("*"):
        content = path.read_bytes()
        assert not [text for text in forbidden if text in content], path.name
        # a temporary directory of the export itself, or of the conversion
        assert b".partial" not in content and b"graph-" not in content and b"/tmp/" not in content, path.name


def assert_int8(folder: Path, case: str) -> None:
    """Every linear layer, the head and the embedding multiply with a u8 matrix; q, k and v with one."""
    stored = Counter((operation, kind) for operation, kind, _ in stored_matrices(folder))
    fused = CASES[case]["model_type"] in ("gpt_neox", "bloom", "phi3")
    assert stored == {("MatMul", "u8"): (4 if fused else 5) * LAYERS + 1, ("Gather", "u8"): 1}


TIED = [f"{name}-tied" for name in ("llama", "qwen2", "gemma3", "neox", "phi3", "bloom", "olmo2")]


# `test_structure_ir` has heads of their own in fp32
@pytest.mark.parametrize("case", families(*TIED))
def test_int8(case: str, tiny_models: TinyModels, choose: Choose, ids: torch.Tensor, tmp_path: Path):
    tiny = tiny_models.source(case)
    widths = choose(tiny, "unequal:2")
    manifest = run_export(tiny, widths, tmp_path / "out", weight_format="int8")
    actual, expected = ir_logits(tmp_path / "out", ids), oracle_of(tiny, widths, ids)
    kl, top1 = mean_kl(expected, actual), (actual.argmax(-1) == expected.argmax(-1)).double().mean().item()
    print(f"{case}: INT8 mean KL {kl:.2e}, same top token {top1:.1%}")
    assert kl < INT8_KL
    assert top1 > 0.8
    assert (actual - expected).abs().max() > 1e-3, "nothing was rounded"
    assert 0 < manifest.parity["ir"].mean_kl < INT8_KL
    assert_int8(tmp_path / "out", case)
    assert_nothing_of_this_machine(tmp_path / "out", tiny.base, tiny.adapter, tmp_path)


@pytest.mark.slow
def test_the_graph_by_a_spawned_process(
    llama: TinySource, choose: Choose, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As on systems other than Linux: the same weights, logits and files."""
    widths = choose(llama, "unequal:1")
    forked, spawned = tmp_path / "forked/out", tmp_path / "spawned/out"
    monkeypatch.delenv("LONAS_EDGE_SPAWN", raising=False)
    run_export(llama, widths, forked)
    monkeypatch.setenv("LONAS_EDGE_SPAWN", "1")
    run_export(llama, widths, spawned)
    for name in FILES - {"lonas_edge.json"}:  # which has seconds
        assert numberless(spawned / name) == numberless(forked / name), name
    assert torch.equal(ir_logits(spawned, ids), ir_logits(forked, ids))
    assert {path.name for path in spawned.iterdir()} == FILES
    assert_nothing_of_this_machine(spawned, llama.base, llama.adapter, tmp_path)


def numberless(path: Path) -> bytes:
    """A file without the numbers that OpenVINO gives unnamed models and nodes, in the order of a process."""
    content = path.read_bytes()
    return re.sub(rb"(_|Model)[0-9]+", rb"\1", content) if path.suffix == ".xml" else content


@pytest.fixture
def exported(tiny_models: TinyModels, choose: Choose, exports: Callable[..., Path]) -> tuple[TinySource, list[int], Path]:
    """One INT8 export: source, widths, directory."""
    tiny = tiny_models.source("qwen2")
    return tiny, choose(tiny, "unequal:1"), exports("qwen2", "unequal:1", weight_format="int8")


def test_files(exported: tuple[TinySource, list[int], Path]):
    _, widths, folder = exported
    assert {path.name for path in folder.iterdir()} == FILES
    assert list(json.loads((folder / "subnetwork.json").read_text())["widths"].values()) == widths
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and "openvino_genai" in card


def test_manifest(exported: tuple[TinySource, list[int], Path]):
    tiny, _, folder = exported
    manifest = json.loads((folder / "lonas_edge.json").read_text())
    assert manifest["schema"] == "lonas-edge/manifest/1"
    assert manifest["stage"] == "ir"
    assert manifest["weight_format"] == "int8"
    assert manifest["verified"] is True
    assert manifest["subnetwork"]["search_space"] == json.loads((folder / "subnetwork.json").read_text())["search_space"]
    assert manifest["base"]["name"] == tiny.base.name
    assert manifest["adapter"]["name"] == tiny.adapter.name
    for key, root, names in (
        ("base", tiny.base, {"config.json", "model.safetensors"}),
        ("adapter", tiny.adapter, {"adapter_config.json", "adapter_model.safetensors"}),
    ):
        expected = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
        assert manifest[key]["sha256"] == expected
    parity = manifest["parity"]
    assert parity["materialized"]["max_logit_difference"] < 1e-4
    assert parity["materialized"]["positions"] == parity["ir"]["positions"] > 0
    assert 0 < parity["ir"]["mean_kl"] < INT8_KL
    assert manifest["versions"].keys() >= {"lonas-edge", "openvino", "nncf", "torch", "transformers", "python"}
    for step in manifest["steps"].values():
        assert step["seconds"] >= 0 and step["peak_rss_bytes"] > 0
    assert manifest["graph_process_peak_rss_bytes"] > 10**8


@pytest.mark.parametrize("stage", ["ir", "checkpoint"])
def test_verification_refuses_a_wrong_model(
    stage: str, llama: TinySource, choose: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Channels of a down_proj are in reverse order; `fuzz/test_verification` has other errors of the merge."""
    stock = MaterializedModel.tensor

    def reversed_channels(self: MaterializedModel, name: str) -> torch.Tensor:
        value = stock(self, name)
        return value.flip(1) if name == "model.layers.1.mlp.down_proj.weight" else value

    monkeypatch.setattr(MaterializedModel, "tensor", reversed_channels)
    with pytest.raises(LonasEdgeError, match=r"verification failed(.|\n)*Nothing was written"):
        run_export(llama, choose(llama, "minimal"), tmp_path / "deep" / "out", stage=stage)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_rounding_to_16_bits_hides_no_error(
    dtype: str, llama: TinySource, choose: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A scale that is 0.3 % off changes the logits less than rounding does; the verification compares before rounding."""
    stock = adapters.AdapterConfig.scale
    monkeypatch.setattr(adapters.AdapterConfig, "scale", lambda self, name: 1.003 * stock(self, name))
    with pytest.raises(LonasEdgeError, match="verification failed: the logits of the materialized model"):
        run_export(llama, choose(llama, "minimal"), tmp_path / "out", stage="checkpoint", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_verification_reads_the_checkpoint_on_disk(
    dtype: str, llama: TinySource, choose: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    stock = stage_checkpoint.write_weights

    def write(model: MaterializedModel, folder: Path, *rest: Any) -> None:
        stock(model, folder, *rest)
        path = next(folder.glob("model*.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1  # one bit of the last weight
        path.write_bytes(content)

    monkeypatch.setattr(stage_checkpoint, "write_weights", write)
    with pytest.raises(LonasEdgeError, match=r"the checkpoint does not hold the materialized model:\n  - \S+: not the"):
        run_export(llama, choose(llama, "minimal"), tmp_path / "out", stage="checkpoint", dtype=dtype)
    assert not list(tmp_path.iterdir())


_FIRST, _SECOND = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(("weight_format", "calibrated"), [("fp32", False), ("int4", False), ("int4", True)])
def test_verification_refuses_a_wrong_graph(
    weight_format: str,
    calibrated: bool,
    llama: TinySource,
    choose: Choose,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """Two layers' matrices of the same shape are swapped in the graph, before a compression on data hides it."""
    stock = stage_ir.fill

    def swapped(graph: Path, matrices: dict[str, Any], blocks: Any) -> Any:
        return stock(graph, {**matrices, _FIRST: matrices[_SECOND], _SECOND: matrices[_FIRST]}, blocks)

    monkeypatch.setattr(stage_ir, "fill", swapped)
    options = {"weight_format": weight_format, "calibration": data if calibrated else None}
    with pytest.raises(LonasEdgeError, match="verification failed: the logits of the IR differ"):
        run_export(llama, choose(llama, "minimal"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("weight_format", ["fp16", "int8", "int4"])
def test_verification_refuses_wrong_stored_weights(
    weight_format: str, llama: TinySource, choose: Choose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The compression swaps two matrices, as an error in stacking would."""
    stock = stage_ir.compress_matrices

    def swapped(*arguments: Any) -> dict[str, Any]:
        correct = dict(stock(*arguments))
        return {**correct, _FIRST: correct[_SECOND], _SECOND: correct[_FIRST]}

    monkeypatch.setattr(stage_ir, "compress_matrices", lambda *arguments: swapped(*arguments).items())
    with pytest.raises(LonasEdgeError, match=r"verification failed: the stored model\.layers\.\d\.self_attn\.q_proj\.weight"):
        run_export(llama, choose(llama, "minimal"), tmp_path / "out", weight_format=weight_format)
    assert not list(tmp_path.iterdir())
