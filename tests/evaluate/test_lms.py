"""The backends on tiny models of every family: log-likelihoods of the harness's `hf` backend, tokens of `generate`."""

import json
import math
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_models import TinyModels, TinySource, families
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate import backends
from lonas_edge.evaluate.answers import run
from lonas_edge.evaluate.backends import OpenVinoLM, TorchLM
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
WORDS = ["The", "sun", "warms", "stones", "while", "cold", "rivers", "carry", "small", "green", "leaves", "past", "mills"]


def rankings(count: int = 9, seed: int = 0) -> list[Instance]:
    """Contexts of many lengths, each with options of many lengths, one letter and equal ones among them."""
    draw = random.Random(seed)
    requests = []
    for index in range(count):
        context = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 6)))
        options = [" " + " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 2))) for _ in range(3)]
        for number, option in enumerate([*options, "s", options[0]]):
            requests.append(Instance("loglikelihood", {}, (context, option), number, ("task", index, 1)))
    return requests


def generations(num_beams: int, count: int = 6) -> list[Instance]:
    draw = random.Random(1)
    options = {"until": [], "do_sample": False, "num_beams": num_beams, "max_gen_toks": 12}
    prompts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 8))) for _ in range(count)]
    return [Instance("generate_until", {}, (prompt, options), 0, ("task", index, 1)) for index, prompt in enumerate(prompts)]


def hf(folder: Path) -> HFLM:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1, logits_cache=False)


def close(found: list[tuple[float, bool]], expected: list[tuple[float, bool]], within: float) -> None:
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=within)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.fixture(scope="module")
def exported(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports the base of a case as fp32 IR, once. Not to be changed."""

    @cache
    def make(case: str) -> Path:
        source, folder = open_source(str(tiny_models.base(case))), tmp_path_factory.mktemp("ir") / case
        export(source, source.select(), folder, ExportOptions(weight_format="fp32", verify=False))
        return folder

    return make


@pytest.mark.parametrize("case", families("llama", "qwen2-tied", "qwen3-tied", "bloom", "granite", "granite4"))
def test_openvino_ranks_as_the_harness_does(case: str, exported: Callable[[str], Path], tiny_models: TinyModels):
    folder = exported(case)
    model = OpenVinoLM(folder, AutoTokenizer.from_pretrained(folder), 128, properties=F32)
    reference = hf(tiny_models.base(case)).loglikelihood(rankings(40), disable_tqdm=True)
    close(model.loglikelihood(rankings(40), disable_tqdm=True), reference, 1e-3)
    again = model.loglikelihood(rankings(40)[10:], disable_tqdm=True)  # without a state of earlier requests
    close(again, reference[10:], 1e-3)


def test_rolling_log_likelihood_is_the_harness_s(exported: Callable[[str], Path], tiny_models: TinyModels):
    folder = exported("llama")
    asked = [Instance("loglikelihood_rolling", {}, (" ".join(WORDS * 3),), 0, ("task", 0, 1))]  # longer than the context
    model = OpenVinoLM(folder, AutoTokenizer.from_pretrained(folder), 128, properties=F32)
    expected = hf(tiny_models.base("llama")).loglikelihood_rolling(asked, disable_tqdm=True)
    assert model.loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-2)


OPTIONS: list[dict[str, float]] = [
    *({"num_beams": 1}, {"num_beams": 2}, {"num_beams": 4}),
    *({"num_beams": 4, "length_penalty": -2.0}, {"num_beams": 4, "repetition_penalty": 1.5}),
    {"num_beams": 1, "repetition_penalty": 1.5},
]


def test_generations_end_where_those_of_transformers_do(
    exported: Callable[[str], Path], tiny_models: TinyModels, tmp_path: Path
):
    """Several tokens that stop, so that beams end at every length: which one wins depends on when the search ends."""
    folder = Path(shutil.copytree(exported("llama"), tmp_path / "copy"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_models.base("llama"), dtype=torch.float32)
    stops = list(range(0, model.config.vocab_size, 6))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    prompts = [request.args[0] for request in generations(1, 20)]
    ours, known = OpenVinoLM(folder, tokenizer, 128, properties=F32), list[list[str]]()
    for options in OPTIONS:
        given = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": stops, "pad_token_id": 1, **options}
        expected, lengths = [], set()
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")
            new = model.generate(**ids, **given)[0, ids["input_ids"].shape[1] :]
            expected.append(tokenizer.decode(new, skip_special_tokens=True))
            lengths.add(len(new))
        asked = {"until": [], "max_gen_toks": 12, **options}
        requests = [Instance("generate_until", {}, (prompt, asked), 0, ("task", 0, 1)) for prompt in prompts]
        assert ours.generate_until(requests) == expected, options
        assert expected not in known and len(lengths) > 3
        known.append(expected)


def test_greedy_generation_ends_at_a_stop_text(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    folder = exported("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = OpenVinoLM(folder, tokenizer, 128, properties=F32)
    (request,) = generations(1, 1)
    (whole,) = model.generate_until([request])
    request.args[1]["until"] = [whole[:2]]
    assert model.generate_until([request]) == [""]  # what stops is cut off, and it came first
    monkeypatch.setattr(backends, "postprocess_generated_text", lambda text, *_: text)
    (stopped,) = model.generate_until([request])
    assert whole.startswith(stopped) and len(tokenizer(stopped)["input_ids"]) <= 4 < len(tokenizer(whole)["input_ids"])


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("kind", ["base", "checkpoint"])
def test_torch_generates_by_the_request_and_ends_at_the_model_s_own_tokens(
    kind: str, num_beams: int, llama: TinySource, tmp_path: Path
):
    """As with an IR: no other field of generation_config.json counts, whose penalty and length change texts."""
    from lonas_edge.network.source import open_source
    from lonas_edge.network.super_network import load_super_network

    folder = Path(shutil.copytree(llama.base, tmp_path / "base"))
    plain = hf(llama.base)
    stops = list(range(0, plain.model.config.vocab_size, 6))
    fields = {"eos_token_id": stops, "repetition_penalty": 5.0, "max_new_tokens": 5, "no_repeat_ngram_size": 1}
    (folder / "generation_config.json").write_text(json.dumps(fields))
    live = load_checkpoint(folder) if kind == "checkpoint" else load_super_network(open_source(str(folder))).base
    ours = TorchLM(pretrained=live, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1)
    plain.model.generation_config = GenerationConfig(eos_token_id=stops)
    found, expected = (model.generate_until(generations(num_beams, 12), disable_tqdm=True) for model in (ours, plain))
    assert found == expected
    plain.model.generation_config = GenerationConfig(eos_token_id=1)
    assert found != plain.generate_until(generations(num_beams, 12), disable_tqdm=True)


@pytest.mark.parametrize(("kind", "answer"), [("loglikelihood", (math.nan, False)), ("loglikelihood_rolling", math.nan)])
def test_log_likelihoods_that_are_not_numbers(kind: str, answer: object):
    """Of a damaged model: the first option would look like the most likely one. A probability of 0 is a number."""
    requests = [Instance(kind, {}, ("a", " b"), 0, ("boolq", 0, 1))]
    right = (-math.inf, False) if kind == "loglikelihood" else -math.inf
    assert run(kind, requests, True, SimpleNamespace(**{kind: lambda *_, **__: [right]})) == [right]
    with pytest.raises(LonasEdgeError, match="boolq: log-likelihoods are not numbers"):
        run(kind, requests, True, SimpleNamespace(**{kind: lambda *_, **__: [answer]}))
