"""Processes of this machine: two ranks of one process group, and those that nobody waits for any more."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil


def two_ranks(module: str, work: Path, seeds: tuple[int, int] = (0, 1)) -> None:
    """Runs `python -m module work rank` twice at once, with hash seeds of their own; neither may wait for the
    other for long."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    ranks = []
    for rank in range(2):
        variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONHASHSEED": str(seeds[rank])}
        log = (work.parent / f"rank{rank}.log").open("wb")
        command = [sys.executable, "-m", module, str(work), str(rank)]
        ranks.append(
            subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=Path(__file__).parents[1])
        )
    try:
        for rank, process in enumerate(ranks):
            assert process.wait(timeout=1000) == 0, (work.parent / f"rank{rank}.log").read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()


def orphans(name: str, value: str) -> list[psutil.Process]:
    """Processes with this environment variable that are no descendants of this one: whoever started them is
    gone."""
    ours = {p.pid for p in psutil.Process().children(recursive=True)} | {os.getpid()}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            marked = f"{name}={value}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(
                b"\0"
            )
            if marked and process.pid not in ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_orphans(name: str, value: str, within_s: float) -> list[str]:
    """Waits for the orphans to end; those that do not are killed by id, and told."""
    deadline = time.monotonic() + within_s
    while (left := orphans(name, value)) and time.monotonic() < deadline:
        time.sleep(0.5)
    told = []
    for process in left:
        with suppress(psutil.NoSuchProcess):
            told.append(
                f"{process.pid} (parent {process.ppid()}, {process.memory_info().rss >> 20} MB):"
                f" {' '.join(process.cmdline())[:120]}"
            )
            process.kill()
    return told
