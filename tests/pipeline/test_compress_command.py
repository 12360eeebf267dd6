"""`compress` on a tiny model: its output, and what a second run repeats."""

import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino_genai
import pytest
import torch
from pipeline_runs import PROBE, QUICK, Finished, forbidden, plan_steps, write_data
from safetensors.torch import load_file, save_file
from tiny_models import CASES, LAYERS, TinyModels, TinySource, tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from lonas_edge.bench import machine
from lonas_edge.cli.compress import compress
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.exported import open_exported
from lonas_edge.pipeline import baselines, run, stages, training
from lonas_edge.pipeline.options import CompressOptions
from lonas_edge.pipeline.record import CompressRecord
from lonas_edge.pipeline.run import compress_model
from lonas_edge.pipeline.steps import Step
from lonas_edge.pipeline.tasks import EMBEDDING_MODEL, LANGUAGE_MODEL, Profile
from lonas_edge.training.elastic_trainer import ElasticTrainer

RECOVER = "recover weights<=0.95x"


def test_the_output_runs_and_is_smaller(finished: Finished) -> None:
    out, record = finished.folder / "out", finished.record
    assert CompressRecord.read(out / "compress.json") == record
    baseline, *_, ours = record.networks
    assert ours.folder == "model"
    assert ours.parameters < baseline.parameters
    assert any(part.kept == 0 for layer in ours.removed for part in layer)
    assert open_exported(out / "model").own_manifest.weight_format == "int8_sym"
    text = openvino_genai.LLMPipeline(out / "model", "CPU").generate("What", max_new_tokens=3)
    assert isinstance(str(text), str)
    names = {path.name for path in out.iterdir()}
    assert names == {"model", "steps", "compress.json", "report.md", "report.html", "report.png"}
    assert not (out / "steps" / "baselines").exists()
    table = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("| ")][:4]
    assert len(table) == 4 and all(line in (out / "model/README.md").read_text() for line in table)
    assert [step.name for step in record.steps] == [
        "fine-tune", "space", "search", "baselines", RECOVER, "export weights<=0.95x", "measure",
    ]  # fmt: skip
    assert all(step.seconds > 0 for step in record.steps)
    assert [step.name for step in record.steps if step.estimated_seconds] == ["fine-tune", "search", RECOVER]


@pytest.mark.parametrize("case", ["llama", "phi3"])  # gate and up alone, and fused
def test_mlps_get_narrower(case: str, tmp_path: Path, data: Path, quick: None, run_cli: Callable[..., Any]) -> None:
    """Widths are multiples of the group size, 64; channels are sorted for the training examples by the printed command."""
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**CASES[case], "intermediate_size": 320}))
    base.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    compress(tmp_path / "base", data=data, output=tmp_path / "out", **{**QUICK, "target": "weights<=0.7x"})
    subnet = json.loads((tmp_path / "out/model/subnetwork.json").read_text())
    widths = [width for name, width in subnet["widths"].items() if name.endswith(".mlp.width")]
    assert len(widths) == LAYERS and set(widths) <= {320, 192, 128} and min(widths) < 320

    [made] = [step for step in CompressRecord.read(tmp_path / "out/compress.json").steps if step.name == "space"]
    steps = tmp_path / "out/steps"
    assert f"--data {steps}/data/train.jsonl" in made.command and "--ratios 1,0.75,0.5,0.25" in made.command
    first, second = again(made.command, run_cli, tmp_path / "again.json")
    assert first.read_bytes() == second.read_bytes()
    assert len(json.loads(first.read_text())["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"]["channel_order"]) == LAYERS


def test_another_processor(finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured again without asking; trainings stay."""
    out = finished.copied(tmp_path / "copy")
    here = machine.describe("CPU")
    monkeypatch.setattr(machine, "describe", lambda _device: {**here, "processor": "Another"})
    monkeypatch.setattr(training, "train", forbidden)
    compress(finished.source.base, data=out.parent / "data.json", output=out, **QUICK)
    assert json.loads((out / "compress.json").read_text())["machine"]["processor"] == "Another"


def test_another_metric(finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the measurement is repeated, without asking."""
    out = finished.copied(tmp_path / "copy")
    monkeypatch.setattr(training, "train", forbidden)
    record = compress(finished.source.base, data=out.parent / "data.json", output=out, metric="chrf", **QUICK)
    assert (finished.record.metric, record.metric) == ("exact-match", "chrf")
    assert all("chrf" in network.quality for network in record.networks)


def test_the_printed_baselines_are_those_of_the_run(finished: Finished) -> None:
    """The printed directories are those of the output."""
    [step] = [step for step in finished.record.steps if step.name == "baselines"]
    out, words = finished.folder / "out", shlex.split(step.command.splitlines()[1])
    assert words[:3] == ["optimum-cli", "export", "openvino"]
    assert str(out / "steps" / "baselines" / "int8") in words
    assert words[words.index("--task") + 1] == "text-generation-with-past"
    [measured] = [step for step in finished.record.steps if step.name == "measure"]
    assert shlex.split(measured.command)[2] == str(out / "model")


def test_the_commands_of_the_record_give_the_same_network(
    finished: Finished, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Trainings, search and export, by the printed commands with other outputs: the same widths, the same bits."""
    names = ("fine-tune", "search", "recover", "export")
    steps = [step for step in finished.record.steps if step.name.split()[0] in names]
    assert len(steps) == 4
    for step in steps:
        made, output = again(step.command, run_cli, tmp_path / step.name.split()[0])
        if step.name == "search":
            expected, actual = (folder / "subnetworks" / "weights-0.95x.json" for folder in (made, output))
            assert json.loads(actual.read_text())["widths"] == json.loads(expected.read_text())["widths"]
            first, second = (json.loads((folder / "search.json").read_text())["evaluations"] for folder in (made, output))
            assert [entry["widths"] for entry in first] == [entry["widths"] for entry in second]
        else:
            name = "openvino_model.bin" if step.name.startswith("export") else "adapter_model.safetensors"
            assert (made / name).read_bytes() == (output / name).read_bytes()


def again(command: str, run_cli: Callable[..., Any], output: Path) -> tuple[Path, Path]:
    """Run a printed command with another output; return its output and this one."""
    words = shlex.split(command)[1:]
    place = words.index("--output") + 1
    made, words[place] = Path(words[place]), str(output)
    run_cli(*words).ok()
    return made, output


def test_the_same_command_again_changes_nothing(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = finished.copied(tmp_path / "copy")
    monkeypatch.setattr(training, "train", forbidden)
    monkeypatch.setattr(baselines, "_SHARE", 0.0)  # no GPTQ, as in the finished run
    for target in ("weights<=0.95x", "weights <= 0.950X"):
        options = {**QUICK, "target": target}
        record = compress(finished.source.base, data=out.parent / "data.json", output=out, **options)
        assert record == CompressRecord.read(out / "compress.json")
        assert record.networks == finished.record.networks
        assert [step.name for step in record.steps] == [step.name for step in finished.record.steps]
    assert not out.with_name("out.partial").exists()


def test_another_target_uses_the_finished_steps(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that others put into the output stay."""
    out = finished.copied(tmp_path / "copy")
    (out / "bench").mkdir()
    (out / "bench" / "bench.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr(stages, "open_inputs", forbidden)
    targets = ["weights <= 0.950X", "kl<=100"]
    record = compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "target": targets})
    assert [network.target for network in record.networks] == [None, None, "weights<=0.95x", "kl<=100"]
    assert [step.name for step in record.steps][4:8] == [RECOVER, "export weights<=0.95x", "recover kl<=100", "export kl<=100"]
    assert [network.folder for network in record.networks] == [None, None, "weights-0.95x", "kl-100"]
    assert not (out / "model").exists()
    for folder in ("weights-0.95x", "kl-100"):
        open_exported(out / folder)
    before, after = (folder / "steps" / "recovered" / "weights-0.95x" for folder in (finished.folder / "out", out))
    for name in ("adapter_model.safetensors", "training.json"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert (out / "bench" / "bench.json").read_text() == "{}"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_second_run_keeps_the_first_network(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves aside, and the report compares both; a third run keeps both."""
    out = finished.copied(tmp_path / "copy")
    weights = (out / "model" / "openvino_model.bin").read_bytes()
    monkeypatch.setattr(stages, "open_inputs", forbidden)
    for target, folders in (
        ("kl<=100", {"kl<=100": "model", "weights<=0.95x": "model-weights-0.95x"}),
        ("kl<=90", {"kl<=90": "model", "kl<=100": "model-kl-100", "weights<=0.95x": "model-weights-0.95x"}),
    ):
        record = compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "target": target})
        assert {network.target: network.folder for network in record.networks if network.target} == folders
        assert (out / "model-weights-0.95x" / "openvino_model.bin").read_bytes() == weights
        assert {network.name for network in record.networks if network.target} == {
            f"compressed INT8 ({name})" for name in folders
        }
        assert {path.name for path in out.iterdir() if path.name.startswith("model")} == set(folders.values())
    with pytest.raises(LonasEdgeError, match=r"keeps .*, which a search by weights found. Bound tpot in another"):
        compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "target": "tpot<=0.9x"})


def test_a_file_in_the_way_of_a_kept_network(finished: Finished, tmp_path: Path, quick: None) -> None:
    out = finished.copied(tmp_path / "copy")
    (out / "model-weights-0.95x").mkdir()
    (out / "model-weights-0.95x" / "notes.txt").write_text("mine")
    with pytest.raises(LonasEdgeError, match=r"model-weights-0.95x: exists, and this run would write it. Rename it."):
        compress(finished.source.base, data=out.parent / "data.json", output=out, **{**QUICK, "target": "kl<=100"})
    assert (out / "model-weights-0.95x" / "notes.txt").read_text() == "mine"


def test_a_model_of_the_hub(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps get its id and revision; the files are in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_given, **_options: str(llama.base))
    options = CompressOptions(source="me/tiny", data=data, output=tmp_path / "out", prompt_len=8, dry_run=True)
    announced: list[Sequence[Step]] = []
    compress_model(options, announce=lambda steps, _needed: announced.append(steps))
    assert f"me/tiny@{llama.base.name}" in announced[0][0].command


@pytest.mark.parametrize(
    ("profile", "lengths", "vocabulary", "expected"),
    [
        *((LANGUAGE_MODEL, (60, longest), 49_152, (16, at_once)) for longest, at_once in ((256, 16), (257, 8), (1024, 4))),
        *((LANGUAGE_MODEL, (100,), size, (16, at_once)) for size, at_once in ((49_152, 16), (151_936, 8), (262_144, 4))),
        *((LANGUAGE_MODEL, (mean,), 100, (batch, batch)) for mean, batch in ((1, 64), (23, 64), (24, 32), (46, 32), (47, 16))),
        (LANGUAGE_MODEL, (9000,), 49_152, (16, 1)),
        (LANGUAGE_MODEL, (10, 10, 70), 49_152, (32, 32)),
        *((EMBEDDING_MODEL, (longest,), 250_002, (32, at_once)) for longest, at_once in ((5, 32), (1024, 32), (1025, 16))),
    ],
)
def test_batches_of_a_recovery(profile: Profile, lengths: tuple[int, ...], vocabulary: int, expected: tuple[int, int]) -> None:
    """Short examples have larger steps. Memory grows with the tokens computed at once, and with their logits."""
    assert training.batches(profile, lengths, lengths if profile is LANGUAGE_MODEL else (), vocabulary) == expected


@pytest.mark.parametrize(("span", "at_once"), [(65, 16), (70, 8), (130, 8)])
def test_memory_of_logits(span: int, at_once: int) -> None:
    """16 examples have logits at 81 positions: 16 * 81 * 151,936 / 50,000 is below 4,096."""
    assert training.batches(LANGUAGE_MODEL, (60, 130), (20, span), 151_936) == (16, at_once)


def test_a_dry_run_knows_the_finished_steps(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It announces those of a new target alone, times nothing and changes no file."""
    out = finished.copied(tmp_path / "copy")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("lonas_edge.pipeline.run.time_steps", forbidden)
    options = CompressOptions(
        source=str(finished.source.base),
        data=out.parent / "data.json",
        output=out,
        dry_run=True,
        **{**QUICK, "target": ("kl<=100",)},
    )
    announced: list[list[str]] = []
    assert compress_model(options, announce=lambda steps, _needed: announced.append([step.name for step in steps])) is None
    assert announced == [["search", "baselines", "recover kl<=100", "export kl<=100", "measure"]]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("target", "timed"), [("tpot<=0.7x", True), ("kl<=0.2", True), ("macs<=0.9x", False)])
def test_lengths_of_a_timed_search(
    target: str, timed: bool, llama: TinySource, tmp_path: Path, data: Path, quick: None
) -> None:
    """The search depends on them where it minimizes a latency: the bounded one, or TPOT without a bound on a cost."""
    steps = plan_steps(llama.base, tmp_path, data, target=(target,), new_tokens=4)
    assert steps["search"].settings.get("--prompt-len") == (8 if timed else None)
    lengths = {"--prompt-len": 8, "--new-tokens": 4}
    assert lengths.items() <= steps["measure"].settings.items()


def test_the_precision_of_an_earlier_run_stays(
    finished: Finished, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was fp32; other steps are timed for INT4, and would now choose bf16. The fine-tuning is not repeated."""
    out = finished.copied(tmp_path / "copy")
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "weight_format": "int4_sym"}
    timed = lambda *given: replace(PROBE, precision=given[5] or "bf16")  # noqa: E731
    monkeypatch.setattr("lonas_edge.pipeline.run.time_steps", timed)
    with pytest.raises(LonasEdgeError, match="--weight-format: was int8_sym, is int4_sym") as caught:
        compress(finished.source.base, **options)
    assert "--dtype" not in str(caught.value)

    def stop(*_given: object) -> None:
        raise LonasEdgeError("stopped")

    monkeypatch.setattr(stages, "open_inputs", forbidden)
    monkeypatch.setattr(stages, "make_plan", stop)
    with pytest.raises(LonasEdgeError, match="search: stopped"):
        compress(finished.source.base, **options, overwrite=True)
    probed = json.loads((out.with_name("out.partial") / "steps" / "probe.json").read_text())
    assert probed["precision"] == "fp32"


def test_changed_options_need_overwrite(finished: Finished, tmp_path: Path, quick: None) -> None:
    """Each is named once with all steps that it affects, and only these are repeated."""
    out = finished.copied(tmp_path / "copy")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_data(tmp_path / "other.json", 90)
    for changes, expected in (
        ({"recovery_steps": 5}, [f"--steps: was 4, is 5 ({RECOVER})"]),
        ({"epochs": 2}, ["--epochs: was auto, is 2.0 (fine-tune)"]),
        ({"seed": 7}, [f"--seed: was 42, is 7 (fine-tune, search, {RECOVER})"]),
        ({"data": tmp_path / "other.json"}, ["(fine-tune, space, search, baselines)"]),
        ({"weight_format": "int4_sym"}, ["--weight-format: was int8_sym, is int4_sym (search, export weights<=0.95x)"]),
    ):
        with pytest.raises(LonasEdgeError, match="--overwrite") as caught:
            compress(finished.source.base, **{"data": out.parent / "data.json", "output": out, **QUICK, **changes})
        assert all(text in str(caught.value) for text in expected)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert not out.with_name("out.partial").exists()
    options = {"data": out.parent / "data.json", "output": out, **QUICK, "recovery_steps": 5}
    record = compress(finished.source.base, **options, overwrite=True)
    assert record.curves[1].held_out[-1][0] == 5
    assert record.curves[0] == finished.record.curves[0]


def test_weights_that_were_replaced(finished: Finished, tmp_path: Path, quick: None) -> None:
    """Another model with the same configuration is not the source of the finished run."""
    out = finished.copied(tmp_path / "copy")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = tmp_path / "other"
    shutil.copytree(finished.source.base, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(LonasEdgeError, match=r"compressed; the files of this SOURCE are others(.|\n)*Choose another --output"):
        compress(other, data=out.parent / "data.json", output=out, **QUICK)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_continues_after_an_interruption(
    finished: Finished, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the recovery: the error says how to continue, and the result is that of the run without interruption."""
    options = {"data": data, "output": tmp_path / "out", **QUICK}
    step = ElasticTrainer.training_step

    def interrupted(self: ElasticTrainer, *given: Any, **others: Any) -> Any:
        if self.teacher is not None and self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *given, **others)

    with monkeypatch.context() as patch:
        patch.setattr(ElasticTrainer, "training_step", interrupted)
        with pytest.raises(LonasEdgeError, match=r"interrupted(.|\n)*The same command") as caught:
            compress(finished.source.base, **options)
    assert "--resume" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stages, "open_inputs", forbidden)
    record = compress(finished.source.base, **options)
    assert record.curves == finished.record.curves
    made, expected = (
        folder / "steps" / "recovered" / "weights-0.95x" for folder in (tmp_path / "out", finished.folder / "out")
    )
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (made, expected)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_an_adapter_of_plain_peft_in_int4(tiny_models: TinyModels, tmp_path: Path, data: Path, quick: None) -> None:
    """`q_proj` and `v_proj` alone, without a record of ours: the fine-tuning is skipped, the base is named by --model."""
    source = tiny_models.source("llama")
    adapter = tiny_models.adapter("llama", target_modules=["q_proj", "v_proj"], rank_pattern={}, r=4)
    options = {**QUICK, "weight_format": "int4_sym"}
    record = compress(adapter, model=source.base, data=data, output=tmp_path / "out", **options)
    assert [step.name.split()[0] for step in record.steps] == ["space", "search", "baselines", "recover", "export", "measure"]
    assert record.networks[-1].weight_format == "int4_sym"
    trained = json.loads((tmp_path / "out" / "steps" / "recovered" / "weights-0.95x" / "training.json").read_text())
    assert trained["options"]["weight_format"] == "int4_sym"
    assert trained["teacher"]


@pytest.mark.slow
def test_a_smaller_vocabulary(finished: Finished, tmp_path: Path, data: Path, quick: None, run_cli: Callable[..., Any]) -> None:
    """Search and recovery work on the trimmed base; the baselines keep all tokens.

    Without --vocabulary, the steps that used the trimmed base are named and repeated; the fine-tuning stays.
    """
    out = tmp_path / "out"
    options = {"data": data, "output": out, **QUICK}
    record = compress(finished.source.base, **options, vocabulary=262)
    assert [step.name.split()[0] for step in record.steps][:3] == ["fine-tune", "trim", "space"]
    [command] = [step.command for step in record.steps if step.name == "trim"]
    made, output = again(command, run_cli, tmp_path / "base")
    assert (output / "vocabulary.json").read_bytes() == (made / "vocabulary.json").read_bytes()
    assert len(json.loads((made / "vocabulary.json").read_text())["kept"]) == 262
    assert json.loads((out / "model" / "config.json").read_text())["vocab_size"] == 262
    losses = [made.networks[0].quality["loss"].value for made in (record, finished.record)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert record.networks[2].quality["loss"].difference is not None
    with pytest.raises(LonasEdgeError, match=r"steps before: was .*trim.* \(search\)"):
        compress(finished.source.base, **options)
    record = compress(finished.source.base, **options, overwrite=True)
    assert json.loads((out / "model" / "config.json").read_text())["vocab_size"] > 262
    assert record.networks[-1].parameters == finished.record.networks[-1].parameters
    assert record.tokens_per_text == 1


@pytest.fixture
def super_adapter(llama: TinySource, tmp_path: Path) -> Path:
    """An adapter with its search space in its directory."""
    shutil.copytree(llama.adapter, tmp_path / "adapter")
    shutil.copy(llama.space, tmp_path / "adapter/nncf_config.json")
    return tmp_path / "adapter"


@pytest.mark.slow
def test_a_super_adapter_keeps_its_search_space(
    super_adapter: Path, llama: TinySource, tmp_path: Path, data: Path, quick: None
) -> None:
    options = {**QUICK, "target": "weights<=0.8x", "data": data, "output": tmp_path / "out", "model": llama.base}
    record = compress(super_adapter, **options)
    assert [step.name.split()[0] for step in record.steps] == ["search", "baselines", "recover", "export", "measure"]
    assert record.networks[-1].parameters < record.networks[0].parameters


@pytest.mark.slow
def test_the_unpruned_network_of_a_super_adapter(
    super_adapter: Path, llama: TinySource, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In INT8 it is neither trained nor cut, although the adapter has its search space in its directory."""
    monkeypatch.setattr(training, "train", forbidden)
    options = {**QUICK, "target": "weights<=1x", "data": data, "output": super_adapter / "out", "model": llama.base}
    record = compress(super_adapter, **options)
    whole = AutoModelForCausalLM.from_pretrained(llama.base).num_parameters()
    assert [network.parameters for network in record.networks] == [whole] * 3
    assert record.curves == ()


def test_the_largest_network_of_a_narrow_space_is_recovered(
    super_adapter: Path, llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of its MLPs has 96 channels at most, and that of the adapter 128: it is pruned."""
    content = json.loads(llama.space.read_text())
    groups = content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"]
    assert groups.count([128, 96, 64]) == 3
    groups[groups.index([128, 96, 64])] = [96, 64]
    (super_adapter / "nncf_config.json").write_text(json.dumps(content))

    def trained(*_given: object) -> None:
        raise LonasEdgeError("trained")

    monkeypatch.setattr(training, "train", trained)
    options = {**QUICK, "target": "weights<=1x", "data": data, "output": tmp_path / "out", "model": llama.base}
    with pytest.raises(LonasEdgeError, match="recover weights<=1x: trained"):
        compress(super_adapter, **options)


def test_a_dry_run_writes_nothing(
    llama: TinySource, tmp_path: Path, data: Path, run_cli: Callable[..., Any], quick: None
) -> None:
    options = CompressOptions(source=str(llama.base), data=data, output=tmp_path / "out", prompt_len=8, dry_run=True)
    announced: list[tuple[Sequence[Step], Mapping[str, int]]] = []
    assert compress_model(options, announce=lambda *given: announced.append(given)) is None
    [(steps, needed)] = announced
    seconds = {step.name: step.estimate for step in steps}
    recover = "recover kl<=0.005"  # `auto`
    names = ["fine-tune", "space", "search", "baselines", recover, "export kl<=0.005", "draft", "measure"]
    assert list(seconds) == names
    # at most five epochs of 80 examples in batches of 16 at 0.1 s; 16 held-out examples at 0.01 s, every second step
    assert seconds["fine-tune"] == pytest.approx(25 * 0.1 + 14 * 16 * 0.01, abs=0.05)
    # 120,000 tokens of 12 per example are 625 steps of 0.2 s; four evaluations
    assert seconds[recover] == pytest.approx(625 * 0.2 + 4 * 16 * 0.01, abs=0.05)
    assert seconds["search"] == pytest.approx(60 * 16 * 0.01 * 0.7, abs=0.05)  # 60 networks, as large searches took
    assert seconds["measure"] is None
    assert "--steps 625" in steps[4].command
    assert needed["memory_bytes"] == 1.5 * 10**9 and needed["disk_bytes"] > 0
    ran = run_cli("compress", llama.base, "--data", data, "--output", tmp_path / "out", "--prompt-len", 8, "--dry-run")
    assert ran.code == 0 and recover in ran.err and "memory 1.5 GB" in ran.err
    assert compress(llama.base, data=data, output=tmp_path / "out", prompt_len=8, dry_run=True) is None
    assert sorted(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("stored", ["int8_sym", pytest.param("int4_sym", marks=pytest.mark.slow)])
def test_a_finished_model_is_not_fine_tuned(llama: TinySource, tmp_path: Path, data: Path, quick: None, stored: str) -> None:
    """It is the baseline and the teacher as it is; the recovery trains a new adapter."""
    record = compress(llama.base, data=data, output=tmp_path / "out", epochs=0, **{**QUICK, "weight_format": stored})

    commands = {step.name.split()[0]: step.command for step in record.steps}
    assert "fine-tune" not in commands
    assert f"--from {llama.base} " in commands["recover"] and f"--teacher {llama.base} " in commands["recover"]
    assert [curve.name.split()[0] for curve in record.curves] == ["recover"] and record.options["epochs"] == 0
    [kept] = (tmp_path / "out/steps/recovered").iterdir()
    assert json.loads((kept / "training.json").read_text())["recovered"]["super_adapter"] == llama.base.name


def test_checkpoints_of_slow_steps(
    llama: TinySource, tmp_path: Path, data: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most two minutes are lost, or a step."""
    saved = []
    for seconds in (0.1, 50.0, 300.0):
        monkeypatch.setattr(run, "time_steps", lambda *_, seconds=seconds: replace(PROBE, recovery_step=seconds))
        steps = plan_steps(llama.base, tmp_path, data, target=("weights<=0.95x",), weight_format="int8_sym")
        [command] = [each for each in steps["recover weights<=0.95x"].commands if each.options]
        saved.append((command.options.save_steps, command.options.log_steps))
    assert saved == [(200, 10), (2, 2), (1, 1)]
