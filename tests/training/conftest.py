"""Fixtures of the trainings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TinyModels
from training_runs import VARIANTS, Update, Watched, run, write_data

import lonas_edge.training.job
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.training.elastic_trainer import ElasticTrainer, InactiveKept


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 short examples whose answers have 3 to 15 tokens."""
    return write_data(tmp_path_factory.mktemp("data") / "data.json")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Watches the runs of a test."""
    seen = Watched()
    compute_loss = ElasticTrainer.compute_loss

    class Network(SuperNetwork):
        def __init__(self, model: Any, *arguments: Any):
            super().__init__(model, *arguments)
            seen.model, seen.network = model, self
            if head := model.get_base_model().get_output_embeddings():
                head.register_forward_pre_hook(autocast)

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

    monkeypatch.setattr(lonas_edge.training.job, "SuperNetwork", Network)
    monkeypatch.setattr(lonas_edge.training.job, "InactiveKept", Kept)
    monkeypatch.setattr(ElasticTrainer, "compute_loss", watch)
    return seen
