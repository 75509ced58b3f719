"""The logit lens of audited directions, as a Ray task: it needs the model's final norm and head, no blocks
and no text."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from deltasae_ray.analyses.audit.task import Audited
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.lens.model import logit_lens
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import permutation_p
from deltasae_ray.models.attached import model_meant
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import ends_bytes, load_ends
from deltasae_ray.runtime.context import StageContext, remembered
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.storage import Storage

TOKENS = 10
"""Promoted and suppressed tokens of each direction."""


@dataclass(frozen=True)
class Reading:
    """The lens of one direction, beside what it reads in random directions of the same deltas."""

    promoted: tuple[int, ...]
    suppressed: tuple[int, ...]
    peak: Measure
    """The largest logit, in standard deviations over the vocabulary; the null are directions from N(0,
    Σ_δ)."""


@dataclass(frozen=True)
class LensTask:
    """Audits, and the model that they are read with: one task for all of them, since loading embedding and
    head is what it costs."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    audits: tuple[Audited, ...]


def read_directions(task: LensTask) -> list[list[dict]]:
    """For each audit the lens of every direction, random ones last."""
    source = model_meant(task.model, task.model_digest)
    model = load_ends(source.folder, trust_remote_code=task.model.trust_remote_code)
    rows = (torch.from_numpy(np.concatenate(audited.vectors(task.storage))) for audited in task.audits)
    return [[asdict(lens) for lens in logit_lens(model, directions, TOKENS)] for directions in rows]


def lenses(
    context: StageContext, audits: Mapping[LeafSpec, Audited], seed: int
) -> dict[LeafSpec, dict[str, Reading]]:
    """Leaf → direction → what it says; read once per audit, whose key holds the model's, by one Ray task for
    all that have none yet."""
    model, digest = context.model, context.model_digest
    keys = {leaf: f"{audited.key}/lens.json" for leaf, audited in audits.items() if audited.directions}

    def make(missing: list[LeafSpec]) -> dict[LeafSpec, dict]:
        memory = ends_bytes(model_meant(model, digest).folder, trust_remote_code=model.trust_remote_code)
        task = LensTask(context.storage, model, digest, tuple(audits[leaf] for leaf in missing))
        (read,) = run_tasks([(read_directions, task)], 1.0, bar="lens", memory=memory)
        return {leaf: {"lenses": lenses} for leaf, lenses in zip(missing, read, strict=True)}

    stored = remembered(context.storage, keys, make)
    return {
        leaf: _readings(audits[leaf].directions, audited["lenses"], seed) for leaf, audited in stored.items()
    }


def _readings(names: tuple[str, ...], lenses: list[dict], seed: int) -> dict[str, Reading]:
    null = np.array([lens["peak"] for lens in lenses[len(names) :]])
    readings = {}
    for i, (name, lens) in enumerate(zip(names, lenses, strict=False)):
        p = permutation_p(lens["peak"], null, "greater", np.random.default_rng([seed, 23, i]))
        peak = Measure(lens["peak"], null=float(null.mean()), p=p, n=len(null)).because(
            "ci", "one direction: no interval over documents"
        )
        readings[name] = Reading(tuple(lens["promoted"]), tuple(lens["suppressed"]), peak)
    return readings
