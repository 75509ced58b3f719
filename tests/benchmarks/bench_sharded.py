"""One pass for base and adapters against one pass each, in the same two-rank ZeRO-3 gang on CPUs: collectives
and seconds.

python -m tests.benchmarks.bench_sharded [passes]
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.storage import Storage
from tests.tiny import save_adapter, save_model

RANKS = (4, 8, 16, 32)
COLLECTIVES = ("all_gather_into_tensor", "all_gather", "all_gather_coalesced", "broadcast")
calls = 0


def counted(collective: Callable) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        global calls
        calls += 1
        return collective(*args, **kwargs)

    return call


def rank(root: Path, passes: int) -> None:
    for name in COLLECTIVES:  # before DeepSpeed takes them
        if hasattr(torch.distributed, name):
            setattr(torch.distributed, name, counted(getattr(torch.distributed, name)))
    refs = tuple(AdapterRef(f"r{r}", f"r{r}", f"r{r}", r, 1.0) for r in RANKS)
    cfg = ModelConfig(base=str(root / "model"), sharding="zero3")
    model = load_with_adapters(Storage(str(root)), cfg, refs, "cpu", deepest=3)
    ids = torch.randint(3, 250, (8, 64))
    used, seconds = {}, {}
    for together in (True, False):
        times = []
        for _ in range(passes + 1):
            before, start = calls, time.perf_counter()
            list(
                harvested_deltas(
                    model,
                    ids,
                    [Hookpoint(1), Hookpoint(3)],
                    [r.name for r in refs],
                    together=together,
                    bf16=False,
                )
            )
            times.append(time.perf_counter() - start)
            used[together] = calls - before
        seconds[together] = statistics.median(times[1:])  # the first pass warms up
    if os.environ["RANK"] == "0":
        print(f"{len(RANKS)} adapters, 2 ranks, 4 blocks of width 32, {passes} passes")
        for together, name in ((True, "one pass"), (False, "one each")):
            print(f"  {name}: {used[together]} collectives, {1000 * seconds[together]:.0f} ms (median)")
        print(
            f"  one each / one pass: {used[False] / used[True]:.2f} of the collectives,"
            f" {seconds[False] / seconds[True]:.2f} of the time"
        )


def main(passes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_model(root / "model")
        for r in RANKS:
            save_adapter(root / f"r{r}", root / "model", rank=r, seed=r)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        common = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "LOCAL_SIZE": "2",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.benchmarks.bench_sharded", folder, str(passes)]
        ranks = [
            subprocess.Popen(command, env=common | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)
        ]
        assert not any([process.wait() for process in ranks])


if __name__ == "__main__":
    if "RANK" in os.environ:
        rank(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
