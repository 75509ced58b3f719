"""Two ranks of one process group, each a process of this machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def two_ranks(module: str, work: Path, seeds: tuple[int, int] = (0, 1)) -> None:
    """Runs `python -m module work rank` twice at once, with hash seeds of their own; neither may wait for the other for long."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONHASHSEED": str(seeds[rank])}
        log = (work.parent / f"rank{rank}.log").open("wb")
        command = [sys.executable, "-m", module, str(work), str(rank)]
        ranks.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=Path(__file__).parents[1]))
    try:
        for rank, process in enumerate(ranks):
            assert process.wait(timeout=1000) == 0, (work.parent / f"rank{rank}.log").read_text()[-3000:]
    finally:
        for process in ranks:
            process.kill()
