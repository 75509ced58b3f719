"""Did the adapters change what the model says? Asked of evaluation documents before anything is claimed of features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.harvest.worker import load_with_adapters
from deltasae_ray.metrics.ratios import Ratio
from deltasae_ray.metrics.statistics import bootstrap_counts
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.behaviour import document_losses
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.models.load import base_of
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.gang import RankContext
from deltasae_ray.runtime.units import run_units
from deltasae_ray.storage import Storage, digest

DOCUMENTS = 32
"""Of each text, just enough for an interval: whole forward passes and the head over a large vocabulary cost."""
POSITIONS = 32
"""Scored positions per document, evenly spaced."""


def whole_model(
    storage: Storage, cfg: ModelConfig, model_digest: str | None, adapters: Sequence[AdapterRef], context: RankContext
) -> nn.Module:
    """A rank's model for what is asked of predictions: every block, the language-model head, and the adapters.

    Raises:
        ModelError: this node has another model than the driver, whose digest was given.
    """
    return load_with_adapters(storage, cfg, tuple(adapters), context.device, deepest=None, digest=model_digest, root=base_of)


@dataclass(frozen=True)
class GateFactory:
    """Makes the worker that scores documents; needs every block and the language-model head."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    adapters: tuple[AdapterRef, ...]

    def __call__(self, context: RankContext) -> "GateWorker":
        return GateWorker(self, context)


class GateWorker:
    """Callable of (unit, todo) → rows of document_losses."""

    def __init__(self, job: GateFactory, context: RankContext) -> None:
        self._names = [a.name for a in job.adapters]
        self._model = whole_model(job.storage, job.model, job.model_digest, job.adapters, context)

    def __call__(self, unit: TokenBatch, todo: Any, *, keep: bool) -> list[dict]:  # noqa: ARG002 - what gangs call
        return document_losses(self._model, unit, self._names, positions=POSITIONS)


def gate_units(corpus: Corpus, documents: int = DOCUMENTS) -> list[TokenBatch]:
    """The first unmarked context of at most `documents` evaluation documents of every text, grouped as they were harvested."""
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


def losses(
    storage: Storage, model: ModelConfig, model_digest: str, corpus: Corpus, adapters: Sequence[AdapterRef], gangs: GangConfig
) -> list[dict]:
    """Rows of `document_losses` for every adapter, measured once per (model, adapter, documents)."""
    units = gate_units(corpus)
    names = [u.name for u in units]
    keys = {a.name: f"behaviour/{digest([model_digest, a.digest, names, POSITIONS])}.json" for a in adapters}
    todo = tuple(a for a in adapters if not storage.exists(keys[a.name]))
    if todo:
        rows: list[dict] = []
        with tqdm(total=len(units), unit="unit", desc="behaviour") as bar:
            for _, found in run_units([(u, None) for u in units], GateFactory(storage, model, model_digest, todo), gangs):
                rows += found
                bar.update()
        for ref in todo:
            mine = sorted((r for r in rows if r["adapter"] == ref.name), key=lambda r: r["doc_id"])
            storage.write_json(keys[ref.name], {"rows": mine})
    found = []
    for ref in adapters:
        # the name is the study's; the file is of the content
        found += [{**row, "adapter": ref.name} for row in storage.read_json(keys[ref.name])["rows"]]
    return found


def behaviours(rows: Sequence[dict], adapter: str, *, bootstrap: int, seed: int) -> list[Behaviour]:
    """What one adapter does to the predictions on each text, with intervals over documents; the text adapted to first."""
    found = []
    mine = [r for r in rows if r["adapter"] == adapter]
    for corpus in sorted({r["corpus"] for r in mine}, key=lambda name: (name != DOMAIN, name)):
        documents = [r for r in mine if r["corpus"] == corpus]
        ce, base, kl, positions = (np.array([r[c] for r in documents], dtype=np.float64) for c in ("ce", "ce_base", "kl", "positions"))
        own, n = np.arange(len(documents)), len(documents)
        counts = bootstrap_counts(n, bootstrap, np.random.default_rng([seed, 7]))
        change, divergence = (Ratio.share(x, positions, own, n).measure(counts, null=0.0) for x in (ce - base, kl))
        found.append(Behaviour(corpus, change, divergence))
    return found


def base_loss(rows: Sequence[dict], adapter: str, corpus: str) -> float:
    """Mean loss of the base model on a text, nats per token."""
    mine = [r for r in rows if r["adapter"] == adapter and r["corpus"] == corpus]
    return sum(r["ce_base"] for r in mine) / sum(r["positions"] for r in mine)
