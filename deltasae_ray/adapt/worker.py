"""What a Ray Train worker does: a thin shell around LoraTrainer."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from deltasae_ray import heartbeat, stalls
from deltasae_ray.adapt.config import AdaptConfig
from deltasae_ray.adapt.finished import write_finished
from deltasae_ray.adapt.text import AdaptText
from deltasae_ray.adapt.trainer import LoraTrainer
from deltasae_ray.errors import ModelError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import base_of, load_model
from deltasae_ray.models.source import resolve_model
from deltasae_ray.models.zero3 import run_sharded, sharded_loading
from deltasae_ray.sae.peers import Peers, ProcessGroup
from deltasae_ray.storage import Storage

CHECKPOINT_EVERY = 4
"""Steps between checkpoints (adapter, optimizer, schedule, data position, random state)."""


@dataclass(frozen=True)
class TrainJob:
    """One adapter to train; travels to the worker's node."""

    storage: Storage
    """With an absolute root: a worker's working directory is Ray's."""
    key: str
    """Folder below the storage root that the finished adapter is written to."""
    model: ModelConfig
    model_digest: str
    label: str
    """What the adapter's config calls its base model."""
    cfg: AdaptConfig
    rank: int
    seed: int
    text: Any
    """ObjectRef of an AdaptText."""
    gpus: int
    """GPUs that each worker asks Ray for."""


def train_adapter(config: Mapping[str, Any]) -> None:
    """Ray Train's loop: continues from the newest checkpoint of the run's name, reports every step, writes
    the manifest last.

    Several workers share one model and take each step together; the first of them writes.
    """
    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(_threads())
    stalls.watch(f"worker {rank} of {world} that trains {Path(job.key).name}", config["limits"])
    with heartbeat.unit("loading", heartbeat.LOADING_S):
        trainer = _trainer(job, ProcessGroup(rank, world) if world > 1 else Peers())
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                trainer.load(Path(folder))
    while not trainer.progress.done:
        with heartbeat.unit("step"):
            trainer.advance()
        at = trainer.progress
        metrics = {
            "step": at.step,
            "tokens": at.tokens,
            "gain": at.curve[-1]["gain"],
            "gain_se": at.curve[-1]["gain_se"],
        }
        due = at.done or at.step % CHECKPOINT_EVERY == 0
        with heartbeat.unit(
            "checkpoint" if due else "report"
        ):  # of every worker: a report waits for the others'
            if rank == 0 and due:
                with tempfile.TemporaryDirectory() as folder:
                    trainer.save(Path(folder))
                    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
            else:
                ray.train.report(metrics)
    if rank == 0:
        with heartbeat.unit("writing of the adapter"):
            write_finished(trainer, job.storage, job.key, job.label)


def _trainer(job: TrainJob, peers: Peers) -> LoraTrainer:
    source = resolve_model(job.model)
    if source.digest != job.model_digest:
        raise ModelError(
            f"model.base={job.model.base!r} has other weights on this node than on the driver's: copy one"
            " model to all nodes"
        )
    sharded = job.model.sharding == "zero3"
    # Ray leaves all GPUs of a machine visible to a worker that asked for none.
    device = "cuda" if job.gpus and torch.cuda.is_available() else "cpu"
    with sharded_loading(job.model, source.folder, device) if sharded else nullcontext():
        weights = "fp32" if sharded else job.model.weights
        model = load_model(
            source.folder, weights=weights, trust_remote_code=job.model.trust_remote_code, device=device
        )
    if sharded:
        model = run_sharded(
            model, job.model, source.folder, device, base_of
        )  # with the head; the adapter comes later and stays whole
    text: AdaptText = ray.get(job.text)
    return LoraTrainer(model, text, job.cfg, rank=job.rank, seed=job.seed, peers=peers)


def _threads() -> int:
    """The node's cores, shared by the workers on it. Ray gives a worker of one CPU a single thread: half the
    speed on two cores."""
    node = ray.get_runtime_context().get_node_id()
    cpus = next((n["Resources"].get("CPU", 0) for n in ray.nodes() if n["NodeID"] == node), 0)
    cores = min(int(cpus) or 1, os.cpu_count() or 1)
    return max(1, cores // ray.train.get_context().get_local_world_size())
