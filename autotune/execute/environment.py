"""What a run's arithmetic depends on beside its state: recorded in checkpoints, so that a thaw
elsewhere is known to be inexact."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy
import torch
from threadpoolctl import threadpool_limits


@cache
def _processor() -> str:
    """The CPU's model name; the kernel's word where there is one."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str) -> dict[str, str | int]:
    """CPU type, library versions, thread count and accelerator of this process, for `device`
    (a torch device string). Two equal ones compute the same bits."""
    facts: dict[str, str | int] = {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        facts["accelerator"] = torch.cuda.get_device_name(torch.device(device))
        facts["cuda"] = str(torch.version.cuda)
    return facts


def available_cores() -> int:
    """Cores that this process may use: its affinity, cut by a container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def threads_for(workers: int) -> int:
    """Torch threads of one worker, so that all workers together share the cores."""
    return max(1, available_cores() // max(1, workers))


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread for this process's matrix operations, as long as it lasts.

    Decisions are many small ones: threads that wait for a core which a worker is using make them
    ten times slower, torch's no less than those of the BLAS.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
