"""What a fit worker does: one read per (source, layer), every dictionary of it, each resumed from its own checkpoint."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.points import FitPoint, in_documents
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.metrics import held_out
from deltasae_ray.sae.trainer import Trainer
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, digest, file_sha256


@dataclass(frozen=True)
class FitJob:
    """Points that one Ray Train run fits; travels to every worker."""

    storage: Storage
    harvest_key: str
    points: tuple[FitPoint, ...]
    cfg: FitConfig


def groups(points: Sequence[FitPoint]) -> list[list[FitPoint]]:
    """Points that share a read: same source and layer, in a fixed order."""
    return [list(group) for _, group in groupby(sorted(points), key=lambda p: (p.adapter, p.layer))]


def fit_share(job: FitJob, rank: int, world: int, device: str) -> int:
    """Fits every `world`-th group of the job; returns how many dictionaries this call finished."""
    shards = open_harvest(job.storage, job.harvest_key)
    sources = {name: shards.source(name).digest for name in {p.adapter for p in job.points}}
    done = 0
    for group in groups(job.points)[rank::world]:
        missing = [p for p in group if not job.storage.exists(f"{p.key(job.harvest_key, sources, job.cfg)}/manifest.json")]
        if missing:
            rows = Rows.read(shards, missing[0].adapter, missing[0].layer)
            for point in missing:
                fit_one(job, point, point.key(job.harvest_key, sources, job.cfg), rows, device)
                done += 1
    return done


@dataclass(frozen=True, eq=False)
class Rows:
    """One read: a source's rows at a hookpoint, position 0 (BOS) left out."""

    fit: np.ndarray
    """float32 [token, d_model]"""
    fit_docs: np.ndarray
    evaluation: np.ndarray

    @classmethod
    def read(cls, shards: ShardSet, adapter: str, layer: int) -> "Rows":
        tokens, held = shards.tokens("fit"), shards.tokens("eval")
        kept = tokens.position > 0
        return cls(
            fit=shards.read(layer, adapter, split="fit")[kept],
            fit_docs=tokens.doc_id[kept],
            evaluation=shards.read(layer, adapter, split="eval")[held.position > 0],
        )


def fit_one(job: FitJob, point: FitPoint, key: str, rows: Rows, device: str) -> None:
    """Trains one dictionary from its last checkpoint, writes its folder, and last the manifest that makes it count."""
    x = torch.from_numpy(np.ascontiguousarray(rows.fit[in_documents(rows.fit_docs, point.documents)]))
    if len(x) < point.d_sae:
        raise DictionaryError(f"{point}: {len(x)} training rows for {point.d_sae} latents: raise corpus.fit_tokens or lower fit.d_sae")
    trainer = Trainer(x, point.recipe(job.cfg), point.seed, device)
    checkpoint = f"{key}/checkpoint.safetensors"
    if job.storage.exists(checkpoint):
        trainer.load_state_dict(_unpack(job.storage.read_bytes(checkpoint)))
    while not trainer.done:
        trainer.step()
        if not trainer.done and trainer.steps_done % job.cfg.checkpoint_every == 0:
            job.storage.write_bytes(checkpoint, _pack(trainer.state_dict()))
    dictionary = trainer.finish(hookpoint=str(Hookpoint(point.layer)), adapter=point.adapter, documents=point.documents)
    _write(job, point, key, dictionary, held_out(dictionary, rows.evaluation, dictionary.mean).figures(), trainer.curve, len(x))
    if job.storage.exists(checkpoint):
        job.storage.fs.delete_file(job.storage.path(checkpoint))


def _write(
    job: FitJob, point: FitPoint, key: str, dictionary: Dictionary, metrics: dict[str, float], curve: list[dict[str, float]], rows: int
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "dictionary"
        dictionary.save(folder)
        hashes = {p.name: file_sha256(p) for p in sorted(folder.iterdir())}
        job.storage.put_folder(folder, key)
    manifest: dict[str, Any] = {"point": asdict(point), "harvest": job.harvest_key, "digest": digest(hashes), "sha256": hashes}
    manifest |= {"metrics": metrics, "curve": [[p["step"], p["fvu"]] for p in curve], "rows": rows}
    job.storage.write_json(f"{key}/manifest.json", manifest)


def _pack(state: dict[str, Any]) -> bytes:
    plain = {name: value for name, value in state.items() if name != "tensors"}
    return save({name: t.cpu().contiguous() for name, t in state["tensors"].items()}, metadata={"state": json.dumps(plain)})


def _unpack(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {"tensors": load(data), **json.loads(header["__metadata__"]["state"])}
