"""How many processor cores this process may use."""

import os


def num_usable_cores() -> int:
    """The number of cores, at most those of the CPU affinity that a cluster or `taskset` sets."""
    # Python 3.13 has one function for all systems. Before, macOS and Windows know no affinity.
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
