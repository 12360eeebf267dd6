"""Placement on a fake machine, its description, and load by others."""

from pathlib import Path

import pytest

from lonas_edge.bench.machine import CpuTimes, others_share, placement
from lonas_edge.bench.variants import Placement


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Two packages of two cores; processors 4 to 7 are the cores' second threads."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (topology / "core_id").write_text(f"{cpu % 2}\n")
    return tmp_path


def test_one_thread_per_physical_core(sysfs: Path) -> None:
    assert placement(range(8), sysfs) == Placement((0, 1, 2, 3), 4)
    assert placement([1, 5, 6], sysfs) == Placement((1, 6), 2)  # the others are not allowed


def test_load_by_others() -> None:
    """Ten seconds on two processors: 16 s used, 11 of them ours, 2 s stolen."""
    before, after = CpuTimes(0.0, 100.0, 5.0, 10.0), CpuTimes(10.0, 116.0, 7.0, 21.0)
    assert others_share(before, after, 2) == {"others": pytest.approx(0.25), "stolen": pytest.approx(0.1)}
    assert others_share(before, before, 2) == {"others": 0.0, "stolen": 0.0}
