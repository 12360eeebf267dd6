"""Describe the machine, and measure its load by others."""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench.variants import Placement
from lonas_edge.ir.core import openvino_core

CPU_SYSFS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def placement(allowed: Iterable[int] | None = None, sysfs: Path = CPU_SYSFS) -> Placement:
    """Choose one logical processor per physical core.

    `allowed` are the processors of this process, by default those that it may use; `sysfs` describes them.
    """
    physical = _one_per_core(sorted(_usable() if allowed is None else allowed), sysfs)
    return Placement(tuple(physical), len(physical))


def _one_per_core(usable: Sequence[int], sysfs: Path) -> list[int]:
    """The first processor of each physical core. Without sysfs: every second one, where the machine has two per core."""
    first: dict[tuple[str, ...], int] = {}
    for cpu in usable:
        topology = sysfs / f"cpu{cpu}" / "topology"
        files = [topology / name for name in ("physical_package_id", "core_id")]
        if not all(file.exists() for file in files):  # Windows and macOS
            whole = len(usable) == psutil.cpu_count() == 2 * (psutil.cpu_count(logical=False) or 0)
            return list(usable[:: 2 if whole else 1])
        first.setdefault(tuple(file.read_text(encoding="utf-8").strip() for file in files), cpu)
    return sorted(first.values())


def _usable() -> list[int]:
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return list(process.cpu_affinity())
    return list(range(os.cpu_count() or 1))


def describe(device: str) -> dict[str, Any]:
    """Describe the conditions of a measurement: processor, memory, operating system, OpenVINO device, date."""
    core = openvino_core()
    single = device.split(":")[-1].split(",")[0]
    name = core.get_property(single, "FULL_DEVICE_NAME") if single in core.available_devices else single
    return {
        "processor": _processor(),
        "instructions": instructions(),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
        "device_name": str(name),
        "date": time.strftime("%Y-%m-%d"),
    }


def instructions() -> list[str]:
    """Return the instruction sets that matrix products use, by Linux's names; none on other systems.

    The processor's name does not determine them: virtual machines may hide some, which changes TPOT by a factor of two.
    """
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name in _INSTRUCTIONS if name in flags]


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(name: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":", 1)[0].strip() == name), "")


@dataclass(frozen=True)
class CpuTimes:
    """Processor seconds so far, over all processors: used, stolen by the host, and used by our processes."""

    wall: float
    used: float
    stolen: float
    ours: float

    @classmethod
    def now(cls, pids: Iterable[int]) -> "CpuTimes":
        """Read them; `pids` are our child processes."""
        times = psutil.cpu_times()
        stolen = getattr(times, "steal", 0.0)
        used = times.user + times.system + getattr(times, "nice", 0.0) + getattr(times, "irq", 0.0)
        used += getattr(times, "softirq", 0.0)
        ours = 0.0
        for pid in {os.getpid(), *pids}:
            try:
                own = psutil.Process(pid).cpu_times()
            except psutil.Error:
                continue
            ours += own.user + own.system
        return cls(time.perf_counter(), used, stolen, ours)


def others_share(before: CpuTimes, after: CpuTimes, processors: int) -> dict[str, float]:
    """Return the shares of all processor time between two moments: `others` (other processes) and `stolen` (by the host)."""
    total = max(after.wall - before.wall, 1e-9) * processors
    used, ours = after.used - before.used, after.ours - before.ours
    return {"others": max(0.0, used - ours) / total, "stolen": max(0.0, after.stolen - before.stolen) / total}
