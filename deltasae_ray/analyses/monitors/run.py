"""Monitors of a study before and after every adapter: repairs, passes over labelled texts, and rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import msgspec
import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from deltasae_ray.analyses.config import SEED, DivergeConfig
from deltasae_ray.analyses.monitors.figures import Scored, labelled, retrained_auroc
from deltasae_ray.analyses.monitors.kept import MonitorRef, TextSet, in_order, open_monitors, open_texts
from deltasae_ray.analyses.monitors.model import document_scores, hookpoints_of, unpacked
from deltasae_ray.analyses.monitors.monitor import Monitor, Repair
from deltasae_ray.analyses.monitors.refined import FEWEST, reads_one_vector, refined, refined_scores
from deltasae_ray.analyses.monitors.repairs import VERSION, Repaired, RepairTask, repairs, write_repaired
from deltasae_ray.analyses.monitors.table import MonitorRow
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.load import load_tokenizer
from deltasae_ray.runtime.context import Passes, StageContext, remembered, run_passes
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest

REPAIRED = " repaired"
"""Ending of the name under which a repaired monitor's scores are kept."""
NO_TEXTS = "the monitor has no labelled texts (texts.jsonl in its folder)"
LABELLED = ("auroc", "auroc_drop", "repaired_drop", "recovered", "tpr_drop", "threshold_drift")


@dataclass(frozen=True)
class TextShape:
    """How labelled texts become units."""

    length: int
    """Tokens of a context."""
    contexts: int
    """Of a unit."""


@dataclass(frozen=True)
class _Scored:
    """Makes the passes that score labelled texts; travels to every node."""

    storage: Storage
    refs: tuple[MonitorRef, ...]
    texts: tuple[tuple[str, tuple[str, ...]], ...]
    """Text → its monitors."""
    sources: tuple[str, ...]
    repairs: tuple[tuple[str, Hookpoint, str], ...]
    """Source, hookpoint, and the file of the repair."""

    def __call__(self) -> Passes:
        opened = open_monitors(self.storage, self.refs)
        maps = {
            (source, at): Repair(**load(self.storage.read_bytes(f"{key}/repair.safetensors")))
            for source, at, key in self.repairs
        }
        monitors = {
            text: {
                source: _with_repaired([opened[n] for n in names], source, maps) for source in self.sources
            }
            for text, names in self.texts
        }
        return partial(document_scores, monitors=monitors, sources=list(self.sources))


def _with_repaired(
    monitors: Sequence[Monitor], source: str, maps: Mapping[tuple[str, Hookpoint], Repair]
) -> list[Monitor]:
    fixed = [
        replace(m.repaired(maps[source, m.hookpoint]), name=m.name + REPAIRED)
        for m in monitors
        if (source, m.hookpoint) in maps
    ]
    return [*monitors, *fixed]


def monitor_rows(
    context: StageContext,
    harvest_key: str,
    refs: Sequence[MonitorRef],
    adapters: Sequence[AdapterRef],
    cfg: DivergeConfig,
    shape: TextShape,
) -> list[MonitorRow]:
    """Every figure of every monitor and adapter; what is stored is not made again.

    Repaired monitors are written below the root.

    Args:
        adapters: all of the harvest, the random one included.
    """
    storage = context.storage
    random = next((a for a in adapters if a.kind == "random"), None)
    studied = [a for a in adapters if a.kind == "adapter"]
    monitors = open_monitors(storage, refs)
    at = hookpoints_of(list(monitors.values()))
    tasks = [
        RepairTask(
            storage, harvest_key, a, random, h, tuple(r for r in refs if r.hookpoint == h), cfg.bootstrap
        )
        for a in studied
        for h in at
    ]
    repaired_by = {(t.adapter.name, t.hookpoint): r for t, r in zip(tasks, repairs(tasks), strict=True)}
    tokenizer = load_tokenizer(_folder(context), trust_remote_code=context.model.trust_remote_code)
    texts = open_texts(storage, refs, tokenizer, length=shape.length, contexts=shape.contexts)
    scores = _scores(context, refs, texts, [*studied, *([random] if random else [])], repaired_by)
    rows = []
    for adapter in studied:
        for name, monitor in monitors.items():
            repaired = repaired_by[adapter.name, monitor.hookpoint]
            text = next((t for t in texts if name in t.monitors), None)
            read = None if text is None else _Read(monitor, text, scores, adapter.name)
            repair = read.refined(repaired.repair) if read and read.refines else repaired.repair
            write_repaired(storage, quote(adapter.name, safe=""), monitor.repaired(repair))
            figures = _figures(read, repaired.repair, random, cfg)
            figures |= {
                figure: msgspec.convert(m, Measure) for figure, m in repaired.unlabelled[name].items()
            }
            rows += [
                MonitorRow(adapter.name, f"monitor.{name}.{figure}", str(monitor.hookpoint), m)
                for figure, m in figures.items()
            ]
    return rows


def _folder(context: StageContext) -> Path:
    from deltasae_ray.models.source import resolve_model

    return resolve_model(context.model).folder


Scores = dict[tuple[str, str], list[dict]]
"""(text, source) → rows of `document_scores`."""


def _scores(
    context: StageContext,
    refs: Sequence[MonitorRef],
    texts: Sequence[TextSet],
    adapters: Sequence[AdapterRef],
    repaired: Mapping[tuple[str, Hookpoint], Repaired],
) -> Scores:
    """Passes over all labelled texts, stored once per (texts, monitors, source)."""
    by_name = {a.name: a for a in adapters}
    keys_of_maps = {
        a.name: sorted([str(h), r.key] for (n, h), r in repaired.items() if n == a.name) for a in adapters
    }
    shared = [VERSION, context.model_digest, [r.key for r in refs], [u.name for t in texts for u in t.units]]
    digests = {BASE: BASE} | {a.name: a.digest for a in adapters}
    keys = {
        source: f"monitors/scores/{digest([*shared, content, keys_of_maps.get(source)])}.json"
        for source, content in digests.items()
    }

    def make(missing: list[str]) -> dict[str, dict]:
        job = _Scored(
            context.storage,
            tuple(refs),
            tuple((t.name, t.monitors) for t in texts),
            tuple(missing),
            tuple((n, h, r.key) for (n, h), r in repaired.items() if n in missing),
        )
        units = [unit for text in texts for unit in text.units]
        rows = run_passes(context, [by_name[n] for n in missing if n in by_name], units, job, "monitors")
        return {
            source: {"rows": sorted((r for r in rows if r["source"] == source), key=lambda r: r["doc_id"])}
            for source in missing
        }

    scores = remembered(context.storage, keys, make) if texts else {}
    return {
        (text.name, source): [r for r in stored["rows"] if r["doc_id"] in text.labels]
        for text in texts
        for source, stored in scores.items()
    }


class _Read:
    """What a monitor reads of its labelled texts before and after one adapter, documents in one order."""

    def __init__(self, monitor: Monitor, text: TextSet, scores: Scores, adapter: str) -> None:
        self.monitor, self.text, self._scores = monitor, text, scores
        self.base, self.adapted = scores[text.name, BASE], scores[text.name, adapter]
        ordered = sorted(self.base, key=lambda r: r["doc_id"])
        self.labels = np.array([text.labels[r["doc_id"]] for r in ordered])

    @property
    def refines(self) -> bool:
        """Whether its repair is fitted further on these texts."""
        return reads_one_vector(self.monitor) and len(self.labels) >= FEWEST

    def of(self, source: str) -> np.ndarray:
        """The monitor's scores under another source."""
        return in_order(self._scores[self.text.name, source], self.monitor.name)[0]

    def vectors(self, rows: Sequence[dict]) -> np.ndarray:
        """[doc, d_model], of the last token where the monitor reads that, else the mean over tokens."""
        pooled = "last" if self.monitor.reads == "last" else "mean"
        ordered = sorted(rows, key=lambda r: r["doc_id"])
        return np.stack([unpacked(r["vectors"][str(self.monitor.hookpoint)][pooled]) for r in ordered])

    def refined(self, repair: Repair) -> Repair:
        return refined(self.monitor, repair, *self._pairs())

    def repaired(self, repair: Repair) -> np.ndarray:
        """Scores of the repaired monitor; of each document by a map that was fitted without it, where it is
        fitted on these texts."""
        if self.refines:
            return refined_scores(self.monitor, repair, *self._pairs())
        return in_order(self.adapted, self.monitor.name + REPAIRED)[0]

    def _pairs(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.vectors(self.adapted)), torch.tensor(self.vectors(self.base))


def _figures(
    read: _Read | None, repair: Repair, random: AdapterRef | None, cfg: DivergeConfig
) -> dict[str, Measure]:
    if read is None:
        return dict.fromkeys(LABELLED, undefined(NO_TEXTS))
    before, document = in_order(read.base, read.monitor.name)
    scored = Scored(
        read.labels[document],
        document,
        before,
        in_order(read.adapted, read.monitor.name)[0],
        read.repaired(repair),
        read.of(random.name) if random else None,
    )
    ceiling = retrained_auroc(read.vectors(read.adapted), read.labels)
    return labelled(scored, ceiling, bootstrap=cfg.bootstrap, seed=SEED)
