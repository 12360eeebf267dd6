"""`lonas-edge bench`: one run with real processes; the rest with fake ones."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_variants import Fakes
from tiny_bert import TinyBert
from tiny_models import TinySource

from lonas_edge.exporting.export import ExportOptions, export

SHORT = ("--prompt-len", "8", "--new-tokens", "4", "--rounds", "2")


def test_real_processes(run_cli: Callable, int8: Path, source: TinySource, tmp_path: Path) -> None:
    """openvino_genai and PyTorch, each in its own process."""
    inputs = ["--adapter", source.adapter, "--model", source.base]
    ran = run_cli("bench", int8, *inputs, "--variants", "lora", *SHORT, "--output", tmp_path / "out", "--json").ok()
    report = json.loads(ran.out)  # one document and nothing else
    assert report == json.loads((tmp_path / "out/bench.json").read_text())
    assert [variant["name"] for variant in report["variants"]] == ["subnet", "lora"]
    assert len(report["samples"]) == 2 * 2 and not report["failures"] and not report["interrupted"]
    assert all(len(sample["timing"]["token_times"]) == 4 for sample in report["samples"])
    assert {(c["variant"], c["baseline"], c["metric"]) for c in report["comparisons"]} == {
        ("subnet", "lora", metric) for metric in ("ttft", "tpot", "generate_duration")
    }
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"bench.json", "bench.md"}
    facts = {variant["name"]: variant["facts"] for variant in report["variants"]}
    assert all(fact["peak_memory_bytes"] > 1e7 and fact["load_seconds"] > 0 for fact in facts.values())
    sizes = json.loads((int8 / "lonas_edge.json").read_text())["sizes"]
    assert facts["subnet"]["parameters"] == sizes["subnetwork"]["parameters"]
    assert facts["subnet"]["kv_precision"] == "u8" and facts["lora"]["kv_precision"] == "f32"
    assert report["conditions"]["loaded_together"] == [["subnet", "lora"]]


def test_cases_rounds_and_starts(run_cli: Callable, int8: Path, copy: Path, fakes: Fakes) -> None:
    options = ["--rounds", "7"]
    ran = run_cli("bench", int8, "--variants", f"subnet,{copy}", *SHORT, *options, "--json").ok()
    report = json.loads(ran.out)
    taken = {(s["variant"], s["start"], s["round"]) for s in report["samples"]}
    assert taken == {(name, n // 4, n) for name in ("copy", "subnet") for n in range(7)}
    assert all((c["ratio"]["rounds"], c["ratio"]["starts"]) == (7, 2) for c in report["comparisons"])
    prompts = fakes.prompts["subnet"]
    assert prompts == fakes.prompts["copy"] and len({tuple(batch[0]) for batch in prompts}) == len(prompts)


def test_a_classifier(run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path, fakes: Fakes) -> None:
    opened, folder = tiny_bert.source().opened(), tmp_path / "ir"
    export(opened, opened.select("minimal"), folder, ExportOptions("int8", verify=False))
    ran = run_cli("bench", folder, "--variants", "subnet", "--rounds", "2", "--json").ok()
    report = json.loads(ran.out)
    length = json.loads((folder / "config.json").read_text())["max_position_embeddings"]  # shorter than 128
    cases = [row["case"] for row in report["rows"]]
    assert cases == [{"prompt_len": length, "new_tokens": 0, "data": ""}]
    ran = run_cli("bench", folder, "--variants", "subnet", "--prompt-len", "16", "--rounds", "2")
    assert "latency ms" in ran.out and "sequences/s" in ran.out
    for options, code, message in (
        (["--new-tokens", "8"], 2, "--new-tokens has no effect: "),
        (["--prompt-len", f"{length + 1}"], 1, "longer than the model's context"),
    ):
        ran = run_cli("bench", folder, *options)
        assert ran.code == code and message in " ".join(ran.err.split()), ran.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--new-tokens", "1"], "greater than or equal to 2"),
        (["--prompt-len", "126"], "longer than the model's context of 128 tokens: - 126+4 tokens: 130 tokens"),
        (["--device", "NPU"], "--device NPU: not on this machine. Present: CPU"),
        (["--variants", "nothing"], "nothing: neither a variant (subnet, draft, lora, lora-merged, unpruned) nor a directory"),
        (["--variants", "lora"], "is a local directory; pass it with --adapter"),
        (["--variants", "lora", "--adapter", "/nowhere"], "/nowhere: no such directory"),
    ],
)
def test_bad_input(run_cli: Callable, int8: Path, options: list[str], message: str) -> None:
    ran = run_cli("bench", int8, "--variants", "subnet", *SHORT, *options)
    assert (ran.code, ran.out) == (2 if options[0] == "--new-tokens" or options[1] == "nothing" else 1, "")
    assert message in " ".join(ran.err.split()), ran.err


def test_without_arms_only_available_variants_run(run_cli: Callable, int8: Path, tmp_path: Path, fakes: Fakes) -> None:
    """Base and adapter are local directories, which the export does not name."""
    ran = run_cli("bench", int8, *SHORT, "--output", tmp_path / "out", "--json").ok()
    report = json.loads(ran.out)
    assert [variant["name"] for variant in report["variants"]] == ["subnet"]
    assert report["warnings"][0].startswith("Not compared with lora and unpruned: ") and "--adapter" in report["warnings"][0]
    assert "subnet vs" not in (tmp_path / "out/bench.md").read_text()


def test_ctrl_c_reports_the_completed_rounds(run_cli: Callable, int8: Path, tmp_path: Path, fakes: Fakes) -> None:
    fakes.fails["subnet", 6] = KeyboardInterrupt()  # 2 warm-ups, 3 rounds
    ran = run_cli("bench", int8, "--variants", "subnet", *SHORT, "--rounds", "9", "--output", tmp_path / "out", "--json")
    assert ran.code == 1
    report = json.loads((tmp_path / "out/bench.json").read_text())
    assert report["interrupted"] and len(report["samples"]) == 3 and "Interrupted" in report["warnings"][0]
    fakes.fails = {("subnet", len(fakes.prompts["subnet"]) + 1): KeyboardInterrupt()}
    ran = run_cli("bench", int8, "--variants", "subnet", *SHORT)
    assert ran.code == 1 and "Interrupted before the first round was complete." in ran.err
