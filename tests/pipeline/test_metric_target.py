"""Targets in a metric of answers: which network a bisection chooses, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from device import Device
from pipeline_runs import QUICK, make_quick, plan_steps, write_data
from safetensors.torch import load_file
from tiny_models import TinyModels, TinySource

from lonas_edge.bench.statistics import Interval
from lonas_edge.cli.compress import compress
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.options import ExportOptions
from lonas_edge.network.source import open_source
from lonas_edge.pipeline import choice, training
from lonas_edge.pipeline.plan import Plan
from lonas_edge.pipeline.record import CompressRecord, Trial
from lonas_edge.pipeline.targets import MetricBound, auto_target, candidate_picks, parse_targets
from lonas_edge.pipeline.tasks import CLASSIFIER, EMBEDDING_MODEL, LANGUAGE_MODEL
from lonas_edge.search.picks import Pick
from lonas_edge.space.subnetwork import Subnetwork

TARGET = "exact-match>=-1"
ALLOWS = MetricBound.allows
LEVELS = ["kl<=0.005", "kl<=0.05"]


@pytest.fixture(scope="module")
def searched(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs for `TARGET` in a weight format, stopped before they choose: their data and working directories."""
    folders: dict[str, Path] = {}

    def stop(_plan: object) -> None:
        raise KeyboardInterrupt

    def run(weight_format: str) -> Path:
        if weight_format not in folders:
            folders[weight_format] = folder = tmp_path_factory.mktemp(weight_format)
            options = {**QUICK, "target": TARGET, "weight_format": weight_format}
            with pytest.MonkeyPatch.context() as monkeypatch:
                make_quick(monkeypatch)
                monkeypatch.setattr(choice, "_candidates", stop)
                with pytest.raises(LonasEdgeError, match="interrupted"):
                    compress(tiny_models.base("llama"), data=write_data(folder / "data.json"), output=folder / "out", **options)
        return folders[weight_format]

    return run


@pytest.fixture
def chosen(llama: TinySource, searched: Callable[[str], Path], quick: None, tmp_path: Path) -> Callable[..., CompressRecord]:
    """Continues such a run, also for other targets."""

    def run(target: Any = TARGET, weight_format: str = "int8_sym") -> CompressRecord:
        shutil.copytree(searched(weight_format), tmp_path, dirs_exist_ok=True)
        options = {**QUICK, "target": target, "weight_format": weight_format}
        return compress(llama.base, data=tmp_path / "data.json", output=tmp_path / "out", **options)

    return run


@pytest.fixture(autouse=True)
def many_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds count as they are, as with many held-out examples."""
    monkeypatch.setattr(MetricBound, "allows", lambda bound, difference, _examples: ALLOWS(bound, difference, 1000))


def scripted(monkeypatch: pytest.MonkeyPatch, points: dict[str, float]) -> list[str]:
    """Replace the trials by differences in points; return the picks in the order in which they are tried."""
    tried: list[str] = []

    def trial(_plan: object, _bound: object, pick: Pick, *_given: object) -> Trial:
        tried.append(pick.expression)
        value = points[pick.expression]
        return Trial(pick.expression, f"trial {len(tried)}", Interval(value, value - 2, value + 2))

    monkeypatch.setattr(choice, "_try", trial)
    adapter, networks = Plan.adapter, dict[int, tuple[Path, Subnetwork]]()  # of picks that may have the same network

    def candidates(plan: Plan) -> list[tuple[Pick, Subnetwork]]:
        found = [(pick, plan.network(pick)) for pick in (Pick(name, "kl", float(name[4:])) for name in points)]
        networks.update({id(network): (Path(pick.file), network) for pick, network in found})
        return found

    monkeypatch.setattr(choice, "_candidates", candidates)
    monkeypatch.setattr(
        Plan, "adapter", lambda plan, given: networks[id(given)][0] if id(given) in networks else adapter(plan, given)
    )
    return tried


@pytest.mark.parametrize(
    ("points", "best", "tried"),
    [
        ([0.5, -1], "kl<=0.05", [0, 1]),
        pytest.param([-1, -1.2], "kl<=0.005", [0, 1], marks=pytest.mark.slow),
        ([-2, 3], None, [0]),  # more pruned networks are not tried
        pytest.param([-0.9], "kl<=0.005", [0], marks=pytest.mark.slow),
        pytest.param([], None, [], marks=pytest.mark.slow),
    ],
)
def test_the_most_pruned_network_within_the_bound(
    tmp_path: Path,
    chosen: Callable[..., CompressRecord],
    monkeypatch: pytest.MonkeyPatch,
    points: list[float],
    best: str | None,
    tried: list[int],
) -> None:
    order = scripted(monkeypatch, dict(zip(LEVELS, points, strict=False)))
    record = chosen()

    found = json.loads((tmp_path / "out/steps/choice/exact-match-1/choice.json").read_text())
    assert found["chosen"] == best
    assert order == [LEVELS[index] for index in tried]
    assert [each.pick for each in record.trials[TARGET]] == [LEVELS[index] for index in sorted(tried)]
    widths = json.loads((tmp_path / "out/steps/choice/exact-match-1/subnetwork.json").read_text())["widths"]
    name = f"{best.replace('<=', '-')}.json" if best else None
    subnetworks = tmp_path / "out/steps/search/subnetworks"
    assert widths == json.loads((subnetworks / (name or "kl-0.005.json")).read_text())["widths"] or best is None
    ours = record.networks[-1]
    assert (ours.target, ours.folder) == (TARGET, "model")
    assert best or not any(part.kept < part.full for layer in ours.removed for part in layer)
    assert ours.name == ("compressed INT8" if best else f"unpruned INT8 ({TARGET})")
    assert any("No candidate met exact-match>=-1" in warning for warning in record.warnings) == (best is None)


@pytest.mark.parametrize(
    ("target", "difference", "examples", "met"),
    [
        ("exact-match>=-1", -100 / 60, 60, True),  # one answer
        ("exact-match>=-1", -200 / 60, 60, False),
        ("exact-match>=-1", -200 / 210, 210, True),
        ("exact-match>=-1", -300 / 210, 210, False),
        ("exact-match>=0", -100 / 60, 60, False),
        ("spearman>=-1", -1.1, 60, False),
    ],
)
def test_one_of_few_answers_may_be_lost(target: str, difference: float, examples: int, met: bool) -> None:
    name, _, bound = target.partition(">=")
    trial = Trial("kl<=0.02", "", Interval(difference, -9, 9))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(MetricBound, "allows", ALLOWS)
        plan: Any = SimpleNamespace(counts={"held_out": examples})
        assert choice._met(plan, MetricBound(target, name, float(bound)), trial) == met


@pytest.mark.parametrize(("candidates", "unpruned", "trials"), [(2, False, 2), (2, True, 2), (3, False, 2), (3, True, 3)])
def test_the_number_of_trials(candidates: int, unpruned: bool, trials: int) -> None:
    """Of a bisection, at most: each halves the networks that may be the result, or that none is."""
    plan: Any = SimpleNamespace(candidates=range(candidates), tries_unpruned=unpruned)
    assert Plan.most_trials.fget(plan) == trials  # type: ignore[attr-defined]


def test_targets_in_the_same_metric_share_trials(
    chosen: Callable[..., CompressRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = scripted(monkeypatch, dict(zip(LEVELS, [-1.2, -2.9], strict=True)))
    record = chosen([TARGET, "exact-match>=-3"])

    assert order == LEVELS
    tried = {target: [each.pick for each in trials] for target, trials in record.trials.items()}
    assert tried == {TARGET: LEVELS[:1], "exact-match>=-3": LEVELS}


@pytest.mark.parametrize(("unpruned", "rounded", "head", "name"), [
    (-1, None, -1, "compressed INT4"),
    (-2, -1, -1.1, f"unpruned INT4 by GPTQ ({TARGET})"),
    (-2, -1, -1, f"unpruned INT4 by GPTQ ({TARGET})"),
    (-2, -2, None, f"unpruned INT8 ({TARGET})"),
])  # fmt: skip
def test_the_unpruned_network_comes_before_int8(
    llama: TinySource,
    tmp_path: Path,
    chosen: Callable[..., CompressRecord],
    monkeypatch: pytest.MonkeyPatch,
    unpruned: float,
    rounded: float | None,
    head: float | None,
    name: str,
) -> None:
    """No pruned network meets the bound: the unpruned one is tried in INT4, recovered and by GPTQ, before it stays INT8.

    What is chosen is tried with an INT4 head.
    """
    tried = list[str]()

    def trial(_plan: object, _bound: object, pick: Pick, *_given: object) -> Trial:
        tried.append(pick.expression)
        value = {"unpruned": unpruned, "gptq": rounded or 0.0, "int4-head": head or 0.0}.get(pick.expression, -9.0)
        return Trial(pick.expression, "", Interval(value, value, value))

    monkeypatch.setattr(choice, "_try", trial)
    monkeypatch.setattr(choice, "_score", trial)
    monkeypatch.setattr(choice, "open_source", lambda *_given: None)
    record = chosen(weight_format="int4_sym")

    assert "unpruned" in tried and ("gptq" in tried) == (rounded is not None) and ("int4-head" in tried) == (head is not None)
    assert [each.pick for each in record.trials[TARGET]][-1] == ("int4-head" if head else "unpruned")
    of_head = Manifest.read(tmp_path / "out/model/lonas_edge.json").head
    assert (of_head and of_head.weight_format) == ("int4" if head == -1 else None)
    ours = record.networks[-1]
    assert (ours.name, ours.weight_format) == (name, "int8" if rounded == -2 else "int4_sym")
    assert not any(part.kept < part.full for layer in ours.removed for part in layer)
    assert (tmp_path / "out/steps/recovered/exact-match-1/adapter_config.json").exists() == (rounded is None)
    commands = {step.name.split()[0]: step.command for step in record.steps}
    assert bool(commands["recover"]) == (rounded is None)
    steps, made = tmp_path / "out/steps", tmp_path / "out/model"
    of_unpruned = f"lonas-edge export {steps / 'lora'} --model {llama.base} --subnet maximal --output {made}"
    assert (of_unpruned in commands["export"]) == (rounded is not None)
    assert (f"--calibration {steps / 'data/train.jsonl'}" in commands["export"]) == (rounded == -1 or head == -1)
    assert ("--head-format int4" in commands["export"]) == (head == -1)
    assert any("is the unpruned model in INT4 by GPTQ" in warning for warning in record.warnings) == (rounded == -1)


def test_gptq_that_fails_costs_its_trial_alone(chosen: Callable[..., CompressRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_given: object) -> Trial:
        raise LonasEdgeError("too few examples")

    monkeypatch.setattr(choice, "_candidates", lambda _plan: [])
    monkeypatch.setattr(choice, "_score", fails)
    record = chosen(weight_format="int4_sym")
    assert (record.networks[-1].name, record.trials[TARGET]) == (f"unpruned INT8 ({TARGET})", ())


@pytest.mark.slow
def test_a_trial_by_gptq(
    llama: TinySource, tmp_path: Path, chosen: Callable[..., CompressRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is exported and scored: the result is that export."""
    monkeypatch.setattr(choice, "_candidates", lambda _plan: [])
    record = chosen("exact-match>=-100", "int4_sym")
    trial, of_head = record.trials["exact-match>=-100"]
    assert (trial.pick, trial.network) == ("gptq", "unpruned by GPTQ") and -100 <= trial.difference.value <= 100
    assert (of_head.pick, of_head.network) == ("int4-head", "the chosen one with an INT4 head")
    source, expected = open_source(str(tmp_path / "out/steps/lora"), str(llama.base)), tmp_path / "expected"
    calibration = tmp_path / "out/steps/data/train.jsonl"
    options = ExportOptions(weight_format="int4_sym", head_format="int4", calibration=calibration)
    export(source, source.select(None), expected, options)
    assert (expected / "openvino_model.bin").read_bytes() == (tmp_path / "out/model/openvino_model.bin").read_bytes()


def test_an_unpruned_trial_is_trained_exported_and_scored(
    chosen: Callable[..., CompressRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "candidates", [])
    record = chosen("exact-match>=-100", "int4_sym")
    trial, of_head = record.trials["exact-match>=-100"]
    assert of_head.pick == "int4-head"
    assert (trial.pick, trial.network) == ("unpruned", "unpruned") and -100 <= trial.difference.value <= 100
    assert record.networks[-1].name == "compressed INT4"


def test_a_metric_of_0_bounds_nothing(chosen: Callable[..., CompressRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON of a model that writes something before each answer: every network would meet the bound."""
    monkeypatch.setattr(choice, "answers", lambda measured, *_: ({"m": dict.fromkeys(measured, Interval(0, 0, 0))}, []))
    with pytest.raises(LonasEdgeError, match="exact-match of the unpruned model is 0 on the held-out examples"):
        chosen("exact-match>=-100", "int4_sym")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories of all trainings."""
    monkeypatch.setattr("lonas_edge.pipeline.targets._LEVELS", (0.02, 0.4))  # a block of this model costs more than 0.05
    names, train = list[str](), training.train

    def counted(inputs: Any, output: Path, *given: Any) -> Any:
        names.append(output.name)
        return train(inputs, output, *given)

    monkeypatch.setattr(training, "train", counted)
    return names


def test_a_trial_is_trained_exported_and_scored(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, trainings: list[str]
) -> None:
    """Any difference is within the bound, so the most pruned candidate is chosen; it is not trained again.

    A later run with another metric, and with a bound on the KL of a network that was tried, has its adapters already.
    """
    out, targets = tmp_path / "out", ["exact-match>=-100", "token-f1>=-100", "kl<=0.4"]
    record = compress(llama.base, data=data, output=out, **{**QUICK, "target": targets[0]})

    trials = record.trials["exact-match>=-100"]
    assert trials and all(-100 <= each.difference.value <= 100 for each in trials)
    removed = sum(part.kept == 0 for layer in record.networks[-1].removed for part in layer)
    assert trials[-1].network.startswith(f"{removed} block{'s' * (removed > 1)} removed, 0.")
    names = sorted(path.name for path in (out / "steps/choice/exact-match-100").iterdir())
    assert names == ["choice.json", "subnetwork.json", "trials.json"]
    assert len(trainings) == 1 + len(trials)
    assert record.metric == "exact-match"
    assert any("held-out examples say little" in warning for warning in record.warnings)

    again = compress(llama.base, data=data, output=out, **{**QUICK, "target": targets})
    assert len(trainings) == 1 + len(trials)
    assert [each.pick for each in again.trials["token-f1>=-100"]] == [each.pick for each in trials]
    [first, *others] = [load_file(path / "adapter_model.safetensors") for path in (out / "steps/recovered").iterdir()]
    assert all(torch.equal(tensor, other[name]) for other in others for name, tensor in first.items())


def test_a_candidate_that_saves_hardly_anything_is_not_tried(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this device, each group costs a hundredth of the rest. The search finds networks, but none is recovered."""
    Device(lambda widths: 100.0 + sum(width > 0 for width in widths)).install(monkeypatch, tmp_path / "cache")
    record = compress(llama.base, data=data, output=tmp_path / "out", **{**QUICK, "target": "exact-match>=-100"})
    assert any(0.95 < each.cost < 1 and each.picks for each in record.candidates)
    assert (record.trials["exact-match>=-100"], len(trainings)) == ((), 1)
    assert record.networks[-1].name == "unpruned INT8 (exact-match>=-100)"


def test_an_interrupted_choice_continues(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was trained when it was stopped is not trained again."""
    scored, answers = list[str](), choice.answers

    def interrupted(measured: dict[str, Path], *given: Any) -> Any:
        scored.append(list(measured)[-1])
        if len(scored) == 1:
            raise KeyboardInterrupt
        return answers(measured, *given)

    monkeypatch.setattr(choice, "answers", interrupted)
    options = {**QUICK, "target": "exact-match>=-100"}
    with pytest.raises(LonasEdgeError, match="interrupted"):
        compress(llama.base, data=data, output=tmp_path / "out", **options)
    record = compress(llama.base, data=data, output=tmp_path / "out", **options)
    assert scored[0] == scored[1] and len(scored) == 1 + len(record.trials["exact-match>=-100"])
    assert len(trainings) == len(set(trainings)) == 1 + len(record.trials["exact-match>=-100"])


@pytest.mark.parametrize(
    ("target", "metric", "problem"),
    [
        ("bleu>=-1", None, "MEASURE is one of kl, tpot, ttft, end-to-end, latency, macs, weights, bytes, exact-match, json"),
        ("metric>=-1", None, "pass --metric"),
        ("exact-match>=1", None, "expected a bound of 0 or less"),
        ("exact-match>=-1x", None, "expected exact-match=-1, in points below the unpruned INT8 model"),
        ("kl<=0.1", "bleu", "--metric bleu: unknown"),
        ("kl<=0.1", "none.py:score", "there is no such file"),
    ],
)
def test_wrong_targets(refused: Callable[..., str], target: str, metric: str | None, problem: str) -> None:
    assert problem in refused(target=target, metric=metric)


def test_metrics_of_encoders() -> None:
    """Those of labels; the candidates remove shares of what can be removed, in MACs."""
    problems = {
        EMBEDDING_MODEL: ("exact-match>=-1", "accuracy=-1"),
        CLASSIFIER: ("spearman=-1", "metric=-1"),
        LANGUAGE_MODEL: ("accuracy=-1",),
    }
    for profile, targets in problems.items():
        for target in targets:
            with pytest.raises(LonasEdgeError, match=f"{target}: not a metric of this {profile.name}; bound "):
                parse_targets((target,), profile)
    for profile, target in ((CLASSIFIER, "accuracy"), (EMBEDDING_MODEL, "spearman")):
        assert list(parse_targets((f"{target}=-1",), profile)) == [f"{target}>=-1"]
    found = [pick.expression for pick in candidate_picks(CLASSIFIER, 0.2)]
    assert found == [f"macs<={share}x" for share in (0.92, 0.76, 0.52)]
    # not 0.998, below the smallest network, and each once
    assert [pick.bound for pick in candidate_picks(CLASSIFIER, 0.9981)] == [1.0, 0.999]
    assert [pick.expression for pick in candidate_picks(LANGUAGE_MODEL, 0.3)] == LEVELS


def test_spellings() -> None:
    for targets in (("exact-match >= -1.0", "tpot<=0.7x"), ("exact-match=-1", "tpot=0.7x")):
        assert list(parse_targets(targets, LANGUAGE_MODEL)) == [TARGET, "tpot<=0.7x"]


def write_answers(path: Path, count: int, answer: str = "{}") -> Path:
    rows = [{"instruction": f"Is it {number}?", "output": answer.replace("{}", str(number))} for number in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_auto_gives_way_to_the_metrics_of_targets() -> None:
    """`--metric auto` is the metric that is chosen anyway: it is not measured twice under two names."""
    bounds = {"json>=-1": MetricBound("json>=-1", "json", -1)}
    options = SimpleNamespace(metric="auto")
    assert Plan.metrics.fget(SimpleNamespace(options=options, bounds=bounds)) == ("json",)  # type: ignore[attr-defined]
    assert Plan.metrics.fget(SimpleNamespace(options=options, bounds={})) == ("auto",)  # type: ignore[attr-defined]


def test_auto_bounds_the_metric_where_enough_answers_are_held_out(tmp_path: Path) -> None:
    """Of the data a tenth is held out, of --eval-data all; plain texts and few answers leave the KL divergence."""
    many, few = write_answers(tmp_path / "many.jsonl", 500), write_answers(tmp_path / "few.jsonl", 499)
    objects = write_answers(tmp_path / "objects.jsonl", 50, '{"number": "many"}')
    blank, repeated = tmp_path / "blank.jsonl", tmp_path / "repeated.jsonl"
    blank.write_text(many.read_text() + "\n" + json.dumps({"instruction": "Is it?", "output": " "}))
    repeated.write_text(few.read_text() + "\n" + few.read_text())
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"text": f"text {number}"}) for number in range(600)))
    for data, eval_data, metric, expected in (
        (many, None, None, "exact-match>=-1"),
        (few, None, None, "kl<=0.005"),
        (few, objects, None, "json>=-1"),
        (many, None, "token-f1", "token-f1>=-1"),
        (many, None, "scores.py:own", "kl<=0.005"),
        (blank, None, None, "exact-match>=-1"),
        (repeated, None, None, "kl<=0.005"),
        (texts, None, None, "kl<=0.005"),
    ):
        assert auto_target(LANGUAGE_MODEL, data, eval_data, metric) == expected
    assert auto_target(EMBEDDING_MODEL, texts, None, None) == "kl<=0.2"


def test_a_run_of_auto(llama: TinySource, tmp_path: Path, quick: None) -> None:
    """The target has the name of its bound."""
    steps = plan_steps(llama.base, tmp_path, write_answers(tmp_path / "many.jsonl", 500), target=("auto",))
    assert "choose exact-match>=-1" in steps and "recover exact-match>=-1" in steps
