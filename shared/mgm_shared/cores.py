"""How many processor cores this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def num_usable_cores() -> int:
    """The number of cores: those of the CPU affinity, and no more than the CPU time of a container or job allows.

    A cluster or `taskset` sets the affinity; Docker's `--cpus`, Kubernetes' limits and systemd set a quota of the
    control group. A quota of 1.5 cores counts as 1.
    """
    return max(1, math.floor(min(_num_cores_of_affinity(), cpu_quota())))


def _num_cores_of_affinity() -> int:
    # Python 3.13 has one function for all systems. Before, macOS and Windows know no affinity.
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(own_cgroups: Path = OWN_CGROUPS, cgroups: Path = CGROUPS) -> float:
    """Cores' worth of CPU time that the control groups of this process allow, of both versions; infinite without limit.

    Each group is limited by the groups above it too.
    """
    return min(map(_quota_of, _folders(own_cgroups, cgroups)), default=math.inf)


def _folders(own_cgroups: Path, cgroups: Path) -> Iterator[Path]:
    """The groups of this process and those above them; a container sees its own group as the top."""
    yield from (cgroups, cgroups / "cpu", cgroups / "cpu,cpuacct")
    with suppress(OSError, ValueError):
        for line in own_cgroups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            group = cgroups / controllers / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(cgroups))


def _quota_of(folder: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    return math.inf
