"""Files that the version before wrote, when records said `"format": 1`: they open, and mean what they meant.

`tests/data/written_by_format_1.tar.gz` holds a tiny LLaMA with random weights, a super-adapter trained on it, and its heuristic
sub-network twice: an INT8 IR with run-time properties of `bench --tune` and an evaluation of `eval --card`, and a checkpoint.
"""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest
import torch
from openvino_models import ir_logits
from test_prompt_card import ALPACA

import lonas_edge
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.targets import RunOptions, open_targets
from lonas_edge.exporting.exported import open_exported, restore_properties, write_card
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.ir.runtime import Gain, RuntimeProperties

WIDTHS = [8, 8, 8, 96, 96, 96, 8, 8, 8]  # q, k, v ranks of a layer, MLP widths, gate and up ranks


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The directories `base`, `super-adapter`, `int8` and `checkpoint`."""
    with tarfile.open(Path(__file__).parents[1] / "data/written_by_format_1.tar.gz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


def test_inspect_an_old_super_adapter(run_cli: Callable, old: Path) -> None:
    ran = run_cli("inspect", old / "super-adapter", "--json")
    assert ran.code == 0, ran.err
    found, manifest = json.loads(ran.out), json.loads((old / "int8/lonas_edge.json").read_text())
    assert [group["width"] for group in found["groups"]] == WIDTHS
    assert known_then({name: found[name] for name in ("unpruned", "subnetwork")}) == manifest["sizes"]


def known_then(sizes: dict) -> dict:
    """Sizes without the bytes of formats that there were not then, and without the cache, which was not counted."""
    then = ("fp32", "fp16", "int8", "int4")
    sizes = {which: {key: value for key, value in one.items() if key != "kv_elements"} for which, one in sizes.items()}
    return {which: {**one, "bytes": {name: one["bytes"][name] for name in then}} for which, one in sizes.items()}


def test_export_an_old_super_adapter(run_cli: Callable, old: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    """The same sub-network as the checkpoint that was exported then, chosen by the file that was written then."""
    arguments = ["--stage", "checkpoint", "--subnet", old / "checkpoint/subnetwork.json"]
    ran = run_cli("export", old / "super-adapter", "--output", tmp_path / "new", *arguments)
    assert ran.code == 0, ran.err
    with torch.no_grad():
        before = lonas_edge.load_checkpoint(old / "checkpoint", torch.float64)(input_ids=ids).logits
        now = lonas_edge.load_checkpoint(tmp_path / "new", torch.float64)(input_ids=ids).logits
    assert (before - now).abs().max() < 1e-6  # merged in fp32 then, in float64 and rounded once now
    manifests = [json.loads((folder / "lonas_edge.json").read_text()) for folder in (old / "checkpoint", tmp_path / "new")]
    manifests[0]["subnetwork"]["found"] = None  # not said then
    manifests[1]["sizes"] = known_then(manifests[1]["sizes"])
    for key in ("stage", "weight_format", "subnetwork", "base", "adapter", "prompt", "sizes", "verified"):
        assert manifests[0][key] == manifests[1][key]
    assert manifests[0]["format"] == 1 and manifests[1]["schema"] == "lonas-edge/manifest/9"


def test_an_old_manifest(old: Path) -> None:
    found, written = Manifest.read(old / "int8/lonas_edge.json"), json.loads((old / "int8/lonas_edge.json").read_text())
    kept = {k: v for k, v in written.items() if k != "format"}
    kept["subnetwork"]["found"] = None
    new = {"files": None, "layers": (), "solved": None, "fused": 0, "compression": ()}  # nothing of these then
    new |= {"calibrated": None, "texts": None, "draft": None, "pipeline": "text-generation"}
    new |= {"task": None}  # language models alone
    assert found.to_json() == {"schema": "lonas-edge/manifest/9", **kept, **new}
    assert found.adapter is not None
    assert (found.base.name, found.adapter.name) == ("base", "super-adapter")
    assert found.sizes.subnetwork.parameters == 129472
    assert found.parity["ir"].mean_kl == 0.00023929470608626322
    assert found.steps["compress"].peak_rss_bytes == 669028352


def test_a_manifest_of_the_first_days(old: Path) -> None:
    """Format 1 had no prompt at first, and another name for a process."""
    content = json.loads((old / "int8/lonas_edge.json").read_text())
    del content["prompt"]
    content["child_peak_rss_bytes"] = content.pop("graph_process_peak_rss_bytes")
    found = Manifest.from_json(content, "here")
    assert (found.prompt, found.graph_process_peak_rss_bytes) == (None, 552071168)


def test_every_damaged_field_of_an_old_manifest_is_told(old: Path) -> None:
    path = old / "int8/lonas_edge.json"
    content = json.loads(path.read_text())
    content["parity"]["ir"]["mean_kl"] = "small"
    content["sizes"]["subnetwork"]["macs"] = None
    del content["stage"]
    path.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError) as caught:
        open_exported(old / "int8")
    told = [line.split(":")[0].strip(" -") for line in str(caught.value).splitlines()[1:-1]]
    assert sorted(told) == ["parity.ir.mean_kl", "sizes.subnetwork.macs", "stage"]


def test_an_old_ir_opens(old: Path, ids: torch.Tensor) -> None:
    found = open_exported(old / "int8")
    assert (found.vocabulary, found.context, found.weight_format) == (288, 128, "int8")
    assert found.properties == {"KV_CACHE_PRECISION": "f16", "ENABLE_CPU_PINNING": "NO"}
    assert ir_logits(old / "int8", ids).shape == (2, 12, 288)
    (target,) = open_targets([str(old / "int8")], [None], RunOptions())
    assert (target.name, target.kind, target.precision, target.prompt) == ("int8", "ir", "int8", "alpaca")
    assert target.sizes.parameters == 129472


def test_old_run_time_properties(old: Path) -> None:
    found = RuntimeProperties.read(old / "int8/lonas_edge_runtime.json")
    assert found.speedups["tpot"] == Gain(1.3888888888888895, 1.388888888888889, 1.3888888888888897, 8, 1)
    assert found.in_ir == ("KV_CACHE_PRECISION",) and found.replaced_in_ir == {"KV_CACHE_PRECISION": None}
    content = json.loads((old / "int8/lonas_edge_runtime.json").read_text())
    for gain in content["speedups"].values():
        del gain["starts"]  # at first, there was one
    assert RuntimeProperties.from_json(content, "here") == found


def test_old_run_time_properties_are_taken_back(old: Path) -> None:
    def of_the_ir() -> str:
        model = ov.Core().compile_model(old / "int8/openvino_model.xml", "CPU")
        return str(model.get_property("KV_CACHE_PRECISION").get_type_name())

    assert of_the_ir() == "f16"
    restore_properties(old / "int8")
    assert of_the_ir() == "u8"
    assert not (old / "int8/lonas_edge_runtime.json").exists()
    assert "Run-time properties" not in (old / "int8/README.md").read_text()


def test_the_card_of_an_old_directory(old: Path) -> None:
    """Made anew it is what it was, but that the machine is another and that it says what the record knew: the prompt."""
    for folder, following in ((old / "int8", "## Run-time properties"), (old / "checkpoint", "## Checked")):
        before = (folder / "README.md").read_text()
        write_card(folder)
        was = "The development machine has an AMD processor; the model was not run on an Intel CPU, GPU or NPU there."
        now = "lonas-edge is developed and measured on AMD and Intel CPUs; nothing was run on an Intel GPU or NPU."
        assert (folder / "README.md").read_text() == before.replace(was, now).replace(following, ALPACA + following)
