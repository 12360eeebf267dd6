"""What a training works on: opened, checked, made tokens."""

import json
from pathlib import Path

import pytest
from tiny_models import OTHER_TARGETS, TARGETS, TinyModels, TinySource
from training_runs import EXAMPLES

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.inputs import adapter_ranks, lora_config, open_inputs, with_targets
from lonas_edge.training.options import TrainOptions


def test_opened(llama: TinySource, data: Path) -> None:
    inputs = open_inputs(str(llama.base), data, llama.space)
    assert (inputs.base.name, inputs.base.folder, inputs.base.revision) == ("base-llama", llama.base, None)
    assert [list(group.widths) for group in inputs.space.groups] == llama.groups()
    assert [(e.instruction, e.output) for e in inputs.data.data[0].examples] == [
        (e["instruction"], e["output"]) for e in EXAMPLES
    ]


def test_faults_of_search_settings_do_not_matter(llama_copy: TinySource, data: Path) -> None:
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["search"] = {"population": "many"}
    llama_copy.space.write_text(json.dumps(content))
    space = open_inputs(str(llama_copy.base), data, llama_copy.space).space
    assert len(space.groups) == 9
    with pytest.raises(LonasEdgeError, match="population must be a number, found 'many'"):
        space.search_settings()


def test_plain_lora_takes_the_stages_alone(llama_copy: TinySource, data: Path) -> None:
    """Also those of a search space whose groups do not fit."""
    content = json.loads(llama_copy.space.read_text())
    content["bootstrapNAS"]["training"]["elasticity"]["width"]["overwrite_groups_widths"][4] = [11008, 8256]
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"] = [{"epochs": 7}]
    llama_copy.space.write_text(json.dumps(content))
    inputs = open_inputs(str(llama_copy.base), data, llama_copy.space, elastic=False)
    assert (inputs.space.groups, inputs.elasticity.in_group) == ((), {})
    assert [stage.epochs for stage in inputs.space.stages] == [7]
    with pytest.raises(LonasEdgeError, match="width 11008"):
        open_inputs(str(llama_copy.base), data, llama_copy.space)


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("qwen3", TARGETS),
        ("neox", OTHER_TARGETS["gpt_neox"]),
        ("phi3", OTHER_TARGETS["phi3"]),
        ("bloom", OTHER_TARGETS["bloom"]),
    ],
)
def test_default_target_modules(case: str, targets: list[str], tiny_models: TinyModels, data: Path) -> None:
    architecture = open_inputs(str(tiny_models.base(case)), data, tiny_models.space(case)).architecture
    found = with_targets(TrainOptions(), architecture).target_modules
    assert (len(found), set(found)) == (len(targets), set(targets))


def test_target_modules(llama: TinySource, data: Path) -> None:
    """The family's where none are named; `()` names none."""
    architecture = open_inputs(str(llama.base), data, llama.space).architecture
    assert with_targets(TrainOptions(), architecture).target_modules == tuple(TARGETS)
    assert with_targets(TrainOptions(target_modules=("o_proj",)), architecture).target_modules == ("o_proj",)
    assert with_targets(TrainOptions(target_modules=()), architecture).target_modules == ()
    options = with_targets(TrainOptions(rank=5, alpha=7, dropout=0.25), architecture)
    config = lora_config(options, architecture)
    assert config.task_type == "CAUSAL_LM"
    assert (config.r, config.lora_alpha, config.lora_dropout, config.target_modules) == (5, 7, 0.25, set(TARGETS))
    layers = [f"model.layers.{i}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}" for i in range(3) for name in TARGETS]
    assert adapter_ranks(options, architecture) == dict.fromkeys(layers, 5)
