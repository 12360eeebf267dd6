"""Speculative decoding: the figures by hand and by drawing, the arm on a tiny pair, real prompts, and bad input."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import TinySource
from transformers import AutoTokenizer

from lonas_edge.bench.arms import Arm, Case
from lonas_edge.bench.measure import Measured, Sample
from lonas_edge.bench.prompts import read_prompts
from lonas_edge.bench.report import text_warnings
from lonas_edge.bench.runners import GenaiRunner, SpeculativeRunner
from lonas_edge.bench.speculation import (
    Texts,
    acceptance,
    compared,
    predicted_speedup,
    speculations,
    tokens_per_pass,
)
from lonas_edge.bench.timing import Speculated, Timing
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.draft import DraftOptions
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported

SHORT = ("--prompt-len", "24", "--new-tokens", "12", "--rounds", "2", "--warmup", "1", "--starts", "1")


@pytest.fixture(scope="session")
def pair(source: TinySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maximal network of the tiny LLaMA in INT8 with itself in symmetric INT8 as the draft: nearly all is accepted."""
    folder, opened = tmp_path_factory.mktemp("bench") / "pair", source.opened()
    whole = opened.select("maximal")
    draft = DraftOptions(whole, weight_format="int8_sym")
    export(opened, whole, folder, ExportOptions(weight_format="int8", verify=False, draft=draft))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts of 2 to 5 sums; one is long."""
    sums = [{"instruction": "add " + " ".join(map(str, range(n))), "output": "a"} for n in (2, 3, 4, 5, 90)]
    (tmp_path / "data.json").write_text(json.dumps(sums))
    return tmp_path / "data.json"


def test_the_formula() -> None:
    """Leviathan et al. 2023, by hand: α = 0.8, k = 3, c = 0.36 give 2.952 tokens for 2.08 passes' time."""
    assert tokens_per_pass(0.8, 3) == pytest.approx(1 + 0.8 + 0.64 + 0.512)
    assert predicted_speedup(0.8, 3, 0.36) == pytest.approx(2.952 / 2.08)
    assert predicted_speedup(0.8, 3, 0.36) == pytest.approx((1 - 0.8**4) / ((1 - 0.8) * (3 * 0.36 + 1)))
    assert predicted_speedup(0.0, 3, 0.5) == pytest.approx(1 / 2.5)
    assert predicted_speedup(1.0, 3, 0.0) == 4


def test_acceptance_by_hand() -> None:
    """k = 2, ten tokens: the prompt's; 3 of 3; 1 (refused at once); 2 (refused then); 1, of one that could be; 2 of one."""
    steps = (1, 3, 1, 2, 1, 2)
    assert acceptance([Speculated(steps, 0, 0, 0.0, 0.0)], 2) == (2 + 0 + 1 + 0 + 1) / (4 + 3)
    assert acceptance([Speculated((1, 1), 0, 0, 0.0, 0.0)], 2) is None  # only the last token was left, which has no proposal


def test_acceptance_is_found_again() -> None:
    """Passes drawn with a chance of 0.7 for each token."""
    draw, found = random.Random(0), []
    for _ in range(300):
        steps, left = [1], 63
        while left:
            proposed = min(3, left - 1)
            taken = next((i for i in range(proposed) if draw.random() >= 0.7), proposed)
            steps.append(taken + 1)
            left -= taken + 1
        found.append(Speculated(tuple(steps), 0, 0, 0.0, 0.0))
    assert acceptance(found, 3) == pytest.approx(0.7, abs=0.01)


def test_texts_compared() -> None:
    assert compared([(1, 2, 3), (4, 5, 6), (7, 8, 9)], [(1, 2, 3), (4, 5, 0), (0, 8, 0)]) == Texts(3, 1, (2, 0))


def timing(tpot: float, answer: tuple[int, ...], speculated: Speculated | None = None) -> Timing:
    return Timing(tuple(1 + tpot * n for n in range(4)), 2.0, (answer,), speculated)


def test_what_follows_from_the_rounds() -> None:
    case, arm = Case(8, 4), Arm("draft", "ir-draft", Path("x"), draft=Path("x/draft"), assistant_tokens=2)
    done = Speculated((1, 3), 0, 0, 0.15, 0.05)
    samples = [Sample("subnet", case, n, timing(0.1, (1, 2, 3, 4))) for n in range(6)]
    samples += [Sample("draft", case, n, timing(0.08, (1, 2, 3, 4 + (n == 5)), done)) for n in range(6)]
    (found,) = speculations([Measured(samples)], [arm], [case], {("draft", case): Texts(4, 4, ())})
    assert (found.acceptance, found.tokens_per_pass, found.texts) == (1.0, 3.0, Texts(6, 5, (3,)))
    assert (found.draft_cost, found.pass_cost) == (pytest.approx(0.5), pytest.approx(1.5))
    assert found.predicted == pytest.approx(3 / 2) and found.measured.ratio == pytest.approx(0.1 / 0.08)
    (told,) = text_warnings([found])
    assert "draft, 8+4 tokens, batch 1: 1 of 6 texts are not those without the draft" in told and "In fp32 4 of 4" in told


def test_the_arm(run_cli: Callable, pair: Path, tmp_path: Path) -> None:
    arguments = ["bench", pair, "--arms", "draft", "--num-assistant-tokens", "1,4", *SHORT, "--json"]
    ran = run_cli(*arguments, "--output", tmp_path / "out", "--property", "INFERENCE_PRECISION_HINT=f32")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert [arm["name"] for arm in found["arms"]] == ["subnet", "draft-1", "draft-4"]
    assert all(len(sample["token_times"]) == 12 for sample in found["samples"])
    assert [one["assistant_tokens"] for one in found["speculations"]] == [1, 4]
    for one in found["speculations"]:
        assert one["texts"]["compared"] == 2 and one["exact"] == {"compared": 4, "equal": 4, "first_difference": []}
        assert one["accepted"] <= one["drafted"] and 0.8 < one["acceptance"] <= 1
        assert 1 + 0.4 * one["assistant_tokens"] < one["tokens_per_pass"] <= 1 + one["assistant_tokens"]
        assert one["draft_cost"] > 0 and one["pass_cost"] > 0 and one["measured"]["ratio"] > 0
    subnet, one, _ = (arm["facts"] for arm in found["arms"])
    both = [folder / f"openvino_model.{end}" for folder in (pair, pair / "draft") for end in ("xml", "bin")]
    assert one["disk_bytes"] == sum(path.stat().st_size for path in both)
    assert one["parameters"] == 2 * subnet["parameters"] and one["compile_seconds"] > 0
    assert one["weight_bytes_per_token"] is None and found["arms"][1]["precision"] == "int8+int8_sym"
    told = (tmp_path / "out/bench.md").read_text()
    assert "## Speculative decoding" in told and "| draft-4 | 4 |" in told and "distinct random prompts" in told
    assert str(pair) not in told + ran.out


def test_an_end_token_ends_nothing(pair: Path, tmp_path: Path) -> None:
    """A model that says its end token goes on, with a draft as without: as if it had another one."""

    def answers(folder: Path, runner: type[GenaiRunner]) -> tuple[tuple[int, ...], ...]:
        draft, properties = folder / "draft", {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        arm = Arm("draft", "ir-draft", folder, "CPU", properties=properties, draft=draft, assistant_tokens=3)
        return runner(arm, 1).run([[3, 5, 8, 13]], 12).answers

    expected = answers(pair, GenaiRunner)
    shutil.copytree(pair, tmp_path / "pair")
    for folder in (tmp_path / "pair", tmp_path / "pair/draft"):
        file = folder / "generation_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": expected[0][3]}))
    assert answers(tmp_path / "pair", GenaiRunner) == expected
    assert answers(tmp_path / "pair", SpeculativeRunner) == expected
    assert len(expected[0]) == 12


def test_what_a_person_sees(run_cli: Callable, pair: Path, tmp_path: Path) -> None:
    texts = [{"text": "the inner ones " * 20}, {"text": "another in the attic"}]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    ran = run_cli("bench", pair, "--arms", "draft", *SHORT, "--no-memory", "--data", tmp_path / "texts.json")
    assert ran.code == 0, ran.err
    assert "…" not in ran.out and "Speculative decoding" in ran.out
    told = " ".join(ran.out.split())
    assert "2 prompts of texts.json (" in told and " to 24 tokens, median " in told and "24+12 tokens, batch 1" in told


def test_prompts_of_data(pair: Path, data: Path) -> None:
    """Those of instructions that are short enough, each with the prompt that `eval` asks with, in a drawn order, over again."""
    exported, tokenizer = open_exported(pair), AutoTokenizer.from_pretrained(pair)
    lengths = [len(ids) for ids in read_prompts(exported, data, 10**4, 10, 0).ids]
    found = read_prompts(exported, data, max(lengths) - 1, 10, 0)
    assert len(found.ids) == 4 and found.longest == sorted(lengths)[-2]
    text = tokenizer.decode(found.ids[0])
    assert text.startswith("Below is an instruction") and "add 0 1" in text and text.rstrip().endswith("### Response:")
    case = Case(found.longest, 12)
    assert [found.next(case)[0] for _ in range(5)] == [*found.ids, found.ids[0]]
    told = found.described()
    assert (told["data"], told["template"], told["distinct"]) == ("data.json", "lonas", 4)
    assert told["tokens"] == {"min": min(lengths), "median": sum(sorted(lengths)[1:3]) / 2, "max": found.longest}
    assert read_prompts(exported, data, 10**4, 2, 0).ids == read_prompts(exported, data, 10**4, 10, 0).ids[:2]
    with pytest.raises(LonasEdgeError, match="none of its 5 prompts has 3 tokens or fewer"):
        read_prompts(exported, data, 3, 10, 0)


def test_texts_are_cut_and_conversations_are_rendered(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps([{"text": "the inner ones " * 20}]))
    (ids,) = read_prompts(open_exported(pair), tmp_path / "texts.json", 16, 10, 0).ids
    assert len(ids) == 16
    (tmp_path / "chat.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    )
    with pytest.raises(LonasEdgeError, match="no chat template"):
        read_prompts(open_exported(pair), tmp_path / "chat.json", 16, 10, 0)


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--arms", "draft"], 1, "draft: {int8} has no draft; `lonas-edge export --draft` writes one beside it"),
        (["--arms", "draft", "--batch-size", "1,4"], 1, "draft: one prompt at a time"),
        (["--arms", "subnet", "--num-assistant-tokens", "3"], 2, "--num-assistant-tokens: goes with --arms draft"),
        (["--arms", "draft", "--num-assistant-tokens", "0"], 2, "--num-assistant-tokens 0: must be 1 or more"),
        (["--arms", "subnet", "--data", "x", "--prompt-len", "8,16"], 2, "--data gives prompts of unequal lengths"),
        (["--arms", "subnet", "--data", "x", "--batch-size", "2"], 2, "--data gives prompts of unequal lengths"),
        (["--arms", "subnet", "--data", "/nowhere.json"], 1, "/nowhere.json: the data cannot be read"),
        (["--tune", "--data", "x"], 2, "--data: does nothing with --tune"),
        (["--tune", "--num-assistant-tokens", "2"], 2, "--num-assistant-tokens: does nothing with --tune"),
    ],
)
def test_refused(run_cli: Callable, int8: Path, options: list[str], code: int, told: str) -> None:
    ran = run_cli("bench", int8, *([] if "--prompt-len" in options or "--tune" in options else SHORT), *options)
    assert (ran.code, ran.out) == (code, "")
    assert told.format(int8=int8) in " ".join(ran.err.split()), ran.err
