"""How many cores torch may use. Ray gives a worker one thread, and a container may own fewer cores than it
sees."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def cores() -> int:
    """Cores this process may use: its affinity, cut by the quota of its container (cgroup v2 or v1)."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(seen, _quota() or seen))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        v2 = root / "cpu.max"
        texts = (
            v2.read_text().split()
            if v2.exists()
            else [(root / f"cpu/cpu.cfs_{n}_us").read_text() for n in ("quota", "period")]
        )
        return max(1, int(texts[0]) // int(texts[1])) if int(texts[0]) > 0 else None
    except (OSError, ValueError, IndexError):  # no quota: "max", -1, or no such file
        return None
