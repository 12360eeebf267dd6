"""`lonas-edge search` on the tiny LLaMA, whose 27 networks are all evaluated without it, too."""

import itertools
import json
import sqlite3
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinySource

from lonas_edge.network.super_network import SuperNetwork, load_super_network
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search.study import open_journal

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
Pairs = dict[tuple[int, ...], tuple[float, float]]


@pytest.fixture
def everything(llama: TinySource, data: Path) -> Pairs:
    """KL and bytes of every choice of MLP widths, ranks at their widest, computed apart from the search."""
    choices = [values if max(values) > 8 else values[:1] for values in llama.groups()]
    all_networks = list(itertools.product(*choices))
    source = llama.opened()
    batches = source.open_data(data, "alpaca").batches(load_tokenizer(llama.base), 8, 0)
    kl = load_super_network(source).kl(all_networks, batches)
    return {
        widths: (kl[index], source.sizes(source.subnetwork(widths)).bytes["int8_sym"])
        for index, widths in enumerate(all_networks)
    }


def unbeaten(pairs: Pairs) -> set[tuple[int, ...]]:
    """The front by its definition."""
    return {
        widths
        for widths, (kl, cost) in pairs.items()
        if not any(other != (kl, cost) and other[0] <= kl and other[1] <= cost for other in pairs.values())
    }


def searched(run_cli: Callable, command: list[str]) -> dict[str, Any]:
    """Run a search; return its record."""
    run_cli(*command).ok()
    output = [Path(value) for name, value in itertools.pairwise(command) if name == "--output"][-1]
    record: dict[str, Any] = json.loads((output / "search.json").read_text())
    return record


def widths_of(record: dict[str, Any]) -> list[list[int]]:
    return [evaluation["widths"] for evaluation in record["evaluations"]]


def test_the_front_of_all_networks(run_cli: Callable, command: Callable, tmp_path: Path, everything: Pairs) -> None:
    record = searched(run_cli, command("--pick", "bytes<=0.95x", "--pick", "kl<=0.4"))
    output = tmp_path / "out"
    assert not output.with_name("out.partial").exists()
    evaluated = {tuple(network["widths"]): (network["quality"], network["cost"]) for network in record["evaluations"]}
    assert len(record["evaluations"]) == len(evaluated) == 27, "each once"
    assert evaluated.keys() == everything.keys()
    for widths, (kl, cost) in evaluated.items():
        assert kl == pytest.approx(everything[widths][0], abs=1e-5)
        assert cost == everything[widths][1]
    front = [record["evaluations"][number] for number in record["front"]]
    assert {tuple(member["widths"]) for member in front} == unbeaten(evaluated)
    assert [member["cost"] for member in front] == sorted(member["cost"] for member in front)
    origins = [network["origin"] for network in record["evaluations"]]
    assert origins[:3] == [f"warm-start:{name}" for name in ("maximal", "heuristic", "minimal")]
    kinds = {origin.partition(":")[0] for origin in origins}
    assert kinds <= {"warm-start", "nsga2", "refined", "random"} and len(kinds) > 2
    maximal = max(cost for _, cost in evaluated.values())
    picks = {pick["name"]: record["evaluations"][pick["evaluation"]] for pick in record["picks"]}
    assert picks["pick:bytes<=0.95x"]["quality"] == min(kl for kl, cost in evaluated.values() if cost <= 0.95 * maximal)
    assert picks["pick:kl<=0.4"]["cost"] == min(cost for kl, cost in evaluated.values() if kl <= 0.4)


def test_sub_networks_are_exported(
    run_cli: Callable, command: Callable, tmp_path: Path, llama: TinySource, llama_copy: TinySource
) -> None:
    record = searched(run_cli, command("--pick", "bytes<=0.95x", "--evals", "12"))
    written = {"search.json", "search_progression.csv", "search_progression.png", "front.png", "study.log", "subnetworks"}
    assert written == {path.name for path in (tmp_path / "out").iterdir()}
    folder = tmp_path / "out/subnetworks"
    assert len(list(folder.iterdir())) == len(record["front"]) + 1
    pick = folder / "bytes-0.95x.json"
    best = record["evaluations"][record["picks"][0]["evaluation"]]
    sizes = json.loads(run_cli("inspect", *llama.arguments(), "--subnet", pick, "--json").out)
    assert [group["width"] for group in sizes["groups"]] == best["widths"]

    def exported(source: TinySource, output: Path) -> Any:
        options = ["--subnet", pick, "--output", output, "--stage", "checkpoint", "--no-verify"]
        run_cli("export", *source.arguments(), *options).ok()
        return json.loads((output / "lonas_edge.json").read_text())["subnetwork"]

    made = exported(llama, tmp_path / "exported")
    assert made["name"] == "search:pick:bytes<=0.95x"
    expected = {"quality": "kl", "quality_value": best["quality"], "cost": "bytes", "cost_value": best["cost"]}
    expected |= {"units": {"kl": "nats", "bytes": "bytes"}, "weight_format": "int8_sym"}
    expected |= {"proposed_by": best["origin"], "evaluation": best["number"], "evaluations": 12, "prompts": 8}
    expected["super_adapter"] = {name: sha256((llama.adapter / name).read_bytes()).hexdigest() for name in ADAPTER_FILES}
    assert made["origin"] == expected
    path = llama_copy.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 8}))
    assert exported(llama_copy, tmp_path / "other")["origin"] is None, "the search was not of this adapter"


def test_interrupted_and_continued(
    run_cli: Callable, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations before Ctrl-C or a kill are kept."""
    kl, scored = SuperNetwork.kl, []

    def interrupting(self: SuperNetwork, *arguments: Any, **options: Any) -> list[float]:
        scored.append(arguments)
        if len(scored) > 8:
            raise KeyboardInterrupt
        return kl(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(SuperNetwork, "kl", interrupting)
        ran = run_cli(*command("--evals", "20"))
    partial = tmp_path / "out.partial"
    assert ran.code == 1 and str(partial) in ran.err and "The same command continues" in " ".join(ran.err.split())
    assert not (tmp_path / "out").exists()
    with (partial / "study.log").open("a") as journal:
        journal.write('{"op_code": 5, "wor')  # the process was killed while it wrote
    ran = run_cli(*command("--evals", "20", "--seed", "3"))
    assert ran.code == 1 and "seed" in ran.err and "settings or inputs have changed" in ran.err
    record = searched(run_cli, command("--evals", "20"))
    assert len(record["evaluations"]) == 20 == len({tuple(widths) for widths in widths_of(record)})
    assert len([trial for trial in trials(tmp_path) if trial.state.name == "COMPLETE"]) == 20, "none was evaluated twice"
    assert not partial.exists()


def trials(folder: Path) -> list[Any]:
    """All trials of a finished search."""
    storage = open_journal(folder / "out/study.log")
    [study] = storage.get_all_studies()
    return storage.get_all_trials(study._study_id)


def test_a_finished_search_is_continued(run_cli: Callable, command: Callable, tmp_path: Path) -> None:
    """Earlier evaluations are kept; the network of a new pick comes first."""
    first = searched(run_cli, command("--evals", "8"))
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in trials(tmp_path)[:3]]
    assert generations == [0, 0, 0], "the warm start belongs to the first generation"
    more = searched(run_cli, command("--evals", "12", "--pick", "weights<=0.97x"))
    assert widths_of(more)[:8] == widths_of(first) and len(more["evaluations"]) == 12
    assert more["evaluations"][8]["origin"] == "warm-start:pick:weights<=0.97x"
    again = searched(run_cli, command("--evals", "8", "--overwrite"))
    assert widths_of(again) == widths_of(first), "the same seed gives the same networks"


def test_two_workers_in_turn(run_cli: Callable, command: Callable, tmp_path: Path) -> None:
    """The second worker evaluates nothing again."""
    url = f"sqlite:///{tmp_path}/study.db"
    first, second = (
        searched(run_cli, command("--evals", "6", "--storage", url, "--output", tmp_path / name)) for name in ("one", "two")
    )
    assert first["evaluations"] == second["evaluations"] and first["sensitivity"] == second["sensitivity"]
    with sqlite3.connect(tmp_path / "study.db") as database:
        assert database.execute("select count(*) from trials where state = 'COMPLETE'").fetchone() == (6,)
