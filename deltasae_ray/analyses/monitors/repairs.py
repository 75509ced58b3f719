"""What needs no labels, as Ray tasks, one for each adapter and hookpoint: the repair, and how far scores move
on the study's own text."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from deltasae_ray.analyses.config import SEED
from deltasae_ray.analyses.monitors.figures import unlabelled
from deltasae_ray.analyses.monitors.folder import write_monitor
from deltasae_ray.analyses.monitors.kept import MonitorRef, open_monitors
from deltasae_ray.analyses.monitors.model import grouped_scores
from deltasae_ray.analyses.monitors.monitor import Monitor, Repair, fit_repair
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import document_codes
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.tasks import run_tasks
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage, digest

VERSION = 2
"""Raise it when a figure of monitors changes its meaning."""
MOST_ROWS = 40_000
"""Tokens that a repair is fitted on, evenly spaced over the training text."""
_MAP, _FIGURES = "repair.safetensors", "unlabelled.json"


@dataclass(frozen=True)
class RepairTask:
    """Travels to the task."""

    storage: Storage
    harvest_key: str
    adapter: AdapterRef
    random: AdapterRef | None
    hookpoint: Hookpoint
    monitors: tuple[MonitorRef, ...]
    """Monitors that read at the hookpoint."""
    bootstrap: int

    def key(self, shards: ShardSet) -> str:
        """Folder of what the task makes, named by all that it depends on."""
        made_of = {
            "version": VERSION,
            "harvest": shards.key,
            "units": digest([u.name for split in ("fit", "eval") for u in shards.units(split)]),
            "adapter": self.adapter.digest,
            "random": self.random.digest if self.random else None,
            "hookpoint": str(self.hookpoint),
            "monitors": [ref.key for ref in self.monitors],
            "bootstrap": self.bootstrap,
        }
        return f"monitors/repairs/{digest(made_of)}"


@dataclass(frozen=True, eq=False)
class Repaired:
    """What one task has made."""

    key: str
    repair: Repair
    unlabelled: dict[str, dict]
    """Monitor → figure → measure, as JSON."""


def repairs(tasks: Sequence[RepairTask]) -> list[Repaired]:
    """Runs the tasks whose results are not stored; returns those of all, in order."""
    if not tasks:
        return []
    storage, shards = tasks[0].storage, open_harvest(tasks[0].storage, tasks[0].harvest_key)
    keys = [task.key(shards) for task in tasks]
    todo = [t for t, key in zip(tasks, keys, strict=True) if not storage.exists(f"{key}/{_FIGURES}")]
    run_tasks([(repair_task, task) for task in todo], 1.0, bar="repairs")
    return [_stored(storage, key) for key in keys]


def _stored(storage: Storage, key: str) -> Repaired:
    tensors = load(storage.read_bytes(f"{key}/{_MAP}"))
    return Repaired(key, Repair(**tensors), storage.read_json(f"{key}/{_FIGURES}"))


def repair_task(task: RepairTask) -> None:
    """Fits the map, measures without labels, and stores both."""
    storage, shards = task.storage, open_harvest(task.storage, task.harvest_key)
    fitted = _fitted(task, shards)
    monitors = open_monitors(storage, task.monitors)
    figures = _unlabelled(task, shards, monitors)
    key = task.key(shards)
    parts = {"matrix": fitted.matrix.contiguous(), "offset": fitted.offset.contiguous()}
    storage.write_bytes(f"{key}/{_MAP}", save(parts))
    record = {name: {figure: m.to_dict() for figure, m in of.items()} for name, of in figures.items()}
    storage.write_json(f"{key}/{_FIGURES}", record)  # last: that it exists means that all is there


def _fitted(task: RepairTask, shards: ShardSet) -> Repair:
    tokens = shards.tokens("fit")
    rows = np.flatnonzero(tokens.used)
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int)]
    base, delta = (
        torch.from_numpy(shards.read(task.hookpoint, source, split="fit")[rows])
        for source in (BASE, task.adapter.name)
    )
    codes, _ = document_codes(tokens.doc_id[rows])
    return fit_repair(base + delta, base, torch.from_numpy(codes % 4 == 3))


def _unlabelled(
    task: RepairTask, shards: ShardSet, monitors: dict[str, Monitor]
) -> dict[str, dict[str, Measure]]:
    tokens = shards.tokens("eval")
    kept = np.flatnonzero(tokens.used)
    codes, _ = document_codes(tokens.doc_id[kept])
    order = np.argsort(codes, kind="stable")
    rows, codes = kept[order], codes[order]
    base = torch.from_numpy(shards.read(task.hookpoint, BASE, split="eval")[rows])
    sources = {"adapter": task.adapter} | ({"random": task.random} if task.random else {})
    changed = {
        name: base + torch.from_numpy(shards.read(task.hookpoint, ref.name, split="eval")[rows])
        for name, ref in sources.items()
    }
    figures = {}
    for name, monitor in monitors.items():
        before, document = grouped_scores(monitor, base, codes)
        after = {source: grouped_scores(monitor, h, codes)[0] for source, h in changed.items()}
        figures[name] = unlabelled(before, after, document, bootstrap=task.bootstrap, seed=SEED)
    return figures


def write_repaired(storage: Storage, adapter: str, monitor: Monitor) -> None:
    """Keeps a repaired monitor as a folder, below `monitors/repaired/ADAPTER/MONITOR`."""
    with tempfile.TemporaryDirectory() as scratch:
        write_monitor(monitor, Path(scratch))
        storage.put_folder(Path(scratch), f"monitors/repaired/{adapter}/{monitor.name}")
