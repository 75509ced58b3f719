"""Loss recovered, run by gangs over evaluation documents: every judged dictionary's deltas patched into the
base model."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deltasae_ray.analyses.behaviour.run import gate_units
from deltasae_ray.analyses.config import SEED, DivergeConfig
from deltasae_ray.analyses.divergence.task import seen_alive
from deltasae_ray.analyses.leaf_spec import METRICS_VERSION, LeafSpec, dictionary_digest, load_dictionary
from deltasae_ray.analyses.loss_recovered.figures import FIGURES, NULL_DRAWS, recovered
from deltasae_ray.analyses.loss_recovered.model import Patched, document_recovery
from deltasae_ray.analyses.loss_recovered.stand_ins import TrainingRows, stand_ins
from deltasae_ray.analyses.table import DivergenceRow, corrected
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.coding.dictionary_coding import spread
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.context import Passes, StageContext, remembered, run_passes
from deltasae_ray.sae.identity import BASE
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
class Recovery:
    """Makes the passes that patch estimates of deltas into the base model; travels to every node."""

    storage: Storage
    harvest_key: str
    leaves: tuple[LeafSpec, ...]
    seed: int

    def __call__(self) -> Passes:
        patches = [_patched(self, leaf) for leaf in self.leaves]
        return partial(document_recovery, patches=patches, positions=POSITIONS)


def _patched(job: Recovery, leaf: LeafSpec) -> Patched:
    shards = open_harvest(job.storage, job.harvest_key)
    keep = shards.tokens("fit").used
    with tempfile.TemporaryDirectory() as scratch:
        dictionary, reference = (
            load_dictionary(job.storage, key, Path(scratch)) for key in (leaf.dictionary, leaf.reference)
        )
    deltas, base = (shards.read(leaf.layer, source, split="fit")[keep] for source in (leaf.adapter, BASE))
    reference, chosen = seen_alive(reference, lambda: base), spread(len(deltas), SAMPLE)
    training = TrainingRows(
        Moments.of(deltas), *(torch.from_numpy(x[chosen]).float() for x in (deltas, base))
    )
    in_place = stand_ins(dictionary, reference, training, job.seed)
    return Patched(str(leaf), leaf.adapter, Hookpoint(leaf.layer), in_place)


def judged(leaves: Sequence[LeafSpec]) -> list[LeafSpec]:
    """The leaves that a verdict is about: each adapter's largest dictionaries with the first seed; a trial
    that failed has none."""
    largest = {
        leaf.adapter: max(other.d_sae for other in leaves if other.adapter == leaf.adapter) for leaf in leaves
    }
    first = min(leaf.seed for leaf in leaves)
    return [leaf for leaf in leaves if (leaf.d_sae, leaf.seed) == (largest[leaf.adapter], first)]


def recovered_rows(
    context: StageContext,
    harvest_key: str,
    leaves: Sequence[LeafSpec],
    cfg: DivergeConfig,
    adapters: Sequence[AdapterRef],
) -> list[DivergenceRow]:
    """Loss recovered of every judged leaf, measured once per (harvest, adapter, dictionaries, documents)."""
    storage = context.storage
    units = [u for u in gate_units(context.corpus, DOCUMENTS) if u.corpus == DOMAIN]
    refs, names = {a.name: a for a in adapters}, [u.name for u in units]
    keys = {
        leaf: _key(storage, harvest_key, leaf, refs[leaf.adapter].digest, names) for leaf in judged(leaves)
    }

    def make(missing: list[LeafSpec]) -> dict[LeafSpec, dict]:
        needed = [refs[name] for name in dict.fromkeys(leaf.adapter for leaf in missing)]
        recovery = Recovery(storage, harvest_key, tuple(missing), SEED)
        rows = run_passes(context, needed, units, recovery, "loss recovered")
        return {
            leaf: {"rows": sorted((r for r in rows if r["patch"] == str(leaf)), key=lambda r: r["doc_id"])}
            for leaf in missing
        }

    table = []
    for leaf, stored in remembered(storage, keys, make).items():
        measures = recovered(stored["rows"], bootstrap=cfg.bootstrap, seed=SEED)
        table += [DivergenceRow.of(leaf, name, m) for name, m in measures.items()]
    return corrected(table)


def _key(storage: Storage, harvest_key: str, leaf: LeafSpec, adapter: str, units: list[str]) -> str:
    inputs = {
        "version": METRICS_VERSION,
        "harvest": harvest_key,
        "source": adapter,
        "hookpoint": str(Hookpoint(leaf.layer)),
        "dictionaries": [dictionary_digest(storage, key) for key in (leaf.dictionary, leaf.reference)],
        "units": units,
        "positions": POSITIONS,
        "seed": SEED,
    }
    return f"recovered/{digest(inputs)}.json"
