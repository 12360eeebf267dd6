"""`lonas-edge space --depth`: which blocks are offered, by what they cost on real prompts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import silence
from tiny_bert import TinyBert
from tiny_models import LAYERS, TinyModels, block_path
from transformers import AutoModelForCausalLM

from lonas_edge.network.heldout import read_held_out
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.search import depth
from lonas_edge.search.depth import BlockCost, offered
from lonas_edge.space.search_space import read_search_space


@pytest.fixture
def data(tmp_path: Path) -> Path:
    examples = [{"instruction": f"What is {a} plus {b}?", "output": f"the {a + b}"} for a in range(4) for b in range(3)]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(examples))
    return path


def test_not_measured(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    ran = run_cli("space", "--model", tiny_models.base("neox"), "--output", tmp_path / "s.json", "--depth", "mlp,attention")
    assert ran.code == 0, ran.err
    assert "was not measured" in ran.err and "always kept: layers 0, 2" in ran.err
    content = json.loads((tmp_path / "s.json").read_text())
    elastic = content["bootstrapNAS"]["training"]["elasticity"]
    assert elastic["lonas_edge"] == {"version": 1, "blocks": [["gpt_neox.layers.1.attention"], ["gpt_neox.layers.1.mlp"]]}
    stage = content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]
    assert stage["train_dims"] == ["width", "depth"]
    assert read_search_space(tmp_path / "s.json").has_blocks


def test_heads(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    options = ["--heads", "--ratios", "1,.5", "--depth", "mlp"]
    ran = run_cli("space", "--model", tiny_models.base("qwen3"), "--output", tmp_path / "s.json", *options)
    assert ran.code == 0, ran.err
    space = read_search_space(tmp_path / "s.json")
    assert [group.widths for group in space.groups[9:]] == [(96, 48)] * 3 + [(1, 0)]


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_measured(case: str, run_cli: Callable, tiny_models: TinyModels, data: Path, tmp_path: Path, monkeypatch) -> None:
    """Costs are KL divergences from the whole base, here computed with a block's last layer at zero."""
    seen: list[BlockCost] = []
    stock = depth.offered
    monkeypatch.setattr(depth, "offered", lambda architecture, blocks: seen.extend(blocks) or stock(architecture, blocks))
    base = tiny_models.base(case)
    options = ["--depth", "attention,mlp", "--data", data, "--num-prompts", "6", "--prompt", "question"]
    ran = run_cli("space", "--model", base, "--output", tmp_path / "s.json", *options)
    assert ran.code == 0, ran.err
    from lonas_edge.network.source import open_source

    batches = read_held_out(open_source(str(base)), data, 6, 0, "question").batches(load_tokenizer(base))

    def log_p(block: str | None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).eval()
        with torch.no_grad():
            if block:
                silence(dict(model.named_parameters()), block)
            found = []
            for batch in batches:
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                found.append(logits[:, batch["logits_to_keep"]][batch["labels"] != -100])
            return torch.cat(found).log_softmax(-1)

    whole = log_p(None)
    for block in seen:
        other = log_p(block.path)
        expected = (whole.exp() * (whole - other)).sum(-1).mean().item()
        assert block.kl == pytest.approx(expected, rel=2e-3)
    assert {block.path for block in seen} == {block_path(case, n, kind) for n in range(LAYERS) for kind in ("attention", "mlp")}
    blocks = json.loads((tmp_path / "s.json").read_text())["bootstrapNAS"]["training"]["elasticity"]["lonas_edge"]["blocks"]
    costs = {block.path: block.kl for block in seen}
    for kind in ("attention", "mlp"):
        listed = [costs[path] for (path,) in blocks if ("mlp" in path) == (kind == "mlp")]
        assert listed == sorted(listed) and listed
    assert "least sensitive first" in ran.err and "was not measured" not in ran.err


def test_the_dear_ones_are_kept(tiny_models: TinyModels) -> None:
    architecture = tiny_models.source("llama").opened().architecture
    costs = {"model.layers.0.self_attn": 3.0, "model.layers.1.self_attn": 0.2, "model.layers.2.self_attn": 0.1}
    found, kept = offered(architecture, [BlockCost(path, "attention", kl) for path, kl in costs.items()])
    assert [block.path for block in found] == ["model.layers.2.self_attn", "model.layers.1.self_attn"]
    assert [block.path for block in kept] == ["model.layers.0.self_attn"]
    equal, kept = offered(architecture, [BlockCost(path, "attention", 0.1) for path in costs])  # then one has to stay
    assert (len(equal), len(kept)) == (2, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--depth", "heads"], "--depth': 'heads' is not one of 'attention', 'mlp', 'layer'"),
        (["--depth", "mlp,"], "--depth': 'mlp,' has an empty entry"),
        (["--data", "DATA"], "--data needs --depth"),
        (["--depth", "mlp", "--num-prompts", "3"], "--num-prompts needs --data"),
        (["--depth", "mlp", "--prompt", "question"], "--prompt needs --data"),
    ],
)
def test_wrong_usage(
    options: list[str], told: str, run_cli: Callable, tiny_models: TinyModels, data: Path, tmp_path: Path
) -> None:
    options = [str(data) if option == "DATA" else option for option in options]
    ran = run_cli("space", "--model", tiny_models.base("llama"), "--output", tmp_path / "s.json", *options)
    assert ran.code == 2 and told in " ".join(ran.err.replace("│", " ").split())
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("case", "kinds", "told"),
    [
        ("bert", "attention,mlp", "--depth attention,mlp: expected layer for bert"),
        ("bert", "mlp,layer", "--depth mlp: expected layer for bert"),
        ("llama", "layer", "--depth layer: expected attention,mlp for llama"),
    ],
)
def test_kinds_of_another_family(
    case: str, kinds: str, told: str, run_cli: Callable, tiny_bert: TinyBert, tiny_models: TinyModels, tmp_path: Path
) -> None:
    base = tiny_bert.base() if case == "bert" else tiny_models.base(case)
    ran = run_cli("space", "--model", base, "--output", tmp_path / "s.json", "--depth", kinds)
    assert ran.code == 1 and told in ran.err and str(base) in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "s.json").exists()


def test_too_few_prompts(run_cli: Callable, tiny_models: TinyModels, data: Path, tmp_path: Path) -> None:
    options = ["--depth", "mlp", "--data", data, "--num-prompts", "100"]
    ran = run_cli("space", "--model", tiny_models.base("llama"), "--output", tmp_path / "s.json", *options)
    assert ran.code == 1 and "12 prompts; expected at least 100" in ran.err
    assert not (tmp_path / "s.json").exists()


def test_conversations_need_no_prompt(run_cli: Callable, tiny_models: TinyModels, tmp_path: Path) -> None:
    """They are put in the chat template without being told so."""
    base = tiny_models.source("llama").copied_to(tmp_path).base
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }} {{ m.content }}</s>{% endfor %}")
    turns = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "user assistant"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(4)))
    options = ["--depth", "attention", "--data", tmp_path / "chat.jsonl", "--num-prompts", 4]
    ran = run_cli("space", "--model", base, "--output", tmp_path / "s.json", *options)
    assert ran.code == 0, ran.err
    ran = run_cli("space", "--model", base, "--output", tmp_path / "no.json", *options, "--prompt", "alpaca")
    assert ran.code == 1 and "holds conversations" in ran.err
