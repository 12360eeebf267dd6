"""The verification on one tiny family with everything in it: right sub-networks pass, and every injected fault is caught."""

import sys
from pathlib import Path

import pytest
from tiny_bert import TinyBert
from tiny_models import TinyModels

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import faults
from faults import BLIND, FAULTS, ON_DISK, Files, caught_faults, caught_on_disk, missed_of, refused_networks, variants


def files(models: TinyModels, case: str) -> Files:
    return Files(case, models.base(case), models.adapter(case), models.space(case))


BIASES, SEPARATE, ROTATED = {"wrong_bias_slice"}, {"k_and_v_swapped"}, {"wrong_rope_base"}
OF_BERT = {"segments_swapped", "the_pooler_left_out"}
OF_OTHERS = {"a_multiplier_left_at_one", "a_layer_with_rotation_without"}
LACKING = {  # what a family has not, so that there is nothing to do wrong
    "llama-biased": OF_BERT | OF_OTHERS,
    "neox-tied": OF_BERT | OF_OTHERS | SEPARATE,
    "phi3": OF_BERT | OF_OTHERS | SEPARATE | BIASES,
    "bloom": OF_BERT | OF_OTHERS | SEPARATE | ROTATED,
    "granite": OF_BERT | BIASES | {"a_layer_with_rotation_without"},
    "smollm3": OF_BERT | BIASES | {"a_multiplier_left_at_one"},
    "bert": OF_OTHERS | ROTATED,
}


@pytest.mark.parametrize("case", LACKING)
def test_every_fault_is_caught(case: str, tiny_models: TinyModels, tiny_bert: TinyBert, tmp_path: Path):
    source = tiny_bert.source(3)
    of = Files("bert", source.base, source.adapter, source.space) if case == "bert" else files(tiny_models, case)
    found = caught_faults(of, networks=2, seed=0)
    assert not missed_of(found), found
    counts = found["faults"]
    assert {name for name in FAULTS if counts[name]["caught"]} == FAULTS.keys() - LACKING[case]
    assert not any(counts[name]["caught"] for name in BLIND), "it sees more than is written"


def test_a_checkpoint_on_disk(tiny_models: TinyModels, tmp_path: Path):
    assert caught_on_disk(files(tiny_models, "llama"), 2, 0, tmp_path) == {name: {"caught": 2, "missed": 0} for name in ON_DISK}


@pytest.mark.parametrize("case", ["llama-tied", "gemma"])
def test_nothing_right_is_refused(case: str, tiny_models: TinyModels, tmp_path: Path):
    """Untrained and random adapters, fp32 and bf16 bases, ordered or not: all eight."""
    sources = variants(files(tiny_models, case), tmp_path)
    assert len({source.name for source in sources}) == 8
    found = refused_networks(sources, 8, 0, tmp_path)
    assert not found["refused"], found["refusals"]
    assert 0 < max(found["largest_difference"].values()) < 1e-8


def test_a_refusal_is_counted(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults.verify, "CHECKPOINT_TOLERANCE", 0.0)
    found = refused_networks([files(tiny_models, "llama")], 2, 0, tmp_path)
    assert found["refused"] == 2
    assert "verification failed" in found["refusals"][0]
