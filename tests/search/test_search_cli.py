"""`lonas-edge search` from end to end on the tiny LLaMA, whose 27 networks can all be evaluated without it."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TinySource

from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.super_network import SuperNetwork, load_super_network
from lonas_edge.network.tokenizer import load_tokenizer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
Pairs = dict[tuple[int, ...], tuple[float, float]]


@pytest.fixture
def everything(llama: TinySource, data: Path, all_networks: list) -> Pairs:
    """KL and bytes of every network, computed apart from the search."""
    source = llama.opened()
    batches = read_held_out(source, data, 8, 0, "alpaca").batches(load_tokenizer(llama.base))
    kl = load_super_network(source).kl(all_networks, batches)
    return {
        widths: (kl[place], source.sizes(source.subnetwork(widths)).bytes["int8_sym"])
        for place, widths in enumerate(all_networks)
    }


def unbeaten(pairs: Pairs) -> set[tuple[int, ...]]:
    """The front by its definition."""
    return {
        widths
        for widths, (kl, cost) in pairs.items()
        if not any(other != (kl, cost) and other[0] <= kl and other[1] <= cost for other in pairs.values())
    }


def searched(run_cli: Callable, command: list[str]) -> dict[str, Any]:
    """Runs a search and gives the record that it prints."""
    ran = run_cli(*command, "--json")
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return found


def test_the_front_of_all_networks(run_cli: Callable, command: Callable, tmp_path: Path, everything: Pairs) -> None:
    record = searched(run_cli, command("--pick", "bytes<=0.95x", "--pick", "kl<=0.4"))
    assert json.loads((tmp_path / "out/search.json").read_text()) == record
    found = {tuple(one["widths"]): (one["quality"], one["cost"]) for one in record["evaluations"]}
    assert len(record["evaluations"]) == len(found) == 27, "each once"
    assert found.keys() == everything.keys()
    for widths, (kl, cost) in found.items():
        assert kl == pytest.approx(everything[widths][0], abs=1e-5)
        assert cost == everything[widths][1]
    front = [record["evaluations"][number] for number in record["front"]]
    assert {tuple(one["widths"]) for one in front} == unbeaten(found)
    assert [one["cost"] for one in front] == sorted(one["cost"] for one in front)
    assert record["finished"] and record["fixed"] == [0, 1, 2, 6, 7, 8]
    assert record["hypervolume"] == sorted(record["hypervolume"]) and 0 < record["hypervolume"][-1] <= 1
    assert [one["origin"] for one in record["evaluations"]][:3] == ["seed:maximal", "seed:heuristic", "seed:minimal"]
    origins = {one["origin"].partition(":")[0] for one in record["evaluations"]}
    assert origins <= {"seed", "nsga2", "refined", "random"} and len(origins) > 2

    maximal = max(cost for _, cost in found.values())
    under = {widths: pair for widths, pair in found.items() if pair[1] <= 0.95 * maximal}
    picks = {one["name"]: record["evaluations"][one["evaluation"]] for one in record["picks"]}
    assert picks["pick:bytes<=0.95x"]["quality"] == min(kl for kl, _ in under.values())
    assert picks["pick:kl<=0.4"]["cost"] == min(cost for kl, cost in found.values() if kl <= 0.4)


def test_the_networks_are_sub_networks(run_cli: Callable, command: Callable, tmp_path: Path, llama: TinySource) -> None:
    record = searched(run_cli, command("--pick", "bytes<=0.95x"))
    folder = tmp_path / "out/subnetworks"
    assert len(list(folder.iterdir())) == len(record["front"]) + 1
    written = {"search.json", "search_progression.csv", "search_progression.png", "front.png", "study.log", "subnetworks"}
    assert written <= {path.name for path in (tmp_path / "out").iterdir()}
    pick = folder / "bytes-0.95x.json"
    content = json.loads(pick.read_text())
    assert content["name"] == "search:pick:bytes<=0.95x"
    assert list(content["widths"].values()) == record["evaluations"][record["picks"][0]["evaluation"]]["widths"]
    sizes = json.loads(run_cli("inspect", *llama.arguments(), "--subnet", pick, "--json").out)
    assert [group["width"] for group in sizes["groups"]] == list(content["widths"].values())
    exported = tmp_path / "exported"
    made = run_cli("export", *llama.arguments(), "--subnet", pick, "--output", exported, "--stage", "checkpoint", "--no-verify")
    assert made.code == 0, made.err
    assert json.loads((exported / "lonas_edge.json").read_text())["subnetwork"]["name"] == content["name"]
    card = (exported / "README.md").read_text()
    assert content["name"] in card
    best = record["evaluations"][record["picks"][0]["evaluation"]]
    found = {"quality": "kl", "quality_value": best["quality"], "cost": "bytes", "cost_value": best["cost"]}
    found |= {"units": {"kl": "nats", "bytes": "bytes"}, "weight_format": "int8_sym", "origin": best["origin"]}
    found |= {"evaluation": best["number"], "evaluations": 27, "prompts": 8, "compressed": False}
    found["super_adapter"] = {name: sha256((llama.adapter / name).read_bytes()).hexdigest() for name in ADAPTER_FILES}
    assert json.loads((exported / "subnetwork.json").read_text())["origin"] == found
    assert json.loads((exported / "lonas_edge.json").read_text())["subnetwork"]["origin"] == found
    told = f"found it: kl {best['quality']:.4g} nats on 8 held-out prompts (before compression) at bytes {best['cost']:.4g}"
    assert f"{told} in int8_sym" in card


def test_another_adapter_was_not_searched(run_cli: Callable, command: Callable, tmp_path: Path, llama_copy: TinySource) -> None:
    """A sub-network of the same space is taken; how it was found is not said of an adapter that it was not found for."""
    searched(run_cli, command("--pick", "bytes<=0.95x"))
    path = llama_copy.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 8}))
    options = ["--subnet", tmp_path / "out/subnetworks/bytes-0.95x.json", "--stage", "checkpoint", "--no-verify"]
    made = run_cli("export", *llama_copy.arguments(), *options, "--output", tmp_path / "exported")
    assert made.code == 0, made.err
    assert json.loads((tmp_path / "exported/lonas_edge.json").read_text())["subnetwork"]["origin"] is None
    assert "found it" not in (tmp_path / "exported/README.md").read_text()


def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the scoring of a network, `count` networks after the first."""
    kl, scored = SuperNetwork.kl, []

    def interrupting(self: SuperNetwork, *given: Any, **options: Any) -> list[float]:
        scored.append(given)
        if len(scored) > count:
            raise KeyboardInterrupt
        return kl(self, *given, **options)

    monkeypatch.setattr(SuperNetwork, "kl", interrupting)


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from run to run."""
    evaluations = [{**one, "seconds": 0} for one in record["evaluations"]]
    return {**record, "evaluations": evaluations, "seconds": {}, "conditions": {}}


@pytest.mark.parametrize(
    ("sampler", "picks"), [("nsga2", ("--pick", "bytes<=0.95x", "--pick", "macs<=0.9x")), ("tpe", ()), ("random", ())]
)
def test_interrupted_and_gone_on_with(
    sampler: str, picks: tuple[str, ...], run_cli: Callable, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--sampler", sampler, "--evals", "20", "--no-seeds", *picks)
    whole = searched(run_cli, command(*options, "--output", tmp_path / "whole"))
    origins = {one["origin"] for one in whole["evaluations"]}
    assert origins >= {sampler} and origins & {"refined", *(f"refined:{pick}" for pick in picks[1::2])}
    for count in (2, 7, 9):
        with monkeypatch.context() as patch:
            interrupted_after(count, patch)
            ran = run_cli(*command(*options))
        assert ran.code == 1 and "evaluations are kept" in ran.err
        kept = json.loads((tmp_path / "out/search.json").read_text())
        assert not kept["finished"] and (tmp_path / "out/subnetworks").is_dir()
        around = len(picks) // 2 if count == 9 else 0  # a network in a damage table around each pick is scored, too
        assert len(kept["evaluations"]) == {2: 2, 7: 9, 9: 18}[count] - around
    again = searched(run_cli, command(*options, "--resume"))
    assert without_times(again) == without_times(whole)


def test_a_finished_search_goes_on_when_more_is_asked(run_cli: Callable, command: Callable) -> None:
    first = searched(run_cli, command("--evals", "8"))
    more = searched(run_cli, command("--evals", "12"))
    assert len(first["evaluations"]) == 8 and len(more["evaluations"]) == 12
    assert more["evaluations"][:8] == first["evaluations"]
    assert searched(run_cli, command("--evals", "12", "--overwrite"))["evaluations"][0]["number"] == 0


def test_no_seeds_and_no_refinement_need_no_table(run_cli: Callable, command: Callable) -> None:
    record = searched(run_cli, command("--no-seeds", "--no-refine", "--evals", "10"))
    assert record["table"] is None
    origins = [one["origin"] for one in record["evaluations"]]
    assert set(origins) <= {"seed:maximal", "seed:heuristic", "seed:minimal", "nsga2", "random"}


def test_seeds_belong_to_the_first_generation(run_cli: Callable, command: Callable, tmp_path: Path) -> None:
    """Optuna 5 gives a trial without draws no generation: seeds would be evaluated and never be parents."""
    from lonas_edge.search.storage import open_file

    searched(run_cli, command("--evals", "12"))
    storage = open_file(tmp_path / "out/study.log")
    [study] = storage.get_all_studies()
    trials = storage.get_all_trials(study._study_id)
    generations = [trial.system_attrs["NSGAIISampler:generation"] for trial in trials[:3]]
    assert generations == [0, 0, 0]


def test_loss(run_cli: Callable, command: Callable, llama: TinySource, data: Path) -> None:
    record = searched(run_cli, command("--quality", "loss", "--evals", "9"))
    source = llama.opened()
    batches = read_held_out(source, data, 8, 0, "alpaca").batches(load_tokenizer(llama.base))
    expected = load_super_network(source).losses([one["widths"] for one in record["evaluations"]], batches)
    assert [one["quality"] for one in record["evaluations"]] == pytest.approx(expected, rel=1e-5)


def test_several_weight_formats_share_a_front(
    run_cli: Callable, command: Callable, llama: TinySource, everything: Pairs
) -> None:
    record = searched(run_cli, command("--weight-format", "int8,int4", "--evals", "54"))
    source, evaluations = llama.opened(), record["evaluations"]
    assert record["settings"]["compressed"] and len(evaluations) == 54
    quality = {(tuple(one["widths"]), one["weight_format"]): one["quality"] for one in evaluations}
    for one in evaluations:
        assert one["cost"] == source.sizes(source.subnetwork(one["widths"])).bytes[one["weight_format"]]
    for widths, (kl, _) in everything.items():
        assert quality[widths, "int8"] == pytest.approx(kl, rel=0.1, abs=2e-3), "INT8 costs next to nothing"
        assert quality[widths, "int4"] > quality[widths, "int8"]
    assert {evaluations[number]["weight_format"] for number in record["front"]} >= {"int4"}


def test_one_format_is_scored_compressed_where_it_does_damage(run_cli: Callable, command: Callable) -> None:
    for name, compressed in (("int8", False), ("int4", True)):
        record = searched(run_cli, command("--weight-format", name, "--evals", "4", "--overwrite"))
        assert record["settings"]["compressed"] == compressed
        assert (record["evaluations"][0]["quality"] > 1e-3) == compressed, "of the maximal network"


def test_what_people_read(run_cli: Callable, command: Callable) -> None:
    ran = run_cli(*command("--evals", "8", "--pick", "bytes<=0.95x"))
    assert ran.code == 0, ran.err
    for text in ("8 networks evaluated", "maximal", "heuristic", "minimal", "front:1", "pick:bytes<=0.95x"):
        assert text in " ".join(ran.out.split())


def test_more_picks_when_it_goes_on(run_cli: Callable, command: Callable) -> None:
    """Networks at bounds that the first run did not have are solved and evaluated; what was evaluated stays."""
    first = searched(run_cli, command("--evals", "8", "--sampler", "random", "--no-refine"))
    more = searched(
        run_cli, command("--evals", "10", "--sampler", "random", "--no-refine", "--pick", "weights<=0.97x", "--resume")
    )
    assert [one["widths"] for one in more["evaluations"][:8]] == [one["widths"] for one in first["evaluations"]]
    origins = [one["origin"] for one in more["evaluations"]]
    assert not any("pick" in origin for origin in origins[:8])
    assert origins[8] == "seed:pick:weights<=0.97x"


def test_a_processor_with_units_for_bf16_is_told_of(run_cli: Callable, command: Callable, processor: Callable) -> None:
    processor(1e11, 6e11)
    told = "6.0 times as fast in bf16 (--torch-dtype bf16)"
    assert told in run_cli(*command("--dry-run")).err
    assert told not in run_cli(*command("--dry-run", "--torch-dtype", "fp32")).err, "it was asked for"
    assert told not in run_cli(*command("--dry-run", "--torch-dtype", "bf16")).err
    processor(1.5e11, 0.8e11)
    told = "1.9 times as fast in fp32 (--torch-dtype fp32)"
    assert told in run_cli(*command("--dry-run", "--torch-dtype", "bf16")).err
    assert told not in run_cli(*command("--dry-run")).err
