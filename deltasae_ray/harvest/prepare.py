"""Before the first shard: the random adapter is made, and every adapter's deltas are held against their noise."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.gangs.gang import RankContext
from deltasae_ray.harvest.worker import load_with_adapters
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import CONFIG, WEIGHTS, AdapterRef, content_digest, fetch
from deltasae_ray.models.capture import deltas, unit_ids
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import blocks
from deltasae_ray.models.precision import noise_floor
from deltasae_ray.models.random_lora import haar_rotated, match_norm, scaled
from deltasae_ray.storage import Storage, digest

RANDOM = "random"
"""Name of the random-LoRA source."""


def sample(units: Sequence[TokenBatch], num_contexts: int) -> TokenBatch:
    """The first contexts of the first unit by name: what the noise floor is measured on."""
    unit = min(units, key=lambda u: u.name)
    n = min(num_contexts, len(unit.doc_ids))
    return replace(
        unit, input_ids=unit.input_ids[:n], mask=unit.mask[:n], marker=unit.marker[:n], doc_ids=unit.doc_ids[:n], starts=unit.starts[:n]
    )


def random_key(adapter: AdapterRef, seed: int, unit: TokenBatch) -> str:
    """Where the random adapter made from `adapter` lies: it depends on the layers of the study in no way."""
    return f"adapters/random-{digest({'of': adapter.digest, 'seed': seed, 'matched_on': unit.name})}"


def stored_random(storage: Storage, adapter: AdapterRef, key: str) -> AdapterRef | None:
    """The random adapter, if it was finished before."""
    if not storage.exists(f"{key}/manifest.json"):
        return None
    facts = storage.read_json(f"{key}/manifest.json")
    return AdapterRef(RANDOM, key, facts["digest"], rank=adapter.rank, alpha=adapter.alpha, kind="random", facts=facts)


@dataclass(frozen=True)
class RandomLoraFactory:
    """Makes the worker that writes the random adapter matched to `adapter`; needs every block of the model."""

    storage: Storage
    model: ModelConfig
    adapter: AdapterRef
    key: str
    seed: int

    def __call__(self, context: RankContext) -> "RandomLoraWorker":
        return RandomLoraWorker(self, context)


class RandomLoraWorker:
    """Matches the random adapter's mean delta norm to the trained one's: geometric mean over all blocks."""

    def __init__(self, job: RandomLoraFactory, context: RankContext) -> None:
        self._job, self._device = job, context.device
        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch(job.storage, [job.adapter], Path(scratch))[job.adapter.name]
            self._weights = haar_rotated(load_file(folder / WEIGHTS), job.seed)
            self._config = (folder / CONFIG).read_bytes()
        raw = f"{job.key}/unmatched"
        if context.rank == 0:
            self._write(raw, 1.0)
        adapters = (job.adapter, replace(job.adapter, name=RANDOM, key=raw))
        if context.world > 1:
            torch.distributed.is_initialized() and torch.distributed.barrier()
        self._model = load_with_adapters(job.storage, job.model, adapters, context.device, deepest=None)

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> dict[str, float]:
        hookpoints = [Hookpoint(i) for i in range(len(blocks(self._model)))]
        ids, mask = unit_ids(unit, self._device), torch.as_tensor(unit.mask, device=self._device)

        def norms(adapter: str) -> float:
            taken = dict(deltas(self._model, ids, hookpoints, [adapter]))[adapter]
            means = torch.stack([taken[h][mask].norm(dim=-1).double().mean() for h in hookpoints])
            return float(means[means > 0].log().mean().exp())

        layers = [m for m in self._model.modules() if isinstance(getattr(m, "scaling", None), dict) and RANDOM in m.scaling]  # type: ignore[operator]
        trained = [(m, m.scaling[RANDOM]) for m in layers]  # type: ignore[index]

        def measure(factor: float) -> float:
            for module, scaling in trained:
                module.scaling[RANDOM] = scaling * factor  # type: ignore[index]
            return norms(RANDOM)

        target = norms(self._job.adapter.name)
        factor = match_norm(measure, target)
        reached = measure(factor) / target
        if keep:
            self._write(self._job.key, factor)
        return {"factor": factor, "norm_ratio": reached}

    def _write(self, key: str, factor: float) -> None:
        self._job.storage.write_bytes(f"{key}/{CONFIG}", self._config)
        self._job.storage.write_bytes(f"{key}/{WEIGHTS}", save(scaled(self._weights, factor), metadata={"format": "pt"}))


def finish_random(storage: Storage, adapter: AdapterRef, key: str, facts: dict[str, float]) -> AdapterRef:
    """Writes the manifest that makes the random adapter count."""
    with tempfile.TemporaryDirectory() as scratch:
        content = content_digest(storage.get_folder(key, Path(scratch)))
    storage.write_json(f"{key}/manifest.json", {**facts, "digest": content, "of": adapter.digest})
    found = stored_random(storage, adapter, key)
    assert found is not None
    return found


@dataclass(frozen=True)
class NoiseFactory:
    """Makes the worker that measures the noise floor of adapters at hookpoints."""

    storage: Storage
    model: ModelConfig
    adapters: tuple[AdapterRef, ...]
    hookpoints: tuple[Hookpoint, ...]

    def __call__(self, context: RankContext) -> "NoiseWorker":
        return NoiseWorker(self, context)


class NoiseWorker:
    """Callable of (unit, todo) → adapter → hookpoint → NoiseFloor, as JSON."""

    def __init__(self, job: NoiseFactory, context: RankContext) -> None:
        self._job, self._device = job, context.device
        self._model: nn.Module = load_with_adapters(job.storage, job.model, job.adapters, context.device, deepest=job.hookpoints[-1].layer)

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> dict[str, dict[str, dict]]:
        mask = torch.as_tensor(unit.mask, device=self._device)
        names = [a.name for a in self._job.adapters]
        # A sharded parameter cannot be upcast in place: there the layout alone is measured, and the report says so.
        fp64 = self._job.model.sharding == "none"
        floors = noise_floor(self._model, unit_ids(unit, self._device), mask, self._job.hookpoints, names, fp64=fp64)
        return {name: {str(h): floor.to_dict() for h, floor in by_hook.items()} for name, by_hook in floors.items()}
