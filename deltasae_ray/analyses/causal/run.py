"""The causal effect of audited latents, run by gangs over evaluation documents as loss recovered is."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.audit.task import MEAN, Audited
from deltasae_ray.analyses.behaviour.run import gate_units
from deltasae_ray.analyses.causal.figures import causal
from deltasae_ray.analyses.causal.model import Probe, document_effects
from deltasae_ray.analyses.config import SEED, DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec, load_dictionary
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.context import Passes, StageContext, remembered, run_passes
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
"""Continuations of a context on either side: the whole delta, and every direction with those that stand in
for it."""


@dataclass(frozen=True)
class _Probed:
    """Makes the passes that take directions out and put them in; travels to every node."""

    storage: Storage
    audits: tuple[tuple[LeafSpec, Audited], ...]

    def __call__(self) -> Passes:
        probes = [probe_of(self.storage, leaf, audited) for leaf, audited in self.audits]
        return partial(document_effects, probes=probes, positions=POSITIONS)


def tried(audited: Audited) -> list[str]:
    """The mean change, and the first latents by rank, as far as the page shows them (diverge.latents)."""
    names = [MEAN] + [str(row.latent) for row in audited.audit.leading(TRIED) if row.latent is not None]
    return [name for name in names if name in audited.directions]


def probe_of(storage: Storage, leaf: LeafSpec, audited: Audited) -> Probe:
    """Directions of an audit, and how much of each a delta holds: of the mean change always its length."""
    vectors, random = (torch.from_numpy(x) for x in audited.vectors(storage))
    names = tried(audited)
    rows = {name: vectors[audited.directions.index(name)] for name in names}
    lengths = {name: row.norm().clamp_min(torch.finfo(row.dtype).tiny) for name, row in rows.items()}
    with tempfile.TemporaryDirectory() as scratch:
        dictionary = load_dictionary(storage, leaf.dictionary, Path(scratch))
    latents = torch.tensor([int(name) for name in names[1:]], dtype=torch.int64)

    def amounts(delta: Float[Tensor, "token d_model"]) -> Float[Tensor, "token direction"]:
        codes = dictionary.encode(delta)[:, latents] * torch.stack([lengths[name] for name in names[1:]])
        return torch.cat([lengths[MEAN].expand(len(codes), 1), codes], 1)

    return Probe(
        str(leaf),
        leaf.adapter,
        Hookpoint(leaf.layer),
        {n: rows[n] / lengths[n] for n in names},
        amounts,
        random[:DRAWS],
    )


def causal_effects(
    context: StageContext,
    audits: Mapping[LeafSpec, Audited],
    cfg: DivergeConfig,
    adapters: Sequence[AdapterRef],
) -> dict[LeafSpec, dict[str, dict[str, Measure]]]:
    """Leaf → direction → side → nats per token by which the models come nearer; measured once per (audit,
    documents)."""
    units = [u for u in gate_units(context.corpus, DOCUMENTS) if u.corpus == DOMAIN]
    of = digest([[u.name for u in units], POSITIONS, TRIED, DRAWS])
    keys = {leaf: f"{audited.key}/causal-{of}.json" for leaf, audited in audits.items() if audited.directions}

    def make(missing: list[LeafSpec]) -> dict[LeafSpec, dict]:
        needed = [a for a in adapters if a.name in {leaf.adapter for leaf in missing}]
        probed = _Probed(context.storage, tuple((leaf, audits[leaf]) for leaf in missing))
        rows = run_passes(context, needed, units, probed, "causal effects")
        return {
            leaf: {"rows": sorted((r for r in rows if r["probe"] == str(leaf)), key=lambda r: r["doc_id"])}
            for leaf in missing
        }

    return {
        leaf: causal(stored["rows"], tried(audits[leaf]), DRAWS, bootstrap=cfg.bootstrap, seed=SEED)
        for leaf, stored in remembered(context.storage, keys, make).items()
    }
