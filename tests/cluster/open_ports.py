"""A local Ray as a study starts it, with a gang of two ranks and two workers of Ray Train, all of which
listen: `python -m tests.cluster.open_ports LAN_ADDRESS` tells who may reach what, as JSON."""

import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist

from deltasae_ray.batches import TokenBatch
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.rendezvous import torch_config
from deltasae_ray.runtime.training import training_driver
from deltasae_ray.runtime.units import run_units
from deltasae_ray.study.cluster_check import connect
from tests.runtime.stub import UNITS


class Meeting:
    """A rank that joins the others, says so, and waits to be let go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, context: RankContext) -> Any:  # noqa: ARG002
        dist.init_process_group("gloo")
        return self.run

    def run(self, unit: TokenBatch, todo: Any, *, keep: bool) -> bool:  # noqa: ARG002
        meet(self.folder, f"gang-{dist.get_rank()}")
        return True


def meet(folder: Path, name: str) -> None:
    dist.barrier()
    (folder / name).touch()
    while not (folder / "end").exists():
        time.sleep(0.05)


def train(folder: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        meet(folder, f"train-{dist.get_rank()}")

    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.25})
    with training_driver():
        TorchTrainer(
            loop,
            scaling_config=scaling,
            torch_config=torch_config(),
            run_config=RunConfig(storage_path=str(folder)),
        ).fit()


def reached(lan: str) -> dict[str, list[str]]:
    """Every listening socket of this namespace: how many there are, those bound beyond loopback, and those
    that took a connection."""
    listening = {c.laddr for c in psutil.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
    beyond = [f"{a.ip}:{a.port}" for a in listening if a.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    answers = []
    for address in listening:
        with socket.socket() as s:
            s.settimeout(5)
            if s.connect_ex((lan, address.port)) == 0:
                answers.append(f"{address.port}")
    return {"listening": [str(a.port) for a in listening], "beyond": beyond, "answers": answers}


if __name__ == "__main__":
    os.environ.pop("RAY_ADDRESS", None)
    folder = Path(tempfile.mkdtemp())
    connect()
    gang = threading.Thread(
        target=lambda: list(run_units(UNITS[:2], Meeting(folder), GangConfig(ranks=2, cpus_per_gang=0.25))),
        daemon=True,
    )
    trainer = threading.Thread(target=train, args=(folder,), daemon=True)
    gang.start()
    trainer.start()
    wanted = {"gang-0", "gang-1", "train-0", "train-1"}
    deadline = time.monotonic() + 240
    while not wanted <= set(os.listdir(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert wanted <= set(os.listdir(folder)), os.listdir(folder)
    sys.stdout.write(json.dumps(reached(sys.argv[1])) + "\n")
    sys.stdout.flush()
    os._exit(0)  # all else ends with the namespace
