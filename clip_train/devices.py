"""What this machine gives to a process: CPU cores, and the speed of its GPU."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Peak of dense matrix products in half precision (bf16; fp16 before Ampere) in FLOP/s, by the name that the driver
# gives. From NVIDIA's data sheets; where a sheet names the rate with sparsity, half of it. Another name has no entry:
# an "L40" is not an "L4".
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100-SXM2-16GB": 125e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
    "Tesla T4": 65e12,
}
_CGROUPS = Path("/sys/fs/cgroup")


def device_name(device: torch.device) -> str:
    """The name of the GPU, or "" for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of the GPU at its best. None: not known."""
    return PEAK_FLOPS.get(device_name(device))


def cpu_count() -> int:
    """Cores that this process may use: those of its affinity, within the quota of its container. At least 1."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), quota(groups))))


def quota(groups: Iterable[str]) -> float:
    """Cores' worth of time that control groups of version 2 or 1 allow; infinite without a quota.

    Args:
        groups: the lines of /proc/self/cgroup.
    """
    allowed = math.inf
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):  # a container may see its own group as the root
                allowed = min(allowed, _quota_of(folder))
    return allowed


def _quota_of(folder: Path) -> float:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
