"""Before the first shard: the random adapter is made, and every adapter's deltas are held against their
noise."""

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import AdapterError
from deltasae_ray.harvest.random_draws import RandomDraw
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapter_files import (
    CONFIG,
    WEIGHTS,
    content_digest,
    plain_config,
    read_config,
    read_tensors,
    weights_bytes,
)
from deltasae_ray.models.adapters import AdapterRef, fetch
from deltasae_ray.models.attached import load_with_adapters
from deltasae_ray.models.capture import Residuals, check_sites, deltas, unit_ids, unit_mask
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import blocks
from deltasae_ray.models.peft_names import peft_name
from deltasae_ray.models.precision import in_fp64, noise_floor
from deltasae_ray.models.random_lora import haar_rotated, match_norm, scaled
from deltasae_ray.models.split import split_deltas
from deltasae_ray.models.stream import check_stream
from deltasae_ray.models.together import harvested_deltas
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.sae.identity import RANDOM
from deltasae_ray.storage import Storage, digest


def sample(units: Sequence[TokenBatch], num_contexts: int) -> TokenBatch:
    """The first contexts of the first unit by name: what the noise floor is measured on."""
    unit = min(units, key=lambda u: u.name)
    n = min(num_contexts, len(unit.doc_ids))
    return replace(
        unit,
        input_ids=unit.input_ids[:n],
        mask=unit.mask[:n],
        marker=unit.marker[:n],
        doc_ids=unit.doc_ids[:n],
        starts=unit.starts[:n],
    )


def random_key(adapter: AdapterRef, seed: int, unit: TokenBatch, model_digest: str) -> str:
    """Where the random adapter made from `adapter` lies. Its strength is matched on the model, but on all
    layers: those of the study do not enter."""
    made_of = {"of": adapter.digest, "seed": seed, "matched_on": unit.name, "model": model_digest}
    return f"adapters/random-{digest(made_of)}"


def stored_random(storage: Storage, adapter: AdapterRef, key: str, name: str = RANDOM) -> AdapterRef | None:
    """The random adapter, if it was finished before."""
    if not storage.exists(f"{key}/manifest.json"):
        return None
    facts = storage.read_json(f"{key}/manifest.json")
    return AdapterRef(
        name, key, facts["digest"], rank=adapter.rank, alpha=adapter.alpha, kind="random", facts=facts
    )


def write_rotated(
    storage: Storage, adapter: AdapterRef, key: str, seed: int, factor: float = 1.0
) -> AdapterRef:
    """Writes the adapter with Haar-rotated singular vectors, times `factor`; it counts once its manifest is
    written, and has the first one's name until then."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = fetch(storage, [adapter], Path(scratch))[adapter.name]
        weights = scaled(haar_rotated(read_tensors(folder), seed), factor)
        storage.write_bytes(f"{key}/{CONFIG}", _plain(folder))
        storage.write_bytes(f"{key}/{WEIGHTS}", weights_bytes(weights))
    return replace(adapter, name=RANDOM, key=key)


def _plain(folder: Path) -> bytes:
    """The control is plain LoRA: of a DoRA adapter or one with trained biases, only the low-rank products are
    rotated."""
    config = read_config(folder)
    plain = plain_config(config)
    if all(config.get(name) in (plain[name], None, []) for name in plain):
        return (folder / CONFIG).read_bytes()
    return json.dumps(plain).encode()


def finish_random(storage: Storage, drawn: RandomDraw, key: str, facts: dict[str, float]) -> AdapterRef:
    """Writes a random adapter at the matched strength, then the manifest that makes it count."""
    adapter = drawn.like
    write_rotated(storage, adapter, key, drawn.seed, facts["factor"])
    with tempfile.TemporaryDirectory() as scratch:
        content = content_digest(storage.get_folder(key, Path(scratch)))
    storage.write_json(f"{key}/manifest.json", {**facts, "digest": content, "of": adapter.digest})
    stored = stored_random(storage, adapter, key, drawn.name)
    assert stored is not None
    return stored


@dataclass(frozen=True)
class PrepareFactory:
    """Makes the worker that finds the random adapter's strength and measures noise floors: one gang, and the
    model loaded once."""

    storage: Storage
    model: ModelConfig
    adapters: tuple[AdapterRef, ...]
    """Whose noise is measured."""
    hookpoints: tuple[Hookpoint, ...]
    precision: Literal["fp32", "mixed"] = "fp32"
    matches: tuple[tuple[AdapterRef, AdapterRef], ...] = ()
    """Trained adapters, each with a rotation that is to move the model as far; the rotation's noise is
    measured too, at the strength found."""
    model_digest: str | None = None
    """Of the driver's model: a node with another one refuses. None checks nothing."""

    def __call__(self, context: RankContext) -> "PrepareWorker":
        return PrepareWorker(self, context)


class PrepareWorker:
    """Callable of (unit, todo) → as JSON: under "match" each random adapter's factor and the ratio of mean
    delta norms it reaches (geometric mean over all blocks); under "noise" adapter → hookpoint → NoiseFloor;
    under "injected" the share of energy likewise.
    """

    def __init__(self, job: PrepareFactory, context: RankContext) -> None:
        self._job, self._device = job, context.device
        held = {ref.name: ref for ref in (*job.adapters, *(x for pair in job.matches for x in pair))}
        deepest = None if job.matches else job.hookpoints[-1].layer  # strength is a matter of every block
        self._model = load_with_adapters(
            job.storage,
            job.model,
            tuple(held.values()),
            context.device,
            deepest=deepest,
            digest=job.model_digest,
        )
        check_stream(self._model)
        check_sites(self._model, job.hookpoints)

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> dict[str, dict]:  # noqa: ARG002 - what gangs call
        ids, mask = unit_ids(unit, self._device), unit_mask(unit, self._device)
        names = [a.name for a in self._job.adapters]
        matched = {}
        for trained, rotated in self._job.matches:
            matched[rotated.name] = self._match(ids, mask, trained.name, rotated.name)
            names.append(rotated.name)
        floors = noise_floor(
            lambda x: self._harvested(x, names), lambda x: self._higher(x, names), ids, mask, names
        )
        return {
            "match": matched,
            "noise": {
                name: {str(h): floor.to_dict() for h, floor in by_hook.items()}
                for name, by_hook in floors.items()
            },
            "injected": {name: self._injected(ids, mask, name) for name in names},
        }

    def _match(self, ids: Tensor, mask: Tensor, trained: str, rotated: str) -> dict[str, float]:
        """Leaves a random adapter at the strength that it finds."""
        hookpoints = [Hookpoint(i) for i in range(len(blocks(self._model)))]

        def norm(adapter: str) -> float:
            taken = dict(deltas(self._model, ids, hookpoints, [adapter]))[adapter]
            means = torch.stack([taken[h][mask].norm(dim=-1).double().mean() for h in hookpoints])
            return float(means[means > 0].log().mean().exp())

        name = peft_name(self._model, rotated)
        layers: list[Any] = [m for m in self._model.modules() if name in _scaling(m)]
        scalings = [layer.scaling[name] for layer in layers]

        def measure(factor: float) -> float:
            for layer, scaling in zip(layers, scalings, strict=True):
                layer.scaling[name] = scaling * factor
            return norm(rotated)

        target = norm(trained)
        if not math.isfinite(target):
            raise AdapterError(
                f"adapter {trained} changes nothing: every delta is exactly 0, and no random adapter can"
                " match it"
            )
        factor = match_norm(measure, target)
        return {"factor": factor, "norm_ratio": measure(factor) / target}

    def _harvested(self, ids: Tensor, names: list[str]) -> dict[str, Residuals]:
        job, together = self._job, self._job.model.sharding != "none"
        return dict(
            harvested_deltas(
                self._model, ids, job.hookpoints, names, together=together, bf16=job.precision == "mixed"
            )
        )

    def _higher(self, ids: Tensor, names: list[str]) -> dict[str, Residuals]:
        """fp64 for fp32; fp32 for bf16 products."""
        with in_fp64(self._model) if self._job.precision == "fp32" else nullcontext():
            return dict(deltas(self._model, ids, self._job.hookpoints, names))

    def _injected(self, ids: Tensor, mask: Tensor, adapter: str) -> dict[str, float]:
        """Share of the delta's energy that the hookpoint's own block adds, by hookpoint (BOS left out)."""
        mask = mask.clone()
        mask[:, 0] = False
        streams = [h for h in self._job.hookpoints if h.site == "resid_post"]
        parts = split_deltas(self._model, ids, streams, adapter)
        shares = {}
        for h in streams:
            injected, whole = (
                parts.injected[h][mask].double(),
                (parts.injected[h] + parts.propagated[h])[mask].double(),
            )
            if float(energy := whole.square().sum()):
                shares[str(h)] = float(injected.square().sum() / energy)
        return shares


def _scaling(module: nn.Module) -> dict[str, float]:
    """PEFT's name of an adapter → s of a LoRA layer; empty for other modules (attention keeps a number under
    the same name)."""
    scaling = getattr(module, "scaling", None)
    return scaling if isinstance(scaling, dict) else {}
