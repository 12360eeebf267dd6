"""Where arms come from: names, what they need, base and adapter checked by hash, the unpruned network exported and kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import LAYERS, TinyModels, TinySource

from lonas_edge.bench import machine
from lonas_edge.bench.making import ARMS, find_source, make_arms
from lonas_edge.bench.options import BenchOptions
from lonas_edge.bench.runners import ENGINES
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported


def options(source: TinySource, cache: Path, *arms: str) -> BenchOptions:
    return BenchOptions(arms=arms, model=str(source.base), adapter=str(source.adapter), cache=cache)


def silent(_what: str, _done: float | None) -> None:
    pass


def test_another_adapter_is_refused(int8: Path, source: TinySource, tiny_models: TinyModels) -> None:
    other = tiny_models.adapter("llama", lora_alpha=4)
    with pytest.raises(LonasEdgeError, match=r"(?s)not exported from these.*adapter: .*adapter_config\.json: expected SHA-256"):
        find_source(open_exported(int8), str(source.base), str(other), None)
    assert find_source(open_exported(int8), str(source.base), str(source.adapter), None).adapter is not None


def test_a_revision_of_a_directory_is_refused(int8: Path, source: TinySource) -> None:
    with pytest.raises(LonasEdgeError, match=r"--revision main: .* is a directory; revisions are the hub's"):
        find_source(open_exported(int8), str(source.base), str(source.adapter), "main")


def test_an_adapter_of_what_has_none_is_refused(int8: Path, source: TinySource) -> None:
    opened = open_exported(int8)
    alone = replace(opened, manifest=replace(opened.own_manifest, adapter=None))
    with pytest.raises(LonasEdgeError, match="exported without an adapter; leave out --adapter"):
        find_source(alone, str(source.base), str(source.adapter), None)
    assert find_source(alone, str(source.base), None, None).adapter is None
    with pytest.raises(LonasEdgeError, match=r"(?s)lora: .* was exported without an adapter.*lora-merged: .* without"):
        make_arms(alone, BenchOptions(arms=("lora", "lora-merged")), silent)


def test_all_arms_that_cannot_be_are_told(int8: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no GGUF")
    twin = tmp_path / "twins/copy"
    twin.mkdir(parents=True)
    asked = BenchOptions(arms=("gguf", "nothing", str(copy), str(twin)), gguf=tmp_path / "model.gguf")
    with pytest.raises(LonasEdgeError) as told:
        make_arms(open_exported(int8), asked, silent)
    with pytest.raises(LonasEdgeError, match="gguf: --gguf names the file"):
        make_arms(open_exported(int8), BenchOptions(arms=("gguf",)), silent)
    known = "subnet, lora, lora-merged, unpruned, huge-pages, draft, gguf"
    assert f"nothing: neither an arm ({known}), a directory nor a .gguf file" in str(told.value)
    assert "model.gguf: not a GGUF file" in str(told.value) and "copy: 2 arms of that name" in str(told.value)


def test_the_arm_of_huge_pages(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "huge_pages_fault", lambda: None)
    subnet, large = make_arms(open_exported(int8), BenchOptions(arms=("huge-pages",)), silent)
    assert large == replace(subnet, name="huge-pages", environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    monkeypatch.setattr(machine, "huge_pages_fault", lambda: "there are none")
    with pytest.raises(LonasEdgeError, match="huge-pages: there are none"):
        make_arms(open_exported(int8), BenchOptions(arms=("huge-pages",)), silent)


def test_arms_have_what_they_need(int8: Path, source: TinySource, tmp_path: Path) -> None:
    (tmp_path / "big.Q8_0.gguf").write_bytes(b"GGUF....")
    asked = replace(
        options(source, tmp_path, "lora", "lora-merged", "gguf"), torch_dtype="bf16", gguf=tmp_path / "big.Q8_0.gguf"
    )
    subnet, lora, merged, gguf = make_arms(open_exported(int8), asked, silent)
    assert [arm.name for arm in (subnet, lora, merged, gguf)] == ["subnet", "lora", "lora-merged", "gguf"]
    unpruned = json.loads((int8 / "lonas_edge.json").read_text())["sizes"]["unpruned"]["parameters"]
    assert (lora.path, lora.adapter, lora.precision, lora.merged) == (source.base, source.adapter, "bf16", False)
    assert (merged.merged, merged.parameters, merged.bytes_estimate) == (True, unpruned, 2 * unpruned)
    assert (subnet.path, subnet.bytes_estimate) == (int8, (int8 / "openvino_model.bin").stat().st_size)
    assert (gguf.precision, gguf.bytes_estimate) == ("Q8_0", 8)
    (tmp_path / "other.Q4_K_M.gguf").write_bytes(b"GGUF..")
    _, first, second = make_arms(open_exported(int8), BenchOptions(arms=tuple(map(str, tmp_path.glob("*.gguf")))[::-1]), silent)
    found = {(arm.name, arm.kind, arm.precision, arm.bytes_estimate) for arm in (first, second)}
    assert found == {("big.Q8_0.gguf", "gguf", "Q8_0", 8), ("other.Q4_K_M.gguf", "gguf", "Q4_K_M", 6)}
    (tmp_path / "none.gguf").write_bytes(b"no")
    asked = BenchOptions(arms=(f"{tmp_path}/none.gguf", "nowhere.gguf"))
    with pytest.raises(LonasEdgeError, match=r"(?s)none\.gguf: not a GGUF file.*nowhere\.gguf: no such file"):
        make_arms(open_exported(int8), asked, silent)
    assert all(arm.kind in ENGINES for arm in ARMS.values())


def test_whose_kv_precision_holds(int8: Path) -> None:
    """That of the weight format under a tuned one, that under --kv-precision, and that under --property."""
    opened, kv = open_exported(int8), "KV_CACHE_PRECISION"
    tuned = replace(opened, properties={kv: "f16", "ENABLE_CPU_PINNING": "NO"})
    found = [
        make_arms(exported, BenchOptions(arms=(), device=device, kv_precision=told, properties=given), silent)[0].properties
        for exported, device, told, given in (
            (opened, "CPU", None, {}),
            (tuned, "CPU", None, {}),
            (tuned, "CPU", "bf16", {}),
            (tuned, "CPU", "bf16", {kv: "f32"}),
            (opened, "NPU", None, {}),
        )
    ]
    assert [properties.get(kv) for properties in found] == ["u8", "f16", "bf16", "f32", None]
    assert found[1]["ENABLE_CPU_PINNING"] == "NO"


def test_the_unpruned_network_is_exported_once_and_kept(
    int8: Path, source: TinySource, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, steps = options(source, tmp_path / "cache", "unpruned"), []
    first = make_arms(open_exported(int8), asked, lambda what, _done: steps.append(what))[1]
    assert first.path.parent == tmp_path / "cache" and first.precision == "int8" and steps[-1].startswith("Exporting")
    manifest = json.loads((first.path / "lonas_edge.json").read_text())
    assert (manifest["subnetwork"]["name"], manifest["verified"]) == ("maximal", False)
    assert first.parameters == manifest["sizes"]["subnetwork"]["parameters"]
    assert manifest["fused"] == open_exported(int8).own_manifest.fused == 2 * LAYERS
    written = (first.path / "lonas_edge.json").stat().st_mtime_ns
    steps.clear()
    assert make_arms(open_exported(int8), asked, lambda what, _done: steps.append(what))[1] == first
    assert (first.path / "lonas_edge.json").stat().st_mtime_ns == written and len(steps) == 1
    assert capfd.readouterr() == ("", "")  # its output is not the terminal's


def test_the_unpruned_network_is_fused_as_the_other_is(
    int8: Path, source: TinySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the other is, the test before this one shows it."""
    monkeypatch.setattr("lonas_edge.bench.making.apart", lambda work, *given: work(*given))
    opened, asked = open_exported(int8), options(source, tmp_path / "cache", "unpruned")
    plain = replace(opened, manifest=replace(opened.own_manifest, fused=0))
    assert open_exported(make_arms(plain, asked, silent)[1].path).own_manifest.fused == 0


def test_an_export_that_fails_is_told(int8: Path, source: TinySource, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    with pytest.raises(LonasEdgeError, match=r"unpruned: the export failed:\n.*cache is not a directory"):
        make_arms(open_exported(int8), options(source, tmp_path / "cache", "unpruned"), silent)
