"""The machine that figures were measured on: its description, its memory bandwidth, and what else it was doing."""

import os
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lonas_edge.bench.worker import Placement
from lonas_edge.errors import LonasEdgeError
from lonas_edge.ir.core import openvino_core

BANDWIDTH_BYTES = 2**29  # far beyond any cache
BANDWIDTH_REPEATS = 3
CPU_SYSFS = Path("/sys/devices/system/cpu")
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # "always [madvise] never": what is chosen in brackets
TUNABLES = "GLIBC_TUNABLES"
IN_HUGE_PAGES = {TUNABLES: "glibc.malloc.hugetlb=1"}  # malloc asks for them (glibc's manual, "Memory Allocation Tunables")
_SINCE = (2, 35)  # glibc
CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def placement(threads: int | None, allowed: Iterable[int] | None = None, sysfs: Path = CPU_SYSFS) -> Placement:
    """One logical processor of each physical core that this process may use.

    Args:
        threads: How many threads; one for each physical core when None.
        allowed: Logical processors to choose from; those this process may use when None.
        sysfs: Where the kernel describes them.

    Returns:
        Processors and threads; with more threads than cores, all allowed processors.

    Raises:
        LonasEdgeError: If there are fewer processors than threads.
    """
    usable = sorted(_usable() if allowed is None else allowed)
    first: dict[tuple[str, ...], int] = {}
    for cpu in usable:
        topology = sysfs / f"cpu{cpu}" / "topology"
        files = [topology / name for name in ("physical_package_id", "core_id")]
        core = (
            tuple(file.read_text(encoding="utf-8").strip() for file in files) if all(f.exists() for f in files) else (str(cpu),)
        )
        first.setdefault(core, cpu)
    physical = sorted(first.values())
    if threads is None:
        return Placement(tuple(physical), len(physical))
    if threads > len(usable):
        raise LonasEdgeError(f"--threads {threads}: this process may use {len(usable)} processors")
    return Placement(tuple((physical if threads <= len(physical) else usable)[:threads]), threads)


def _usable() -> list[int]:
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # macOS has none
        return list(process.cpu_affinity())
    return list(range(os.cpu_count() or 1))


def describe(device: str) -> dict[str, Any]:
    """What figures depend on.

    Args:
        device: The OpenVINO device of the sub-network.

    Returns:
        Processor, memory, operating system, and the device's own name.
    """
    core = openvino_core()
    single = device.split(":")[-1].split(",")[0]
    name = core.get_property(single, "FULL_DEVICE_NAME") if single in core.available_devices else single
    return {
        "processor": _processor(),
        "instructions": instructions(),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "transparent_huge_pages": transparent_huge_pages(),
        "glibc_tunables": os.environ.get(TUNABLES),
        "system": f"{platform.system()} {platform.release()}",
        "device": device,
        "device_name": str(name),
        "date": time.strftime("%Y-%m-%d"),
    }


def transparent_huge_pages() -> str | None:
    """Whether memory lies in huge pages: always, madvise (where a program asks for it) or never; None on other systems."""
    if not TRANSPARENT.exists():
        return None
    found = re.search(r"\[(\w+)\]", TRANSPARENT.read_text(encoding="utf-8"))
    return found and found[1]


def huge_pages_fault() -> str | None:
    """Why a process of ours cannot be told to ask for huge pages; None where it can."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < _SINCE:
        needed = ".".join(map(str, _SINCE))
        return f"glibc {needed} or newer has to ask for them, and here is {library or 'another C library'} {version}".rstrip()
    if transparent_huge_pages() in (None, "never"):
        return f"this system has none to give ({TRANSPARENT} is missing or says never); root may write madvise to it"
    if TUNABLES in os.environ:
        return f"{TUNABLES}={os.environ[TUNABLES]} is set already, for every arm; leave it or this arm out"
    return None


def instructions() -> list[str]:
    """What the processor can do that kernels of matrix products ask for, as Linux calls it; nothing on other systems.

    Its name does not say: virtual machines of one name have them or not, and a token takes twice as long or half.
    """
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name in _INSTRUCTIONS if name in flags]


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor()


def _cpuinfo(name: str) -> str:
    """What /proc/cpuinfo says of the first processor."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":", 1)[0].strip() == name), "")


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read from memory: the best of several passes over 512 MiB of fp32.

    Args:
        threads: How many.

    Returns:
        The bandwidth.
    """
    import torch

    before, best = torch.get_num_threads(), float("inf")
    torch.set_num_threads(threads)
    try:
        values = torch.ones(BANDWIDTH_BYTES // 4)
        for kernel in (torch.amax, torch.sum):
            for _ in range(BANDWIDTH_REPEATS):
                start = time.perf_counter()
                kernel(values)
                best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return BANDWIDTH_BYTES / best


@dataclass(frozen=True)
class CpuTimes:
    """Processor seconds at one moment, over all processors: all that were used, those stolen by the host, and our own."""

    wall: float
    used: float
    stolen: float
    ours: float

    @classmethod
    def now(cls, pids: Iterable[int]) -> "CpuTimes":
        """Read them; `pids` are our processes."""
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
    """What others took of the machine between two moments.

    Args:
        before: At the start.
        after: At the end; the same processes of ours.
        processors: How many the machine has.

    Returns:
        Shares of all processor time: `others` used by other processes, `stolen` by the host.
    """
    total = max(after.wall - before.wall, 1e-9) * processors
    used, ours = after.used - before.used, after.ours - before.ours
    return {"others": max(0.0, used - ours) / total, "stolen": max(0.0, after.stolen - before.stolen) / total}
