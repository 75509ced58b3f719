"""The causal effect of audited latents, run by gangs over evaluation documents as loss recovered is."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from deltasae_ray.analyses.audit.task import MEAN, Audited
from deltasae_ray.analyses.behaviour.run import gate_units, whole_model
from deltasae_ray.analyses.causal.figures import causal
from deltasae_ray.analyses.causal.model import Probe, document_effects
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec, load_dictionary
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.storage import Storage, digest

DOCUMENTS = 32
"""Evaluation documents of the text adapted to; an interval takes 30."""
POSITIONS = 8
"""Scored positions per document, evenly spaced."""
TRIED = 4
"""Latents that are tried at most, the first by rank, beside the mean change."""
DRAWS = 5
"""Random directions that stand in for each."""
VARIANTS = 1 + (1 + TRIED) * (1 + DRAWS)
"""Continuations of a context on either side: the whole delta, and every direction with those that stand in for it."""


@dataclass(frozen=True)
class CausalFactory:
    """Makes the worker of a rank; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    adapters: tuple[AdapterRef, ...]
    audits: tuple[tuple[LeafSpec, Audited], ...]

    def __call__(self, context: RankContext) -> "CausalWorker":
        return CausalWorker(self, context)


class CausalWorker:
    """Callable of (unit, todo) → rows of document_effects."""

    def __init__(self, job: CausalFactory, context: RankContext) -> None:
        self._model = whole_model(job.storage, job.model, job.model_digest, job.adapters, context)
        self._probes = [probe_of(job.storage, leaf, found) for leaf, found in job.audits]

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> list[dict]:  # noqa: ARG002 - what gangs call
        return document_effects(self._model, unit, self._probes, POSITIONS)


def tried(found: Audited) -> list[str]:
    """The mean change, and the first latents by rank, as far as the page shows them (diverge.latents)."""
    names = [MEAN] + [str(row.latent) for row in found.audit.leading(TRIED) if row.latent is not None]
    return [name for name in names if name in found.directions]


def probe_of(storage: Storage, leaf: LeafSpec, found: Audited) -> Probe:
    """Directions of an audit, and how much of each a delta holds: of the mean change always its length."""
    vectors, random = (torch.from_numpy(x) for x in found.vectors(storage))
    names = tried(found)
    rows = {name: vectors[found.directions.index(name)] for name in names}
    lengths = {name: row.norm().clamp_min(torch.finfo(row.dtype).tiny) for name, row in rows.items()}
    with tempfile.TemporaryDirectory() as scratch:
        dictionary = load_dictionary(storage, leaf.dictionary, Path(scratch))
    latents = torch.tensor([int(name) for name in names[1:]], dtype=torch.int64)

    def amounts(delta: Float[Tensor, "token d_model"]) -> Float[Tensor, "token direction"]:
        codes = dictionary.encode(delta)[:, latents] * torch.stack([lengths[name] for name in names[1:]])
        return torch.cat([lengths[MEAN].expand(len(codes), 1), codes], 1)

    return Probe(str(leaf), leaf.adapter, Hookpoint(leaf.layer), {n: rows[n] / lengths[n] for n in names}, amounts, random[:DRAWS])


def causal_effects(
    storage: Storage,
    audits: Mapping[LeafSpec, Audited],
    cfg: DivergeConfig,
    model: ModelConfig,
    model_digest: str,
    corpus: Corpus,
    adapters: Sequence[AdapterRef],
    gangs: GangConfig,
) -> dict[LeafSpec, dict[str, dict[str, Measure]]]:
    """Leaf → direction → side → nats per token by which the models come nearer; measured once per (audit, documents)."""
    units = [u for u in gate_units(corpus, DOCUMENTS) if u.corpus == DOMAIN]
    of = digest([[u.name for u in units], POSITIONS, TRIED, DRAWS])
    keys = {leaf: f"{found.key}/causal-{of}.json" for leaf, found in audits.items() if found.directions}
    if todo := [leaf for leaf, key in keys.items() if not storage.exists(key)]:
        needed = tuple(a for a in adapters if a.name in {leaf.adapter for leaf in todo})
        factory = CausalFactory(storage, model, model_digest, needed, tuple((leaf, audits[leaf]) for leaf in todo))
        found: list[dict] = []
        with tqdm(total=len(units), unit="unit", desc="causal effects") as bar:
            for _, rows in run_units([(u, None) for u in units], factory, gangs):
                found += rows
                bar.update()
        for leaf in todo:
            mine = sorted((r for r in found if r["probe"] == str(leaf)), key=lambda r: r["doc_id"])
            storage.write_json(keys[leaf], {"rows": mine})
    return {
        leaf: causal(storage.read_json(key)["rows"], tried(audits[leaf]), DRAWS, bootstrap=cfg.bootstrap, seed=cfg.seed)
        for leaf, key in keys.items()
    }
