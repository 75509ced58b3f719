"""Did the adapters change what the model says? Asked of evaluation documents before anything is claimed of
features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.metrics.ratios import Ratio
from deltasae_ray.metrics.statistics import bootstrap_counts
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.behaviour import document_losses
from deltasae_ray.runtime.context import Passes, StageContext, remembered, run_passes
from deltasae_ray.storage import digest

DOCUMENTS = 32
"""Of each text, just enough for an interval: whole forward passes and the head over a large vocabulary
cost."""
POSITIONS = 32
"""Scored positions per document, evenly spaced."""


def gate_units(corpus: Corpus, documents: int = DOCUMENTS) -> list[TokenBatch]:
    """The first unmarked context of at most `documents` evaluation documents of every text, grouped as they
    were harvested."""
    seen: dict[str, set[str]] = {}
    units = []
    for unit in corpus.of("eval"):
        taken = seen.setdefault(unit.corpus, set())
        rows = []
        for i, doc in enumerate(unit.doc_ids):
            if doc not in taken and len(taken) < documents and not unit.marker[i].any():
                taken.add(doc)
                rows.append(i)
        if rows:
            units.append(_rows(unit, np.array(rows)))
    return units


def _rows(unit: TokenBatch, rows: np.ndarray) -> TokenBatch:
    return replace(
        unit,
        input_ids=unit.input_ids[rows],
        mask=unit.mask[rows],
        marker=unit.marker[rows],
        doc_ids=tuple(unit.doc_ids[i] for i in rows),
        starts=tuple(unit.starts[i] for i in rows),
    )


@dataclass(frozen=True)
class _Scored:
    """Makes the passes that score documents under every adapter."""

    adapters: tuple[str, ...]

    def __call__(self) -> Passes:
        return partial(document_losses, adapters=list(self.adapters), positions=POSITIONS)


def losses(context: StageContext, adapters: Sequence[AdapterRef]) -> list[dict]:
    """Rows of `document_losses` for every adapter, measured once per (model, adapter, documents)."""
    units = gate_units(context.corpus)
    refs, names = {a.name: a for a in adapters}, [u.name for u in units]
    keys = {
        name: f"behaviour/{digest([context.model_digest, a.digest, names, POSITIONS])}.json"
        for name, a in refs.items()
    }

    def make(missing: list[str]) -> dict[str, dict]:
        rows = run_passes(
            context, [refs[name] for name in missing], units, _Scored(tuple(missing)), "behaviour"
        )
        return {
            name: {"rows": sorted((r for r in rows if r["adapter"] == name), key=lambda r: r["doc_id"])}
            for name in missing
        }

    # the name is the study's; the file is of the content
    return [
        {**row, "adapter": name}
        for name, stored in remembered(context.storage, keys, make).items()
        for row in stored["rows"]
    ]


def behaviours(rows: Sequence[dict], adapter: str, *, bootstrap: int, seed: int) -> list[Behaviour]:
    """What one adapter does to the predictions on each text, with intervals over documents; the text adapted
    to first."""
    changes = []
    mine = [r for r in rows if r["adapter"] == adapter]
    for corpus in sorted({r["corpus"] for r in mine}, key=lambda name: (name != DOMAIN, name)):
        documents = [r for r in mine if r["corpus"] == corpus]
        ce, base, kl, positions = (
            np.array([r[c] for r in documents], dtype=np.float64)
            for c in ("ce", "ce_base", "kl", "positions")
        )
        own, n = np.arange(len(documents)), len(documents)
        counts = bootstrap_counts(n, bootstrap, np.random.default_rng([seed, 7]))
        change, divergence = (
            Ratio.share(x, positions, own, n).measure(counts, null=0.0) for x in (ce - base, kl)
        )
        before = sum(r["ce_base"] for r in documents) / sum(r["positions"] for r in documents)
        changes.append(Behaviour(corpus, change, divergence, before))
    return changes
