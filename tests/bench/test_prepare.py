"""Preparation of variants: names, needs, base and adapter checked by hash, the unpruned network exported once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_bert import TinyBert
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.bench import prepare
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.prepare import find_source, prepare_variants
from lonas_edge.bench.variants import Case, Variant
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import Exported, open_exported
from lonas_edge.exporting.manifest import Compression
from lonas_edge.network.source import Source
from lonas_edge.space.selection import select


def options(source: TinySource, cache: Path, *arms: str) -> BenchOptions:
    return BenchOptions(variants=arms, model=str(source.base), adapter=str(source.adapter), cache=cache)


def prepared(exported: Exported, options: BenchOptions) -> list[Variant]:
    variants, warnings = prepare_variants(exported, options, lambda _what, _done: None)
    assert not warnings
    return variants


def test_another_adapter_is_refused(int8: Path, source: TinySource, tiny_models: TinyModels) -> None:
    other = tiny_models.adapter("llama", lora_alpha=4)
    with pytest.raises(
        LonasEdgeError, match=r"(?s)exported from other files.*adapter: .*adapter_config\.json: expected SHA-256"
    ):
        find_source(open_exported(int8), str(source.base), str(other))
    assert find_source(open_exported(int8), str(source.base), str(source.adapter)).adapter is not None


def test_an_export_without_adapter(int8: Path, source: TinySource) -> None:
    opened = open_exported(int8)
    alone = replace(opened, manifest=replace(opened.own_manifest, adapter=None))
    with pytest.raises(LonasEdgeError, match="exported without an adapter; omit --adapter"):
        find_source(alone, str(source.base), str(source.adapter))
    assert find_source(alone, str(source.base), None).adapter is None
    with pytest.raises(LonasEdgeError, match=r"(?s)lora: .* was exported without an adapter.*lora-merged: .* without"):
        prepared(alone, BenchOptions(variants=("lora", "lora-merged")))


def test_default_variants(int8: Path, source: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adapter PyTorch; the unpruned network only if the export is pruned."""
    monkeypatch.setitem(prepare.VARIANTS, "unpruned", prepare._subnet)
    pruned, asked = open_exported(int8), replace(options(source, tmp_path), variants=None)
    manifest = pruned.own_manifest
    same = replace(manifest, sizes=replace(manifest.sizes, unpruned=manifest.sizes.subnetwork))
    alone = replace(manifest, adapter=None)
    for changed, adapter, names in (
        (manifest, asked.adapter, ["subnet", "lora", "unpruned"]),
        (alone, None, ["subnet", "unpruned"]),
        (same, asked.adapter, ["subnet", "lora"]),
        (replace(same, adapter=None), None, ["subnet"]),
    ):
        variants = prepared(replace(pruned, manifest=changed), replace(asked, adapter=adapter))
        assert [variant.name for variant in variants] == names
    with pytest.raises(LonasEdgeError, match="exported without an adapter; omit --adapter"):  # not a warning: it was requested
        prepared(replace(pruned, manifest=alone), asked)


def test_a_recovered_adapter_has_no_unpruned_network(
    int8: Path, source: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "find_source", lambda *_: source.opened())
    monkeypatch.setattr(Source, "own", property(lambda self: select(self.elasticity, "minimal")))
    variants, [warning] = prepare_variants(
        open_exported(int8), replace(options(source, tmp_path), variants=None), lambda _what, _done: None
    )
    assert [variant.name for variant in variants] == ["subnet", "lora"]
    assert "fine-tuned for its minimal sub-network alone" in warning and "pass --variants subnet,DIR" in warning
    with pytest.raises(
        LonasEdgeError, match=r"unpruned: .* alone. Export the unpruned LoRA, and pass its directory in --variants"
    ):
        prepared(open_exported(int8), options(source, tmp_path, "unpruned"))


def test_variants_of_each_kind(int8: Path, copy: Path, source: TinySource, tmp_path: Path) -> None:
    asked = options(source, tmp_path, "lora", "lora-merged", str(copy))
    subnet, lora, merged, other = prepared(open_exported(int8), replace(asked, torch_dtype="bf16"))
    sizes = json.loads((int8 / "lonas_edge.json").read_text())["sizes"]
    unpruned = sizes["unpruned"]["parameters"]
    assert (lora.name, lora.kind, lora.path, lora.adapter) == ("lora", "torch", source.base, source.adapter)
    assert (lora.precision, lora.merged, merged.merged) == ("bf16", False, True)
    assert (merged.parameters, merged.bytes_estimate) == (unpruned, 2 * unpruned)
    assert (subnet.name, subnet.kind, subnet.path, subnet.precision) == ("subnet", "ir", int8, "int8")
    assert (subnet.parameters, subnet.bytes_estimate) == (
        sizes["subnetwork"]["parameters"],
        (int8 / "openvino_model.bin").stat().st_size,
    )
    assert other == replace(subnet, name="copy", path=copy)


def test_the_same_tokens_for_all(int8: Path, copy: Path, tmp_path: Path) -> None:
    """A directory with another tokenizer would take a data file's tokens for others."""
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    (copy / "lonas_edge.json").unlink()  # it has the hash of the file
    (tmp_path / "data.jsonl").touch()
    asked = BenchOptions(variants=(str(copy),), data=tmp_path / "data.jsonl")
    with pytest.raises(LonasEdgeError, match=f"The tokenizer differs from that of {int8}:\n.*copy: token"):
        prepared(open_exported(int8), asked)


def test_all_irs_get_the_same_properties(int8: Path, copy: Path) -> None:
    """A property overrides the KV precision of the weight format."""
    exported, kv = open_exported(int8), "KV_CACHE_PRECISION"
    for given, expected in (
        ({}, {kv: "u8"}),
        ({kv: "f32", "ENABLE_CPU_PINNING": "NO"}, {kv: "f32", "ENABLE_CPU_PINNING": "NO"}),
    ):
        variants = prepared(exported, BenchOptions(variants=(str(copy),), properties=tuple(given.items())))
        assert [variant.properties for variant in variants] == [expected] * 2


@pytest.mark.parametrize("device", ["NPU", "NPU.3720"])
def test_on_an_npu(int8: Path, device: str) -> None:
    opened, asked = open_exported(int8), BenchOptions(variants=(), device=device, cases=(Case(32, 8), Case(48, 4)))
    [plain] = prepared(opened, asked)
    assert plain.properties == {"MAX_PROMPT_LEN": "48", "MIN_RESPONSE_LEN": "8"}
    [own] = prepared(opened, replace(asked, properties=(("MAX_PROMPT_LEN", "4096"),)))
    assert own.properties == {"MAX_PROMPT_LEN": "4096", "MIN_RESPONSE_LEN": "8"}


def test_a_classifier(tiny_bert: TinyBert, tmp_path: Path) -> None:
    source = tiny_bert.source()
    opened = source.opened()
    export(opened, opened.select("minimal"), tmp_path / "ir", ExportOptions("int8", verify=False))
    exported = open_exported(tmp_path / "ir")
    subnet, lora = prepared(exported, replace(options(source, tmp_path, "lora"), cases=(Case(16, 0),)))
    assert (subnet.kind, subnet.properties, lora.kind) == ("ir-classifier", {}, "torch-classifier")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "run_in_process", lambda work, *arguments: work(*arguments))


def test_the_unpruned_network_is_exported_once(int8: Path, source: TinySource, tmp_path: Path, in_this_process: None) -> None:
    asked, steps = options(source, tmp_path / "cache", "unpruned"), []
    opened = open_exported(int8)
    first = prepare_variants(opened, asked, lambda what, _done: steps.append(what))[0][1]
    assert first.path.parent == tmp_path / "cache" and first.precision == "int8" and steps[-1].startswith("Exporting")
    manifest = json.loads((first.path / "lonas_edge.json").read_text())
    assert (manifest["subnetwork"]["name"], manifest["verified"]) == ("maximal", False)
    assert first.parameters == manifest["sizes"]["subnetwork"]["parameters"]
    assert manifest["fused"] == opened.own_manifest.fused == 2 * LAYERS
    written = (first.path / "lonas_edge.json").stat().st_mtime_ns
    assert prepared(opened, asked)[1] == first
    assert (first.path / "lonas_edge.json").stat().st_mtime_ns == written
    (first.path / "openvino_model.xml").write_text("damaged")
    assert prepared(opened, asked)[1] == first and "</net>" in (first.path / "openvino_model.xml").read_text()
    head = Compression("int4_sym", 32, 1.0)  # as the sub-network has it: format, groups, head, matrices that are not fused
    changes = {"weight_format": "int4_sym", "group_size": 32, "head": head, "fused": 0}
    other = replace(opened, manifest=replace(opened.own_manifest, **changes))
    same = open_exported(prepared(other, asked)[1].path).own_manifest
    assert (same.group_size, same.compression[0].group_size, same.head, same.fused) == (32, 32, head, 0)
