"""The logit lens of audited directions, run by a gang: it needs the model's final norm and head, and no text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.diverge.audit import Audited
from deltasae_ray.diverge.leaves import LeafSpec
from deltasae_ray.divergence.measure import Measure
from deltasae_ray.divergence.statistics import permutation_p
from deltasae_ray.gangs.config import GangConfig
from deltasae_ray.gangs.gang import RankContext
from deltasae_ray.gangs.run import run_units
from deltasae_ray.interventions.lens import logit_lens
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.storage import Storage
from deltasae_ray.sweep.gate import gate_units, whole_model

TOKENS = 10
"""Promoted and suppressed tokens of each direction."""


@dataclass(frozen=True)
class Reading:
    """The lens of one direction, beside what it reads in random directions of the same deltas."""

    promoted: tuple[int, ...]
    suppressed: tuple[int, ...]
    peak: Measure
    """The largest logit, in standard deviations over the vocabulary; the null are directions from N(0, Σ_δ)."""


@dataclass(frozen=True)
class LensFactory:
    """Makes the worker of a rank; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    audits: tuple[Audited, ...]

    def __call__(self, context: RankContext) -> "LensWorker":
        return LensWorker(self, context)


class LensWorker:
    """Callable of (unit, todo) → the lens of every direction of every audit, random ones last. The unit is not read."""

    def __init__(self, job: LensFactory, context: RankContext) -> None:
        self._job = job
        self._model = whole_model(job.storage, job.model, job.model_digest, (), context)

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> list[list[dict]]:  # noqa: ARG002 - what gangs call
        rows = (torch.from_numpy(np.concatenate(found.vectors(self._job.storage))) for found in self._job.audits)
        return [[asdict(lens) for lens in logit_lens(self._model, r, TOKENS)] for r in rows]


def lenses(
    storage: Storage,
    audits: Mapping[LeafSpec, Audited],
    model: ModelConfig,
    model_digest: str,
    corpus: Corpus,
    gangs: GangConfig,
    seed: int,
) -> dict[LeafSpec, dict[str, Reading]]:
    """Leaf → direction → what it says; read once per audit, whose key holds the model's."""
    keys = {leaf: f"{found.key}/lens.json" for leaf, found in audits.items() if found.directions}
    if todo := [leaf for leaf, key in keys.items() if not storage.exists(key)]:
        factory = LensFactory(storage, model, model_digest, tuple(audits[leaf] for leaf in todo))
        # Gangs are given units: one is enough, whatever it holds.
        ((_, read),) = run_units([(gate_units(corpus)[0], None)], factory, gangs)
        for leaf, found in zip(todo, read, strict=True):
            storage.write_json(keys[leaf], {"lenses": found})
    return {leaf: _readings(audits[leaf].directions, storage.read_json(key)["lenses"], seed) for leaf, key in keys.items()}


def _readings(names: tuple[str, ...], found: list[dict], seed: int) -> dict[str, Reading]:
    null = np.array([lens["peak"] for lens in found[len(names) :]])
    made = {}
    for i, (name, lens) in enumerate(zip(names, found, strict=False)):
        p = permutation_p(lens["peak"], null, "greater", np.random.default_rng([seed, 23, i]))
        peak = Measure(lens["peak"], null=float(null.mean()), p=p, n=len(null), reason="one direction: no interval over documents")
        made[name] = Reading(tuple(lens["promoted"]), tuple(lens["suppressed"]), peak)
    return made
