"""Loss recovered, run by gangs over evaluation documents: every judged dictionary's deltas patched into the base model."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from deltasae_ray.analyses.behaviour.run import gate_units, whole_model
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.task import seen_alive
from deltasae_ray.analyses.leaf_spec import METRICS_VERSION, LeafSpec, dictionary_digest, load_dictionary
from deltasae_ray.analyses.loss_recovered.figures import FIGURES, NULL_DRAWS, recovered
from deltasae_ray.analyses.loss_recovered.model import Patched, document_recovery
from deltasae_ray.analyses.loss_recovered.stand_ins import TrainingRows, stand_ins
from deltasae_ray.analyses.table import DivergenceRow, corrected
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.capture import BASE
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage, digest

DOCUMENTS = 48
"""Evaluation documents of the text adapted to; an interval takes 30."""
POSITIONS = 16
"""Scored positions per document, evenly spaced."""
STAND_INS = len(FIGURES) * (1 + NULL_DRAWS)
"""Estimates of a delta per dictionary, nulls included (`interventions.stand_ins`)."""
SAMPLE = 1024
"""Training tokens on which atoms are chosen and latents counted."""


@dataclass(frozen=True)
class RecoveryFactory:
    """Makes the worker of a rank; travels to every node."""

    storage: Storage
    harvest_key: str
    model: ModelConfig
    adapters: tuple[AdapterRef, ...]
    leaves: tuple[LeafSpec, ...]
    cfg: DivergeConfig

    def __call__(self, context: RankContext) -> "RecoveryWorker":
        return RecoveryWorker(self, context)


class RecoveryWorker:
    """Callable of (unit, todo) → rows of document_recovery. Holds the whole model, the dictionaries, and the null's atoms."""

    def __init__(self, job: RecoveryFactory, context: RankContext) -> None:
        of = open_harvest(job.storage, job.harvest_key).spec.get("model_digest")
        self._model = whole_model(job.storage, job.model, of, job.adapters, context)
        self._patches = [_patched(job, leaf) for leaf in job.leaves]

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> list[dict]:  # noqa: ARG002 - what gangs call
        return document_recovery(self._model, unit, self._patches, POSITIONS)


def _patched(job: RecoveryFactory, leaf: LeafSpec) -> Patched:
    shards = open_harvest(job.storage, job.harvest_key)
    keep = shards.tokens("fit").position > 0
    with tempfile.TemporaryDirectory() as scratch:
        dictionary, reference = (load_dictionary(job.storage, key, Path(scratch)) for key in (leaf.dictionary, leaf.reference))
    deltas, base = (shards.read(leaf.layer, source, split="fit")[keep] for source in (leaf.adapter, BASE))
    reference, chosen = seen_alive(reference, lambda: base), spread(len(deltas), SAMPLE)
    training = TrainingRows(Moments.of(deltas), *(torch.from_numpy(x[chosen]).float() for x in (deltas, base)))
    made = stand_ins(dictionary, reference, training, job.cfg.seed)
    return Patched(str(leaf), leaf.adapter, Hookpoint(leaf.layer), made)


def judged(leaves: Sequence[LeafSpec]) -> list[LeafSpec]:
    """The leaves that a verdict is about: each adapter's largest dictionaries with the first seed; a trial that failed has none."""
    largest = {leaf.adapter: max(other.d_sae for other in leaves if other.adapter == leaf.adapter) for leaf in leaves}
    first = min(leaf.seed for leaf in leaves)
    return [leaf for leaf in leaves if (leaf.d_sae, leaf.seed) == (largest[leaf.adapter], first)]


def recovered_rows(
    storage: Storage,
    harvest_key: str,
    leaves: Sequence[LeafSpec],
    cfg: DivergeConfig,
    model: ModelConfig,
    corpus: Corpus,
    adapters: Sequence[AdapterRef],
    gangs: GangConfig,
) -> list[DivergenceRow]:
    """Loss recovered of every judged leaf, measured once per (harvest, adapter, dictionaries, documents)."""
    units = [u for u in gate_units(corpus, DOCUMENTS) if u.corpus == DOMAIN]
    leaves = judged(leaves)
    refs = {a.name: a for a in adapters}
    keys = {leaf: _key(storage, harvest_key, leaf, cfg, refs[leaf.adapter].digest, [u.name for u in units]) for leaf in leaves}
    if todo := tuple(leaf for leaf, key in keys.items() if not storage.exists(key)):
        needed = tuple(refs[name] for name in dict.fromkeys(leaf.adapter for leaf in todo))
        factory = RecoveryFactory(storage, harvest_key, model, needed, todo, cfg)
        found: list[dict] = []
        with tqdm(total=len(units), unit="unit", desc="loss recovered") as bar:
            for _, rows in run_units([(u, None) for u in units], factory, gangs):
                found += rows
                bar.update()
        for leaf in todo:
            mine = sorted((r for r in found if r["patch"] == str(leaf)), key=lambda r: r["doc_id"])
            storage.write_json(keys[leaf], {"rows": mine})
    table = []
    for leaf, key in keys.items():
        measures = recovered(storage.read_json(key)["rows"], bootstrap=cfg.bootstrap, seed=cfg.seed)
        table += [DivergenceRow.of(leaf, name, m) for name, m in measures.items()]
    return corrected(table)


def _key(storage: Storage, harvest_key: str, leaf: LeafSpec, cfg: DivergeConfig, adapter: str, units: list[str]) -> str:
    inputs = {
        "version": METRICS_VERSION,
        "harvest": harvest_key,
        "source": adapter,
        "hookpoint": str(Hookpoint(leaf.layer)),
        "dictionaries": [dictionary_digest(storage, key) for key in (leaf.dictionary, leaf.reference)],
        "units": units,
        "positions": POSITIONS,
        "seed": cfg.seed,
    }
    return f"recovered/{digest(inputs)}.json"
