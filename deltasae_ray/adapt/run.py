"""Adapters of several ranks and seeds: what a manifest lists is not trained again, the rest goes through Ray
Train one by one."""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltasae_ray.adapt.config import CPUS_PER_WORKER, AdaptConfig
from deltasae_ray.adapt.lora import check_targets
from deltasae_ray.adapt.text import content_key, split_text
from deltasae_ray.adapt.trainer import EVAL_EVERY, WARMUP_STEPS
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.errors import DeltaSaeError, StorageError
from deltasae_ray.heartbeat import Limits
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import empty_model
from deltasae_ray.models.source import ModelSource, resolve_model
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.context import StageContext
from deltasae_ray.runtime.rendezvous import torch_config
from deltasae_ray.runtime.training import SNAPSHOT, check_run, training_driver
from deltasae_ray.storage import Storage, digest

if TYPE_CHECKING:  # imports Ray, which a study with finished adapters does not need
    from deltasae_ray.adapt.worker import TrainJob

log = logging.getLogger(__name__)

RECIPE = 1
"""Enters every training key: raise it when a change of the code changes the adapters."""
_RUNS = "adapters/.train"
_MAX_FAILURES = 3
"""Times a killed training worker is started again from its last checkpoint."""
_NOT_OF_THE_RESULT = ("ranks", "seeds")


@dataclass(frozen=True)
class Training:
    """One adapter that the configuration asks for."""

    name: str
    rank: int
    seed: int
    key: str
    """Folder below the storage root: a digest of text, model, recipe, rank and seed."""


def trainings(model: ModelSource, corpus: Corpus, cfg: AdaptConfig) -> list[Training]:
    """The adapters of a study by name: r4, r16; with several seeds r4-s0, r4-s1."""
    fields = {name: value for name, value in asdict(cfg).items() if name not in _NOT_OF_THE_RESULT}
    schedule = {"warmup_steps": WARMUP_STEPS, "eval_every": EVAL_EVERY}
    shared = {"recipe": RECIPE, "text": content_key(corpus.adapt), "model": model.digest}
    shared |= schedule | fields | {"targets": sorted(cfg.targets)}
    return [
        Training(
            name=f"r{rank}" if cfg.seeds == 1 else f"r{rank}-s{seed}", rank=rank, seed=seed,
            key=f"adapters/{digest(shared | {'rank': rank, 'seed': seed})}",
        )
        for rank in cfg.ranks
        for seed in range(cfg.seeds)
    ]  # fmt: skip


def trained(storage: Storage, training: Training) -> AdapterRef | None:
    """The finished adapter, if its manifest is there."""
    if not storage.exists(f"{training.key}/manifest.json"):
        return None
    manifest = storage.read_json(f"{training.key}/manifest.json")
    return AdapterRef(
        training.name,
        training.key,
        manifest["digest"],
        rank=manifest["rank"],
        alpha=manifest["alpha"],
        seed=manifest["seed"],
        facts=manifest["facts"],
    )


def adapt(
    storage: Storage, model: ModelConfig, corpus: Corpus, cfg: AdaptConfig, gangs: GangConfig
) -> list[AdapterRef]:
    """Trains the adapters that are missing; needs an initialised Ray only if there are any.

    A worker holds the whole base model, as `model.weights` says; with `model.sharding=zero3`, `gangs.ranks`
    workers hold a share each.

    Raises:
        AdapterError: targets that the model has not, or a loss that is no number.
        CorpusError: too little text set apart for adapter training.
    """
    source = resolve_model(model)
    wanted = trainings(source, corpus, cfg)
    if missing := [t for t in wanted if trained(storage, t) is None]:
        check_targets(empty_model(source.folder, trust_remote_code=model.trust_remote_code), cfg.targets)
        _train(StageContext(storage, model, source.digest, corpus, gangs), source, cfg, missing)
    for (
        training
    ) in wanted:  # checkpoints of a finished adapter are worth nothing; also those that a killed driver left
        storage.delete_folder(f"{_RUNS}/{Path(training.key).name}")
    refs = [trained(storage, t) for t in wanted]
    assert all(refs), "an adapter is missing after its training"
    return [ref for ref in refs if ref]


def _train(context: StageContext, source: ModelSource, cfg: AdaptConfig, missing: list[Training]) -> None:
    import ray

    from deltasae_ray.adapt.worker import TrainJob

    storage = context.storage
    text = ray.put(split_text(context.corpus.adapt, cfg.batch_contexts))
    here = Storage(storage.path("")) if storage.is_local else storage  # workers run in a folder of Ray's
    label = Path(context.model.base).name if Path(context.model.base).is_dir() else source.label
    workers = context.gangs.ranks if context.model.sharding == "zero3" else 1
    for training in missing:
        job = TrainJob(
            here,
            training.key,
            context.model,
            source.digest,
            label,
            cfg,
            training.rank,
            training.seed,
            text,
            context.gangs.gpus_per_rank,
        )
        _run(job, workers, training.name)
        ref = trained(storage, training)
        if ref is None:
            raise StorageError(
                f"{training.name} is trained, but {storage.address(training.key)} has no manifest: can all"
                " nodes write there?"
            )
        verdict = "adaptation demonstrated" if ref.facts["demonstrated"] else "adaptation NOT demonstrated"
        log.info(
            "%s: held-out gain %.3f, SE %.3f: %s", ref.name, ref.facts["gain"], ref.facts["gain_se"], verdict
        )


def drop_half_written(storage: Storage, run: str) -> None:
    """Ray Train writes its list of checkpoints in place: a kill in that moment leaves half of it, of which
    the next run would die. Without the list training begins again, and ends with the same adapter.
    """
    key = f"{_RUNS}/{run}/{SNAPSHOT}"
    if storage.exists(key):
        try:
            json.loads(storage.read_bytes(key))
        except ValueError:
            log.warning("%s was cut off by a kill: this adapter's training begins again", key)
            storage.delete_file(key)


def _run(job: "TrainJob", workers: int, name: str) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from deltasae_ray.adapt.progress import training_bar
    from deltasae_ray.adapt.worker import train_adapter
    from deltasae_ray.runtime.controller import WatchedController, train_to_the_end

    limits = Limits()
    resources = {"CPU": CPUS_PER_WORKER} | ({"GPU": job.gpus} if job.gpus else {})
    with training_bar(name, job.cfg.max_tokens) as callback, training_driver():
        words = dict(
            train_loop_per_worker=train_adapter,
            train_loop_config={"job": job, "limits": limits},
            torch_config=torch_config(),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=job.gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(
                # Named by content: the same call finds the run again after any crash, and continues from its
                # checkpoint.
                name=Path(job.key).name,
                storage_path=job.storage.path(_RUNS),
                storage_filesystem=job.storage.fs,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                callbacks=[callback, WatchedController(f"the controller of adapt {name}", limits)],
            ),
        )
        drop_half_written(job.storage, Path(job.key).name)
        check_run(job.storage, f"{_RUNS}/{Path(job.key).name}")
        try:
            train_to_the_end(words, _MAX_FAILURES)
        except TrainingFailedError as e:
            failures = getattr(e, "worker_failures", {}).values()
            raise next((f for f in failures if isinstance(f, DeltaSaeError)), e) from e
