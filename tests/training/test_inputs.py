"""Inputs of a training: search space and target modules."""

import json
from pathlib import Path

import pytest
from tiny_models import OTHER_TARGETS, TARGETS, TinyModels, TinySource

from lonas_edge.errors import LonasEdgeError
from lonas_edge.training.defaults import with_targets
from lonas_edge.training.inputs import open_inputs
from lonas_edge.training.options import TrainOptions


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
    chosen = with_targets(TrainOptions(), architecture).target_modules
    assert (len(chosen), set(chosen)) == (len(targets), set(targets))
