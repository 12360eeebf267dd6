"""The verification of an export: correct sub-networks pass, and every injected error is caught."""

import sys
from pathlib import Path

import pytest
from tiny_bert import TinyBert
from tiny_models import TinyModels

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import verification
from verification import ERRORS, INVISIBLE, ON_DISK, Files, caught_errors, caught_on_disk, missed_of, refused_networks, variants


def files(models: TinyModels, case: str) -> Files:
    return Files(case, models.base(case), models.adapter(case), models.space(case))


BIASES, SEPARATE, ROTATED = {"wrong_bias_slice"}, {"k_and_v_swapped"}, {"wrong_rope_base"}
OF_BERT = {"segments_swapped", "pooler_removed"}
OF_OTHERS = {"multiplier_of_one", "layer_without_rotation"}
LACKING = {  # errors that need a part which the family does not have
    "llama-biased": OF_BERT | OF_OTHERS,
    "neox-tied": OF_BERT | OF_OTHERS | SEPARATE,
    "phi3": OF_BERT | OF_OTHERS | SEPARATE | BIASES,
    "bloom": OF_BERT | OF_OTHERS | SEPARATE | ROTATED,
    "granite": OF_BERT | BIASES | {"layer_without_rotation"},
    "smollm3": OF_BERT | BIASES | {"multiplier_of_one"},
    "bert": OF_OTHERS | ROTATED,
}
_SLOW = ("phi3", "bloom", "granite", "smollm3")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in _SLOW)) for case in LACKING])
def test_every_error_is_caught(case: str, tiny_models: TinyModels, tiny_bert: TinyBert) -> None:
    source = tiny_bert.source(3)
    of = Files("bert", source.base, source.adapter, source.space) if case == "bert" else files(tiny_models, case)
    counts = caught_errors(of, networks=2, seed=0)
    assert not missed_of(counts), counts
    assert {name for name in ERRORS if counts[name]["caught"]} == ERRORS.keys() - LACKING[case]
    assert not any(counts[name]["caught"] for name in INVISIBLE)


def test_a_checkpoint_on_disk(tiny_models: TinyModels, tmp_path: Path) -> None:
    expected = {name: {"caught": 2, "missed": 0} for name in ON_DISK}
    assert caught_on_disk(files(tiny_models, "llama"), 2, 0, tmp_path) == expected


def test_no_correct_network_is_refused(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Untrained and random adapters, fp32 and bf16 bases, ordered or not: all eight. With no tolerance some are refused."""
    sources = variants(files(tiny_models, "llama-tied"), tmp_path)
    assert len({source.name for source in sources}) == 8
    counts = refused_networks(sources, 8, 0, tmp_path)
    assert not counts["refused"], counts["refusals"]
    assert 0 < max(counts["largest_difference"].values()) < 1e-8
    monkeypatch.setattr(verification.verify, "CHECKPOINT_TOLERANCE", 0.0)
    counts = refused_networks(sources[-1:], 1, 0, tmp_path)
    assert counts["refused"] == 1 and "verification failed" in counts["refusals"][0]
