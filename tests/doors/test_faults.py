"""The verification on one tiny family with everything in it: right sub-networks pass, and every injected fault is caught."""

import sys
from pathlib import Path

import pytest
from tiny_models import TinyModels

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import faults
from faults import BLIND, FAULTS, ON_DISK, Files, caught_faults, caught_on_disk, missed_of, refused_networks, variants


def files(models: TinyModels, case: str) -> Files:
    return Files(case, models.base(case), models.adapter(case), models.space(case))


@pytest.mark.parametrize("case", ["llama-biased", "neox-tied", "phi3"])
def test_every_fault_is_caught(case: str, tiny_models: TinyModels, tmp_path: Path):
    found = caught_faults(files(tiny_models, case), networks=2, seed=0)
    assert not missed_of(found), found
    counts = found["faults"]
    changed = {name for name in FAULTS if counts[name]["caught"]}
    biases, separate = {"wrong_bias_slice"}, {"k_and_v_swapped"}
    lacking = {"llama-biased": set(), "neox-tied": separate, "phi3": biases | separate}[case]
    assert changed == FAULTS.keys() - lacking
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
