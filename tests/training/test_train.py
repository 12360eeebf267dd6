"""Training a super-adapter: oracle, gradients, optimizer, seeds and resuming, loss, stages, precision, two processes."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracle import oracle_logits, read_groups
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from tiny_models import CASES, TARGETS, TinyModels, TinySource
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import lonas_edge.training.train
from lonas_edge.data.encoding import Collator
from lonas_edge.data.instructions import read_examples
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.channel_order import read_channel_order
from lonas_edge.network.elastic import SuperNetwork, load_super_network
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import Located, open_source, read_model_config
from lonas_edge.space.architecture import Architecture, bind
from lonas_edge.space.search_space import read_search_space
from lonas_edge.training.plan import TrainOptions
from lonas_edge.training.train import ElasticTrainer, InactiveKept, Inputs, train

ADAPTER, SPACE, ORDER, RECORD = "adapter_model.safetensors", "nncf_config.json", "channel_order.safetensors", "training.json"
EOS, IGNORED = 1, -100
OPTIONS = {
    "rank": 8,
    "alpha": 16,
    "steps": 8,
    "save_steps": 3,
    "log_steps": 1,
    "batch_size": 4,
    "lr": 0.01,
    "warmup_steps": 2,
    "prompt": "question",
    "device": "cpu",
}
EXAMPLES = [
    {"instruction": f"What is {a} plus {b}?", "output": " ".join(["It", "is"] * (b % 3) + [str(a + b)])}
    for a in range(8)
    for b in range(5)
]


def write_data(path: Path, examples: Sequence[dict[str, str]] = EXAMPLES) -> Path:
    """An instruction data file."""
    path.write_text(json.dumps(list(examples)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 short examples whose answers have 3 to 15 tokens."""
    return write_data(tmp_path_factory.mktemp("data") / "data.json")


def run(
    source: TinySource,
    data: Path,
    output: Path,
    resume: bool = False,
    overwrite: bool = False,
    report: Callable[..., None] = lambda *_: None,
    **changes: Any,
) -> dict[str, Any]:
    """Train on a tiny model; `changes` go to `TrainOptions`, over `OPTIONS`."""
    base = Located(source.base.name, source.base)
    architecture = Architecture.from_config(read_model_config(base), str(source.base))
    elasticity = bind(architecture, read_search_space(source.space), str(source.space))
    inputs = Inputs(base, elasticity, source.space, data, read_examples(data))
    return train(inputs, output, TrainOptions(**{**OPTIONS, **changes}), resume, overwrite, report)


def run_killed(*arguments: Any, at: int, **changes: Any) -> None:
    """Train until step `at` has ended."""

    def kill(step: int, _steps: int, _log: Any) -> None:
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(LonasEdgeError, match=r"Training interrupted\."):
        run(*arguments, report=kill, **changes)


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a live model."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def plain_base(source: TinySource, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base as a user of transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(source.base, dtype=dtype).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors."""
    return load_file(folder / ADAPTER)


def difference(one: Path, other: Path) -> float:
    """The largest difference between two adapters."""
    left, right = tensors_of(one), tensors_of(other)
    assert left.keys() == right.keys()
    return max((left[key] - right[key]).abs().max().item() for key in left)


def working(output: Path) -> Path:
    """Where checkpoints are kept."""
    return output.with_name(f"{output.name}.training")


# the trained super-adapter


@pytest.fixture(scope="module")
def trained(tiny_models: TinyModels, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A super-adapter after 3 steps, made once: `trained(case, reorder)`."""
    root, made = tmp_path_factory.mktemp("trained"), {}

    def make(case: str, reorder: bool) -> Path:
        if (case, reorder) not in made:
            folder = root / f"{case}-{reorder}"
            run(tiny_models.source(case), data, folder, steps=3, reorder=reorder, lr=0.02, warmup_steps=0)
            made[case, reorder] = folder
        return made[case, reorder]

    return make


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_activated_equals_materialized_and_oracle(
    case: str, reorder: bool, tiny_models: TinyModels, trained, materialize: Callable, choose: Callable, ids: torch.Tensor
) -> None:
    source, folder = tiny_models.source(case), trained(case, reorder)
    assert (folder / ORDER).exists() == reorder
    assert (folder / SPACE).read_bytes() == source.space.read_bytes()
    adapter = tensors_of(folder)
    assert all(tensor.abs().max() > 1e-3 for tensor in adapter.values())  # lora_B started at 0: it was trained
    opened = open_source(str(folder))
    network = load_super_network(opened)
    found = {}
    for name in ("heuristic", "minimal", "unequal:3"):
        widths = choose(source, name)
        network.activate(widths)
        found[name] = logits_of(network.model, ids)
        materialized = logits_of(load_checkpoint(materialize(opened, widths)), ids)
        assert (found[name] - materialized).abs().max() < 1e-4, name
        expected = oracle_logits(source.base, folder, folder / SPACE, widths, ids)  # in the order recorded, where there is one
        assert (found[name] - expected).abs().max() < 1e-4, name
    assert (found["heuristic"] - found["minimal"]).abs().max() > 1e-2


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_plain_peft_loads_the_maximal_network(
    case: str, reorder: bool, tiny_models: TinyModels, trained: Callable, choose: Callable, ids: torch.Tensor
) -> None:
    source, folder = tiny_models.source(case), trained(case, reorder)
    model = PeftModel.from_pretrained(plain_base(source), folder).eval()
    expected = logits_of(model, ids)
    network = load_super_network(open_source(str(folder)))
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    network.activate(choose(source, "maximal"))
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
    full = oracle_logits(source.base, folder, None, [], ids)  # merged by hand, in the base's order
    assert (expected - full).abs().max() < 1e-4
    with model.disable_adapter():
        assert (logits_of(model, ids) - expected).abs().max() > 1e-2


def test_reordering_changes_places_but_not_the_function(any_source: TinySource, trained, ids: torch.Tensor) -> None:
    base = plain_base(any_source)
    expected, before = logits_of(base, ids), {name: p.clone() for name, p in base.named_parameters()}
    order = load_file(trained(any_source.case, True) / ORDER)
    read_channel_order(trained(any_source.case, True), open_source(str(any_source.base)).architecture).apply_to_model(base)
    assert (logits_of(base, ids) - expected).abs().max() < 1e-4
    changed = {name for name, p in base.named_parameters() if not torch.equal(p, before[name])}
    modules = [name.replace("down_proj", kind) for name in order for kind in ("gate_proj", "up_proj", "down_proj")]
    assert {name for name in changed if name.endswith("weight")} == {f"{module}.weight" for module in modules}


def test_channels_are_in_order_of_importance(llama: TinySource, trained: Callable) -> None:
    """RMS of the activations over the prompts times the norm of the column, from a plain model with hooks."""
    order = load_file(trained("llama", True) / ORDER)
    model, tokenizer = plain_base(llama), AutoTokenizer.from_pretrained(llama.base)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in order}
    for name in order:
        model.get_submodule(name).register_forward_pre_hook(lambda _m, inputs, name=name: seen[name].append(inputs[0][0]))
    for example in EXAMPLES:
        logits_of(model, torch.tensor([tokenizer(f"Question: {example['instruction']}\nAnswer:")["input_ids"]]))
    assert len(order) == 3
    for name, found in order.items():
        rms = torch.cat(seen[name]).double().square().mean(0).sqrt()
        importance = (rms * model.get_submodule(name).weight.detach().double().square().sum(0).sqrt())[found]
        assert sorted(found.tolist()) == list(range(128))
        assert bool((importance[:-1] >= importance[1:] * (1 - 1e-6)).all())


def test_plain_lora(llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids: torch.Tensor, watched) -> None:
    """A search space without groups: no order, no widths, the whole adapter in every step."""
    source = open_source(str(llama.base))
    inputs = Inputs(Located("base", llama.base), source.elasticity, None, data, read_examples(data))
    output = tmp_path / "out"
    record = train(inputs, output, TrainOptions(**{**OPTIONS, "steps": 3, "sampling": "sandwich", "distill": 0.5}))
    assert (record["search_space"], record["reordered"]) == (None, False)
    assert sorted(path.name for path in output.iterdir()) == sorted(["README.md", "adapter_config.json", ADAPTER, RECORD])
    assert [step for step, _ in watched.passes] == [0, 1, 2]
    assert all(torch.equal(plain_adamw(u, name, 0)[0], after) for u in watched.updates for name, after in u.after.items())
    found = logits_of(load_super_network(open_source(str(output))).model, ids)
    assert (found - oracle_logits(llama.base, output, None, [], ids)).abs().max() < 1e-4


# one step: loss and gradients


@dataclass(frozen=True)
class Tokens:
    """An example, tokenized by hand from the `question` template."""

    ids: list[int]
    prompt: int

    @classmethod
    def of(cls, source: TinySource, example: dict[str, str]) -> "Tokens":
        tokenizer = AutoTokenizer.from_pretrained(source.base)
        prompt = tokenizer(f"Question: {example['instruction']}\nAnswer:")["input_ids"]
        return cls([*prompt, *tokenizer(f" {example['output']}")["input_ids"], EOS], len(prompt))

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return len(self.ids) - self.prompt

    def for_training(self) -> dict[str, list[int]]:
        """What the Trainer gets."""
        return {"input_ids": self.ids, "labels": [IGNORED] * self.prompt + self.ids[self.prompt :]}

    def log_probabilities(self, logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """[learned, vocabulary]: log-probabilities at the places in front of each learned token."""
        logits = logits_of_ids(torch.tensor([self.ids]))[0, self.prompt - 1 : -1]
        return logits - logits.logsumexp(-1, keepdim=True)

    def cross_entropy(self, logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """-log p, summed over the learned tokens."""
        chosen = torch.tensor(self.ids[self.prompt :])
        return -self.log_probabilities(logits_of_ids)[torch.arange(self.learned), chosen].sum()


def cross_entropy(tokens: list[Tokens], logits_of_ids: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Averaged over the learned tokens of all examples."""
    return sum(t.cross_entropy(logits_of_ids).item() for t in tokens) / sum(t.learned for t in tokens)


def divergence(tokens: list[Tokens], teacher: Callable, student: Callable) -> float:
    """KL(teacher ‖ student), averaged over the learned tokens."""
    total = 0.0
    for one in tokens:
        log_p, log_q = one.log_probabilities(teacher), one.log_probabilities(student)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return total / sum(t.learned for t in tokens)


def elastic_trainer(source: TinySource, trained: list[list[int]], folder: Path, distill: float = 0.0) -> ElasticTrainer:
    """The trainer on the tiny adapter in float64, with a plan that trains the given sub-networks in every step."""
    model = PeftModel.from_pretrained(
        plain_base(source, torch.float64), source.adapter, is_trainable=True, autocast_adapter_dtype=False
    ).to(torch.float64)
    network = SuperNetwork(model, source.opened().elasticity)
    plan = SimpleNamespace(space=source.opened().space, trained=lambda _step: [tuple(widths) for widths in trained])
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", remove_unused_columns=False)
    return ElasticTrainer(network, plan, distill, args=arguments)


def step(trainer: ElasticTrainer, tokens: list[Tokens], learned: int | None = None) -> float:
    """Forward and backward of a batch; `learned` tokens are in the whole optimizer step, all of them here when None."""
    batch = Collator(EOS)([t.for_training() for t in tokens])
    return trainer.training_step(trainer.network.model, batch, learned or sum(t.learned for t in tokens)).item()


def sliced_peft(source: TinySource, widths: list[int]) -> PeftModel:
    """The sub-network as a smaller Hugging Face model with a plain, unmerged PEFT adapter on it, in float64."""
    ranks, outputs = read_groups(source.space, widths)
    model = plain_base(source, torch.float64)
    for name, module in list(model.named_modules()):
        if not name.endswith(("gate_proj", "up_proj", "down_proj")):
            continue
        path, _, kind = name.rpartition(".")
        rows, columns = (None, outputs[f"{path}.gate_proj"]) if kind == "down_proj" else (outputs[name], None)
        weight = module.weight.detach()[:rows, :columns]
        small = nn.Linear(weight.shape[1], weight.shape[0], module.bias is not None, dtype=torch.float64)
        small.weight.data = weight.clone()
        if module.bias is not None:
            small.bias.data = module.bias.detach()[:rows].clone()
        model.get_submodule(path)._modules[kind] = small
    config = LoraConfig(r=8, lora_alpha=16, rank_pattern=dict(ranks), target_modules=list(TARGETS))
    peft = get_peft_model(model, config, autocast_adapter_dtype=False)
    tensors = tensors_of(source.adapter)
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            whole = tensors[name.replace(".default.", ".")]
            parameter.data = whole[tuple(slice(size) for size in parameter.shape)].double().clone()
    for module in peft.modules():
        if isinstance(module, LoraLinear):
            module.scaling["default"] = 16 / 8  # that of the whole adapter, whatever the rank
    return peft.train()


@pytest.mark.parametrize("case", ["llama", "llama-biased", "gemma2-tied", "qwen3", "qwen2-tied"])
def test_gradients_equal_plain_peft_on_the_sliced_model(
    case: str, tiny_models: TinyModels, choose: Callable, tmp_path: Path
) -> None:
    source = tiny_models.source(case)
    widths = choose(source, "unequal:11")
    assert len(set(widths[3:6])) == 3
    tokens = [Tokens.of(source, example) for example in EXAMPLES[:6]]
    trainer = elastic_trainer(source, [widths], tmp_path)
    step(trainer, tokens)

    reference = sliced_peft(source, widths)
    loss = sum(t.cross_entropy(lambda ids: reference(input_ids=ids, use_cache=False).logits) for t in tokens)
    (loss / sum(t.learned for t in tokens)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in trainer.network.model.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert len(found) == 3 * 6 * 2
    smaller = 0
    for name, gradient in found.items():
        inside = tuple(slice(size) for size in expected[name].shape)
        assert (gradient[inside] - expected[name]).abs().max() < 1e-5, name
        assert expected[name].abs().max() > 1e-4, name
        outside = gradient.clone()
        outside[inside] = 0
        assert not outside.any(), name
        smaller += expected[name].shape != gradient.shape
    assert smaller > 10
    assert all(p.grad is None for p in trainer.network.model.parameters() if not p.requires_grad)


def test_loss_of_a_step_by_hand(llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """Averaged over the learned tokens of examples of unequal length, padded in one batch."""
    widths = choose(llama, "unequal:4")
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:6]]
    assert len({t.learned for t in tokens}) >= 3
    trainer = elastic_trainer(llama, [widths], tmp_path)
    found = step(trainer, tokens)
    expected = cross_entropy(tokens, lambda ids: oracle_logits(llama.base, llama.adapter, llama.space, widths, ids))
    assert found == pytest.approx(expected, abs=1e-5)
    # with the tokens of the whole optimizer step, of which this micro-batch has a part
    assert step(trainer, tokens, 200) == pytest.approx(expected * sum(t.learned for t in tokens) / 200, abs=1e-5)


@pytest.mark.parametrize("sandwich", [False, True])
def test_distilled_loss_by_hand(llama: TinySource, choose: Callable, tmp_path: Path, sandwich: bool) -> None:
    """The maximal network has the cross-entropy alone; the others (1 - λ) CE + λ KL(maximal ‖ sub-network)."""
    share = 0.3
    maximal, minimal, drawn = (choose(llama, name) for name in ("maximal", "minimal", "unequal:4"))
    networks = [maximal, minimal, drawn] if sandwich else [drawn]
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:5]]
    trainer = elastic_trainer(llama, networks, tmp_path, distill=share)
    found = step(trainer, tokens)

    def network(widths: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda ids: oracle_logits(llama.base, llama.adapter, llama.space, widths, ids)

    losses = []
    for widths in networks:
        loss = cross_entropy(tokens, network(widths))
        if widths != maximal:
            kl = divergence(tokens, network(maximal), network(widths))
            assert kl > 0.01
            loss = (1 - share) * loss + share * kl
        losses.append(loss)
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_no_gradient_flows_through_the_teacher(llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """With distillation too, what the sub-network does not have gets no gradient."""
    widths = choose(llama, "minimal")
    trainer = elastic_trainer(llama, [widths], tmp_path, distill=0.5)
    step(trainer, [Tokens.of(llama, EXAMPLES[0])])
    for name, parameter in trainer.network.model.named_parameters():
        if parameter.requires_grad:
            active = active_part(name, parameter.shape, *read_groups(llama.space, widths))
            assert parameter.grad[active].any()
            assert not parameter.grad[~active].any()


def test_gradients_of_the_sandwich_add_up(llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """The teacher is the sandwich's own maximal pass: its gradient is that of its cross-entropy alone."""
    maximal, minimal = choose(llama, "maximal"), choose(llama, "minimal")
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:4]]

    def gradients(networks: list[list[int]]) -> dict[str, torch.Tensor]:
        trainer = elastic_trainer(llama, networks, tmp_path, distill=0.5)
        step(trainer, tokens)
        return {name: p.grad for name, p in trainer.network.model.named_parameters() if p.requires_grad}

    wide, narrow, both = gradients([maximal]), gradients([minimal]), gradients([maximal, minimal])
    assert all((both[name] - (wide[name] + narrow[name]) / 2).abs().max() < 1e-6 for name in both)


def test_a_drawn_maximal_network_is_not_distilled(llama: TinySource, choose: Callable, tmp_path: Path) -> None:
    """Also where the sandwich draws the maximal network, after the teacher has been computed for the minimal one."""
    maximal, minimal = choose(llama, "maximal"), choose(llama, "minimal")
    tokens = [Tokens.of(llama, example) for example in EXAMPLES[:5]]

    def loss(networks: list[list[int]]) -> float:
        return step(elastic_trainer(llama, networks, tmp_path, distill=0.5), tokens) * len(networks)

    alone = cross_entropy(tokens, lambda ids: oracle_logits(llama.base, llama.adapter, llama.space, maximal, ids))
    assert loss([maximal]) == pytest.approx(alone, abs=1e-5)
    assert loss([maximal, minimal, maximal]) == pytest.approx(loss([maximal, minimal]) + alone, abs=1e-5)


# what a run does, watched from outside


def active_part(name: str, shape: torch.Size, ranks: dict[str, int], outputs: dict[str, int]) -> torch.Tensor:
    """True where a sub-network has the adapter's parameter `name` of a PEFT model; `ranks`, `outputs` of `read_groups`."""
    module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
    rank, rows = ranks.get(module), outputs.get(module)
    columns = outputs[module.replace("down_proj", "gate_proj")] if module.endswith("down_proj") else None
    active = torch.zeros(shape, dtype=torch.bool)
    if factor.startswith("A"):
        active[:rank, :columns] = True
    else:
        active[:rows, :rank] = True
    return active


@dataclass
class Update:
    """One call of the optimizer: parameters, gradients and AdamW's state by name, before and after."""

    step: int
    lr: float
    before: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    states: dict[str, dict[str, torch.Tensor]]
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    states_after: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


@dataclass
class Watched:
    """What happened in a run: its model, every pass (step, widths), every optimizer step, and what was autocast to."""

    model: Any = None
    network: Any = None
    passes: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    autocast: set[torch.dtype | None] = field(default_factory=set)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watches the runs of a test."""
    seen = Watched()
    compute_loss = ElasticTrainer.compute_loss

    class Network(SuperNetwork):
        def __init__(self, model: Any, *arguments: Any):
            super().__init__(model, *arguments)
            seen.model, seen.network = model, self
            model.get_base_model().lm_head.register_forward_pre_hook(autocast)

        def activate(self, chosen: Sequence[int]) -> None:
            super().activate(chosen)
            self.active = tuple(chosen)

    class Kept(InactiveKept):
        def __init__(self, optimizer: torch.optim.Optimizer, *arguments: Any):
            optimizer.register_step_pre_hook(before)
            super().__init__(optimizer, *arguments)
            optimizer.register_step_post_hook(after)

    def autocast(*_: Any) -> None:
        seen.autocast.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    def states(optimizer: Any) -> dict[str, dict[str, torch.Tensor]]:
        return {name: {k: v.clone() for k, v in optimizer.state.get(p, {}).items()} for name, p in seen.parameters()}

    def before(optimizer: Any, *_: Any) -> None:
        values = {name: p.detach().clone() for name, p in seen.parameters()}
        gradients = {name: p.grad.clone() for name, p in seen.parameters()}
        lr = optimizer.param_groups[0]["lr"]
        seen.updates.append(Update(seen.passes[-1][0], lr, values, gradients, states(optimizer)))

    def after(optimizer: Any, *_: Any) -> None:
        seen.updates[-1].after = {name: p.detach().clone() for name, p in seen.parameters()}
        seen.updates[-1].states_after = states(optimizer)

    def watch(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
        seen.passes.append((self.state.global_step, self.network.active))
        return compute_loss(self, *arguments, **options)

    monkeypatch.setattr(lonas_edge.training.train, "SuperNetwork", Network)
    monkeypatch.setattr(lonas_edge.training.train, "InactiveKept", Kept)
    monkeypatch.setattr(ElasticTrainer, "compute_loss", watch)
    return seen


def plain_adamw(update: Update, name: str, weight_decay: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What a plain AdamW makes of a whole parameter."""
    parameter = nn.Parameter(update.before[name].clone())
    parameter.grad = update.gradients[name].clone()
    optimizer = torch.optim.AdamW([parameter], lr=update.lr, weight_decay=weight_decay)
    if update.states[name]:
        optimizer.state[parameter] = {key: value.clone() for key, value in update.states[name].items()}
    optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


@pytest.mark.parametrize("sampling", ["random", "sandwich"])
def test_optimizer_leaves_the_inactive_part_alone(
    sampling: str, llama: TinySource, data: Path, tmp_path: Path, watched: Watched
) -> None:
    """Bit for bit, moments included, though momentum of earlier steps and weight decay would move it.

    A sandwich has all of the adapter active in every step: that of its maximal network.
    """
    changes = {"weight_decay": 0.1, "reorder": False, "warmup_steps": 0, "micro_batch_size": 2, "sampling": sampling}
    run(llama, data, tmp_path / "out", **changes)
    assert len(watched.updates) == 8
    would_move, moments_would_change = 0, 0
    for update in watched.updates:
        networks = [widths for step, widths in watched.passes if step == update.step]
        assert len(networks) == 2 * (3 if sampling == "sandwich" else 1)
        assert networks[: len(networks) // 2] == networks[len(networks) // 2 :]  # both micro-batches alike
        groups = [read_groups(llama.space, list(widths)) for widths in set(networks)]
        for name, before in update.before.items():
            active = torch.stack([active_part(name, before.shape, *group) for group in groups]).any(0)
            assert sampling == "random" or active.all()
            expected, state = plain_adamw(update, name, 0.1)
            after, state_after = update.after[name], update.states_after[name]
            assert torch.equal(after[~active], before[~active])
            assert torch.equal(after[active], expected[active])
            assert not torch.equal(after[active], before[active])
            for moment in ("exp_avg", "exp_avg_sq"):
                earlier = update.states[name].get(moment, torch.zeros_like(before))
                assert torch.equal(state_after[moment][~active], earlier[~active])
                assert torch.equal(state_after[moment][active], state[moment][active])
                if update.step or ".lora_B." in name:  # lora_A has no gradient while lora_B is 0
                    assert not torch.equal(state_after[moment][active], earlier[active])
                moments_would_change += int((state[moment] != earlier)[~active].sum())
            would_move += int((expected != before)[~active].sum())
    if sampling == "random":  # the test has teeth
        assert would_move > 1000
        assert moments_would_change > 1000
    final = {name.replace(".default.", "."): value for name, value in watched.updates[-1].after.items()}
    saved = tensors_of(tmp_path / "out")
    assert all(torch.equal(saved[name], value) for name, value in final.items())


@pytest.mark.parametrize("reorder", [True, False])
@pytest.mark.parametrize("case", ["llama-biased", "gemma2-tied"])
def test_what_is_written_is_what_was_trained(
    case: str, reorder: bool, tiny_models: TinyModels, data: Path, tmp_path: Path, watched: Watched, choose, ids
) -> None:
    """The files against the live network at the end of its training."""
    source, live = tiny_models.source(case), {}

    def look(step: int, steps: int, log: Any) -> None:
        if step == steps and not log:
            watched.model.eval()
            for name in ("maximal", "minimal", "unequal:8"):
                watched.network.activate(choose(source, name))
                live[name] = logits_of(watched.model, ids)

    run(source, data, tmp_path / "out", report=look, reorder=reorder, steps=4)
    assert len(live) == 3
    network = load_super_network(open_source(str(tmp_path / "out")))
    for name, expected in live.items():
        network.activate(choose(source, name))
        assert (logits_of(network.model, ids) - expected).abs().max() < 1e-5, name
    peft = PeftModel.from_pretrained(plain_base(source), tmp_path / "out").eval()
    assert (logits_of(peft, ids) - live["maximal"]).abs().max() < 1e-4


def test_gradient_norm_is_that_of_the_active_part(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    record = run(llama, data, tmp_path / "out", steps=3, max_grad_norm=0.5)
    for update, logged in zip(watched.updates, record["losses"], strict=True):
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in update.gradients.values()))
        assert logged["grad_norm"] > 0.5
        assert norm == pytest.approx(0.5, abs=1e-4)


# seeds and resuming

TWELVE = EXAMPLES[:12]  # 3 steps an epoch: a checkpoint at step 3 or 6 is the end of one
EIGHT = EXAMPLES[:8]  # 2 steps an epoch: a checkpoint at step 3 is in the middle of the second
TEN = EXAMPLES[:10]  # 3 steps an epoch, the last of 2 examples
VARIANTS: dict[str, tuple[Sequence[dict[str, str]], dict[str, Any]]] = {
    "middle-of-epoch": (EIGHT, {"dropout": 0.1, "group_by_length": False}),
    "end-of-epoch": (TWELVE, {"weight_decay": 0.1, "reorder": False}),
    "accumulated": (TEN, {"micro_batch_size": 2, "group_by_length": False}),
    "sandwich": (EIGHT, {"sampling": "sandwich", "distill": 0.5, "dropout": 0.1, "micro_batch_size": 2}),
}


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path, dict[str, Any]]]:
    """Data, super-adapter and record of a run that nothing disturbed, made once: `uninterrupted(variant)`."""
    root, made = tmp_path_factory.mktemp("uninterrupted"), {}

    def make(variant: str) -> tuple[Path, Path, dict[str, Any]]:
        if variant not in made:
            examples, changes = VARIANTS[variant]
            path = write_data(root / f"{variant}.json", examples)
            made[variant] = path, root / variant, run(tiny_models.source("llama"), path, root / variant, **changes)
        return made[variant]

    return make


def same(folder: Path, record: dict[str, Any], other: Path, other_record: dict[str, Any]) -> None:
    """Bitwise the same adapter, the same history."""
    assert (folder / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
    assert record["losses"] == other_record["losses"]
    assert [entry["step"] for entry in record["losses"]] == list(range(1, 9))


def test_a_seed_gives_one_adapter(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted("middle-of-epoch")
    torch.manual_seed(1)  # what happened before does not matter
    again = run(llama, data, tmp_path / "again", **VARIANTS["middle-of-epoch"][1])
    same(tmp_path / "again", again, folder, record)
    run(llama, data, tmp_path / "other", seed=43, **VARIANTS["middle-of-epoch"][1])
    assert difference(tmp_path / "other", folder) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(variant: str, llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted(variant)
    output, changes = tmp_path / "out", VARIANTS[variant][1]
    run_killed(llama, data, output, at=5, **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    assert [path.name for path in working(output).glob("checkpoint-*")] == ["checkpoint-3"]
    steps = []
    resumed = run(llama, data, output, resume=True, report=lambda step, _steps, log: steps.append(step), **changes)
    assert resumed["resumed_from_step"] == 3
    assert steps[0] == 4
    assert record["resumed_from_step"] is None
    same(output, resumed, folder, record)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_interrupted_before_the_first_checkpoint(llama: TinySource, data: Path, tmp_path: Path) -> None:
    run_killed(llama, data, tmp_path / "out", at=2)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_checkpoint_is_not_used(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    data, folder, record = uninterrupted("middle-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["middle-of-epoch"][1]
    run_killed(llama, data, output, at=7, **changes)
    newest = working(output) / "checkpoint-6"
    assert (working(output) / "checkpoint-3/complete").exists()
    (newest / "complete").unlink()
    (newest / "optimizer.pt").write_bytes(b"cut off")
    (newest / "trainer_state.json").unlink()
    resumed = run(llama, data, output, resume=True, **changes)
    assert resumed["resumed_from_step"] == 3
    same(output, resumed, folder, record)


def test_output_appears_when_it_is_done(llama: TinySource, data: Path, tmp_path: Path) -> None:
    seen = []

    def look(step: int, steps: int, _log: Any) -> None:
        seen.append((step, steps))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.training.lock", "out.training"]

    run(llama, data, tmp_path / "out", report=look)
    assert seen[0] == (1, 8)
    assert seen[-1] == (8, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    expected = ["README.md", "adapter_config.json", ADAPTER, ORDER, SPACE, RECORD]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)


def test_output_that_appears_meanwhile_is_kept(llama: TinySource, uninterrupted: Callable, tmp_path: Path) -> None:
    """The training is not lost: once it has been moved away, --resume writes what the last checkpoint holds."""
    data, folder, record = uninterrupted("middle-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["middle-of-epoch"][1]

    def appear(step: int, _steps: int, _log: Any) -> None:
        if step == 6 and not output.exists():
            output.mkdir()
            (output / "theirs").write_text("theirs")

    with pytest.raises(LonasEdgeError, match="appeared while it was being made"):
        run(llama, data, output, report=appear, **changes)
    assert [path.name for path in output.iterdir()] == ["theirs"]
    output.rename(tmp_path / "moved")
    resumed = run(llama, data, output, resume=True, **changes)
    assert resumed["resumed_from_step"] == 8
    same(output, resumed, folder, record)
    assert not working(output).exists()


def test_overwrite_replaces_output_and_unfinished_training(llama: TinySource, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_killed(llama, data, output, at=5, seed=1)
    output.mkdir()
    (output / "mine").write_text("mine")
    with pytest.raises(LonasEdgeError, match="exists and is kept as it is"):
        run(llama, data, output)
    run_killed(llama, data, output, at=4, overwrite=True)
    assert (output / "mine").read_text() == "mine"  # until the new one is done
    run(llama, data, output, overwrite=True, steps=2)
    assert not (output / "mine").exists()
    assert json.loads((output / RECORD).read_text())["steps"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["base", "stages"])
def test_resuming_on_something_else_is_refused(llama: TinySource, data: Path, tmp_path: Path, name: str) -> None:
    """Another base of the same architecture, or another schedule over the same groups."""
    source = llama.copied_to(tmp_path)
    run_killed(source, data, tmp_path / "out", at=4, lr=None)
    if name == "base":
        from safetensors.torch import save_file

        tensors = load_file(source.base / "model.safetensors")
        tensors["model.norm.weight"] *= 1.5
        save_file(tensors, source.base / "model.safetensors", metadata={"format": "pt"})
    else:
        content = json.loads(source.space.read_text())
        content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0].update(init_lr=0.5, width_indicator=1)
        source.space.write_text(json.dumps(content))
    with pytest.raises(LonasEdgeError, match="cannot be resumed with other settings"):
        run(source, data, tmp_path / "out", resume=True, lr=None)


def test_resumed_with_other_saving_and_logging(llama: TinySource, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_killed(llama, data, output, at=5)
    found: set[str] = set()
    record = run(
        *(llama, data, output),
        resume=True,
        save_steps=1,
        log_steps=2,
        report=lambda *_: found.update(path.name for path in working(output).glob("checkpoint-*")),
    )
    assert {"checkpoint-4", "checkpoint-5", "checkpoint-7"} <= found
    assert [entry["step"] for entry in record["losses"]] == [1, 2, 3, 4, 6, 8]


def test_checkpoints_do_not_cut_what_is_logged(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """A record is the mean of its steps, also when the training was resumed: by default checkpoints and records meet."""
    changes = {"save_steps": None, "log_steps": 3, "steps": 11}
    expected = run(llama, data, tmp_path / "whole", **changes)
    run_killed(llama, data, tmp_path / "out", at=5, **changes)
    resumed = run(llama, data, tmp_path / "out", resume=True, **changes)
    assert resumed["resumed_from_step"] == 3
    assert [entry["step"] for entry in expected["losses"]] == [3, 6, 9]
    assert resumed["losses"] == expected["losses"]


# the loss of whole runs


@pytest.mark.parametrize(
    ("sampling", "distill", "micro_batch_size"),
    [("random", 0.0, 2), ("random", 0.4, None), ("sandwich", 0.0, None), ("sandwich", 0.4, 2)],
)
def test_logged_loss_by_hand(
    sampling, distill: float, micro_batch_size: int | None, llama: TinySource, tmp_path: Path, watched: Watched, choose
) -> None:
    """The first step on all examples at once: lora_B is 0, so that each sub-network is the narrowed base."""
    examples = EXAMPLES[:8]
    changes = {"sampling": sampling, "distill": distill, "micro_batch_size": micro_batch_size}
    data = write_data(tmp_path / "data.json", examples)
    record = run(llama, data, tmp_path / "out", steps=1, batch_size=8, reorder=False, **changes)
    micro_batches = 1 if micro_batch_size is None else 4
    networks = [widths for _, widths in watched.passes][: len(watched.passes) // micro_batches]
    assert [widths for _, widths in watched.passes] == networks * micro_batches
    maximal = tuple(choose(llama, "maximal"))
    if sampling == "sandwich":
        assert networks[:2] == [maximal, tuple(choose(llama, "minimal"))]
    assert len(networks) == (3 if sampling == "sandwich" else 1)
    tokens = [Tokens.of(llama, example) for example in examples]

    def network(widths: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda ids: oracle_logits(llama.base, None, llama.space, list(widths), ids)

    losses = []
    for widths in networks:
        share = distill if widths != maximal else 0.0
        kl = divergence(tokens, network(maximal), network(widths)) if share else 0.0
        losses.append((1 - share) * cross_entropy(tokens, network(widths)) + share * kl)
    assert record["losses"][0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


@pytest.mark.parametrize("changes", [{}, {"sampling": "sandwich", "distill": 0.5}])
def test_micro_batches_give_the_same_adapter(changes: dict[str, Any], llama: TinySource, data: Path, tmp_path: Path) -> None:
    for name, size in (("whole", None), ("halves", 2)):
        run(llama, data, tmp_path / name, steps=4, micro_batch_size=size, **changes)
    assert difference(tmp_path / "halves", tmp_path / "whole") < 1e-5


def test_sandwich_trains_three_networks_a_step(llama: TinySource, data: Path, tmp_path: Path, watched, choose) -> None:
    run(llama, data, tmp_path / "out", steps=5, sampling="sandwich")
    assert [step for step, _ in watched.passes] == [step for step in range(5) for _ in range(3)]
    networks = [widths for _, widths in watched.passes]
    assert set(networks[0::3]) == {tuple(choose(llama, "maximal"))}
    assert set(networks[1::3]) == {tuple(choose(llama, "minimal"))}
    assert len(set(networks[2::3])) == 5
    assert all(width in allowed for drawn in networks for width, allowed in zip(drawn, llama.groups(), strict=True))


def test_every_width_is_drawn(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """Each group for itself: 30 draws miss one of 3 widths with probability 3 (2/3)^30 < 1e-4."""
    run(llama, data, tmp_path / "out", steps=30, batch_size=1, save_steps=100)
    assert len(watched.passes) == 30
    for index, allowed in enumerate(llama.groups()):
        assert {widths[index] for _, widths in watched.passes} == set(allowed)
    assert len({widths[3:6] for _, widths in watched.passes}) > 10  # of 27


# a loss that is not finite


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the loss of a step NaN: `nan_at(step)`, from 1."""
    compute_loss = ElasticTrainer.compute_loss

    def spoil(step: int) -> None:
        def broken(self: ElasticTrainer, *arguments: Any, **options: Any) -> Any:
            loss = compute_loss(self, *arguments, **options)
            return loss * math.nan if self.state.global_step + 1 == step else loss

        monkeypatch.setattr(ElasticTrainer, "compute_loss", broken)

    return spoil


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    llama: TinySource, uninterrupted: Callable, tmp_path: Path, nan_at: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder, record = uninterrupted("end-of-epoch")
    output, changes = tmp_path / "out", VARIANTS["end-of-epoch"][1]
    nan_at(5)
    with pytest.raises(LonasEdgeError) as stopped:
        run(llama, data, output, **changes)
    kept = working(output) / "checkpoint-3"
    for text in ("the loss is nan at step 5", f"last good checkpoint is kept: {kept}.", "--resume", "lower --lr"):
        assert text in str(stopped.value)
    assert (kept / "complete").exists()
    assert all(tensor.isfinite().all() for tensor in load_file(kept / ADAPTER).values())
    assert not output.exists()
    monkeypatch.undo()
    resumed = run(llama, data, output, resume=True, **changes)
    same(output, resumed, folder, record)


def test_nan_before_the_first_checkpoint(llama: TinySource, data: Path, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"the loss is (nan|inf) at step 2\. No checkpoint.*lower --lr"):
        run(llama, data, tmp_path / "out", lr=1e30, warmup_steps=0)
    assert not list(tmp_path.iterdir())


def test_not_finite_adapter_is_not_saved(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    def spoil(step: int, _steps: int, log: Any) -> None:
        if step == 6 and not log:
            with torch.no_grad():
                next(watched.parameters())[1][0, 0] = torch.inf

    with pytest.raises(LonasEdgeError, match=r"holds NaN or Inf after step 6.*checkpoint-3"):
        run(llama, data, tmp_path / "out", report=spoil)
    assert [path.name for path in working(tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (tmp_path / "out").exists()


def test_not_finite_adapter_at_the_end_is_not_written(llama: TinySource, data: Path, tmp_path: Path, watched) -> None:
    def spoil(step: int, _steps: int, log: Any) -> None:
        if step == 8 and not log:
            with torch.no_grad():
                next(watched.parameters())[1][0, 0] = torch.nan

    with pytest.raises(LonasEdgeError, match=r"holds NaN or Inf after step 8.*checkpoint-6"):
        run(llama, data, tmp_path / "out", report=spoil)
    assert not (tmp_path / "out").exists()


def test_resumed_with_a_lower_learning_rate(llama: TinySource, data: Path, tmp_path: Path, watched: Watched) -> None:
    """As the error about NaN advises."""
    run_killed(llama, data, tmp_path / "out", at=5, warmup_steps=0)
    watched.updates.clear()
    record = run(llama, data, tmp_path / "out", resume=True, warmup_steps=0, lr=0.001)
    expected = [(0.01 if step < 3 else 0.001) / 2 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert [entry["learning_rate"] for entry in record["losses"]] == pytest.approx(expected)
    assert [update.lr for update in watched.updates] == pytest.approx(expected[3:])


# stages and the record


def test_stages(llama_copy: TinySource, tmp_path: Path, watched: Watched) -> None:
    """Learning rate, widths and draws of two stages, from NNCF's schedule: 3 steps an epoch."""
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"] = [
        {"epochs": 2, "epochs_lr": 4, "init_lr": 0.01, "width_indicator": 1},
        {"epochs": 4, "epochs_lr": 3, "init_lr": 0.02, "width_indicator": 2, "sample_rate": 3},
    ]
    llama_copy.space.write_text(json.dumps(content))
    data = write_data(tmp_path / "data.json", TWELVE)
    record = run(llama_copy, data, tmp_path / "out", steps=None, lr=None, warmup_steps=4)
    assert record["steps"] == 18
    expected = []
    for step in range(18):
        lr, time, whole = (0.01, step, 12) if step < 6 else (0.02, step - 6, 9)
        expected.append(lr / 2 * (1 + math.cos(math.pi * min(1, time / whole))) * min(1, (step + 1) / 4))
    assert expected[4:8] == pytest.approx([0.0075, 0.0062940952, 0.02, 0.0193969262])
    assert expected[15:] == [0, 0, 0]
    assert [entry["learning_rate"] for entry in record["losses"]] == pytest.approx(expected, abs=1e-12)
    assert [update.lr for update in watched.updates] == pytest.approx(expected, abs=1e-12)
    networks = [widths for _, widths in watched.passes]
    maximal = tuple(group[0] for group in llama_copy.groups())
    assert set(networks[:6]) == {maximal}
    draws = [set(networks[start : start + 3]) for start in (6, 9, 12, 15)]
    assert all(len(draw) == 1 for draw in draws)
    assert len(set.union(*draws)) == 4
    assert all(w in group[:2] for drawn in networks for w, group in zip(drawn, llama_copy.groups(), strict=True))
    assert json.loads((tmp_path / "out" / RECORD).read_text()) == record


@pytest.mark.parametrize(
    ("changes", "steps", "warmup"),
    [
        ({"steps": None, "epochs": 2}, 20, 1),  # 40 examples in batches of 4, 5 % of warm-up
        ({"steps": None, "epochs": 0.5, "batch_size": 16}, 2, 0),  # half of ceil(40 / 16) = 3, rounded to even
        ({"steps": 7, "epochs": 2}, 7, 0),
    ],
)
def test_number_of_steps(changes: dict[str, Any], steps: int, warmup: int, llama: TinySource, data: Path, tmp_path) -> None:
    record = run(llama, data, tmp_path / "out", save_steps=100, **{"warmup_steps": None, **changes})
    assert (record["steps"], record["warmup_steps"]) == (steps, warmup)
    assert len(record["losses"]) == steps


def test_record(llama: TinySource, data: Path, trained: Callable, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = trained("llama", True)
    record = json.loads((folder / RECORD).read_text())
    files = ("config.json", "model.safetensors")
    hashes = {name: hashlib.sha256((llama.base / name).read_bytes()).hexdigest() for name in files}
    assert record["base"] == {"name": "base-llama", "revision": None, "sha256": hashes}
    data_sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    assert record["data"] == {"name": "data.json", "sha256": data_sha256, "examples": 40, "left_out": 0}
    assert record["prompt"]["without_input"] == "Question: {instruction}\nAnswer:"
    assert record["prompt"]["response"] == " {output}"
    assert record["options"]["lr"] == 0.02
    assert record["options"]["seed"] == 42
    assert record["reordered"] is True
    assert (record["steps"], record["device"], record["precision"], record["processes"]) == (3, "cpu", "fp32", 1)
    assert record["versions"]["torch"] == torch.__version__
    for entry in record["losses"]:
        assert entry.keys() == {"step", "loss", "learning_rate", "grad_norm"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (folder / config["base_model_name_or_path"]).resolve() == llama.base.resolve()
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (8, 16, sorted(TARGETS))
    root = str(tmp_path_factory.getbasetemp()).encode()
    for path in folder.iterdir():
        assert root not in path.read_bytes(), path
        assert str(Path.cwd()).encode() not in path.read_bytes(), path


def test_examples_that_are_too_long_are_counted(llama: TinySource, tmp_path: Path, watched: Watched) -> None:
    long = {"instruction": "What is 1 plus 1?", "output": "2 " * 200}
    record = run(llama, write_data(tmp_path / "data.json", [*TWELVE, long]), tmp_path / "out", steps=1)
    assert (record["data"]["examples"], record["data"]["left_out"]) == (12, 1)


# precision, checkpointing


def test_bf16_on_a_cpu(llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids: torch.Tensor, watched) -> None:
    record = run(llama, data, tmp_path / "out", precision="bf16", warmup_steps=0)
    assert record["precision"] == "bf16"
    losses = [entry["loss"] for entry in record["losses"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert watched.autocast == {torch.bfloat16}
    assert {p.dtype for p in watched.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for _, p in watched.parameters()} == {torch.float32}  # the optimizer's steps are not rounded away
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.float32}
    widths = choose(llama, "unequal:6")
    network = load_super_network(open_source(str(tmp_path / "out")))
    network.activate(widths)
    expected = oracle_logits(llama.base, tmp_path / "out", llama.space, widths, ids)
    assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{}, {"sampling": "sandwich", "distill": 0.5}])
def test_gradient_checkpointing_changes_nothing(changes, llama: TinySource, data: Path, tmp_path: Path, monkeypatch) -> None:
    run(llama, data, tmp_path / "plain", steps=4, **changes)
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("transformers.modeling_utils.checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    run(llama, data, tmp_path / "checkpointed", steps=4, gradient_checkpointing=True, **changes)
    assert difference(tmp_path / "plain", tmp_path / "checkpointed") < 1e-5
    assert len(calls) >= 4 * 3  # every layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (and CUDA_VISIBLE_DEVICES)")
@pytest.mark.parametrize("changes", [{}, {"sampling": "sandwich", "distill": 0.5, "gradient_checkpointing": True}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda(
    precision: str, changes: dict[str, Any], llama: TinySource, data: Path, tmp_path: Path, choose: Callable, ids
) -> None:
    output = tmp_path / "out"
    record = run(llama, data, output, device="cuda", precision=precision, warmup_steps=0, micro_batch_size=2, **changes)
    assert record["precision"] == precision
    assert record["device"] == torch.cuda.get_device_name()
    losses = [entry["loss"] for entry in record["losses"]]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    network = load_super_network(open_source(str(output)))
    for name in ("heuristic", "minimal", "unequal:6"):
        widths = choose(llama, name)
        network.activate(widths)
        expected = oracle_logits(llama.base, output, llama.space, widths, ids)
        assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (and CUDA_VISIBLE_DEVICES)")
def test_cuda_resumes(llama: TinySource, data: Path, tmp_path: Path) -> None:
    """fp16: the scaler's state is kept too. Kernels may differ in the last bits from run to run."""
    changes = {"device": "cuda", "precision": "fp16", "dropout": 0.1}
    whole = run(llama, data, tmp_path / "whole", **changes)
    run_killed(llama, data, tmp_path / "out", at=5, **changes)
    resumed = run(llama, data, tmp_path / "out", resume=True, **changes)
    assert [e["loss"] for e in resumed["losses"]] == pytest.approx([e["loss"] for e in whole["losses"]], abs=1e-3)


# two processes


KILLED = """
import os
from lonas_edge.training.train import ElasticTrainer
training_step = ElasticTrainer.training_step

def kill(self, *arguments, **options):  # the real command, killed in its 6th step
    if self.state.global_step == 5:
        os._exit(9)
    return training_step(self, *arguments, **options)

ElasticTrainer.training_step = kill
from lonas_edge.cli import main
main()
"""


def test_two_processes_equal_one(llama: TinySource, tmp_path: Path) -> None:
    """Each step has the same examples on one process and on two: rank 0 takes the first half of them, rank 1 the second.

    The two are killed and resumed on the way.
    """
    data = write_data(tmp_path / "data.json", TWELVE)  # 3 steps an epoch
    settings = {**OPTIONS, "sampling": "sandwich", "distill": 0.5, "weight_decay": 0.1}
    settings["micro_batch_size"] = 1  # two micro-batches on each of two processes, four on one
    one = run(llama, data, tmp_path / "one", **settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["train", "--model", str(llama.base), "--nncf-config", str(llama.space), "--data", str(data), "--json"]
    command += ["--output", str(tmp_path / "two")]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]

    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    ran = subprocess.run([*torchrun, str(script), *command], check=False, capture_output=True, text=True, timeout=300)
    assert ran.returncode != 0
    assert not ran.stdout
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "two.training/checkpoint-3/complete").exists()

    resuming = [*torchrun, "-m", "lonas_edge", *command, "--resume"]
    ran = subprocess.run(resuming, check=False, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    two = json.loads(ran.stdout)  # one document: only the first process prints
    assert two == json.loads((tmp_path / "two" / RECORD).read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["resumed_from_step"], two["resumed_from_step"]) == (None, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "killed.py", "one", "two"]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-4
    for left, right in zip(one["losses"], two["losses"], strict=True):
        assert left == pytest.approx(right, abs=1e-4)


def test_a_skipped_step_is_recorded_as_json() -> None:
    """fp16 skips steps whose gradients are not finite; Infinity is not JSON."""
    logged = lonas_edge.training.train._logged(
        {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": math.inf, "epoch": 1.0}
    )
    assert logged == {"step": 1, "loss": 2.0, "learning_rate": 0.1, "grad_norm": None}
