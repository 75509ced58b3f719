"""What a fit worker does with a stream: every dictionary takes its steps on one window, then on the next.

A dictionary's mean, scale and start come from the first window, which stays stored. A worker of several shares reads it again with each
later one: together they would not fit its memory. A checkpoint says how many steps, and so which windows, are behind a dictionary; that is
all a later run needs to know.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from deltasae_ray.errors import DictionaryError, PrecisionError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.worker import FAILED, MANIFEST, FitJob, Fitting, Rows, Tokens, groups, usable_rows
from deltasae_ray.sae.peers import Peers
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.shards.spool import wait_until_ready, window_key
from deltasae_ray.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """Which steps of every dictionary are taken on which shards."""

    index: int
    key: str
    """Folder of its shards: for the first window the harvest that stays."""
    begins: int
    """Optimizer steps behind every dictionary before it."""
    ends: int


def schedule(harvest_key: str, spool: str, tokens: Sequence[int], steps: int) -> tuple[Window, ...]:
    """Deals `steps` to windows in proportion to their `tokens`: each row is seen equally often, inside its window."""
    total, passed, windows = sum(tokens), 0, []
    for index, count in enumerate(tokens):
        begins, ends = steps * passed // total, steps * (passed + count) // total
        windows.append(Window(index, window_key(spool, index) if index else harvest_key, begins, ends))
        passed += count
    return tuple(windows)


def steps_behind(storage: Storage, key: str, steps: int) -> int:
    """Optimizer steps of `steps` that the dictionary `key` has behind it; all where it is finished, or cannot be fitted."""
    if storage.exists(f"{key}/{MANIFEST}") or storage.exists(f"{key}/{FAILED}"):
        return steps
    return checkpoint.steps_done(storage, key)


@dataclass(frozen=True)
class WindowJob:
    """A run of windows, for one Ray Train run; travels to every worker."""

    job: FitJob
    """Its harvest is what stays: the first window and the evaluation split."""
    spool: str
    windows: tuple[Window, ...]
    """In order; those that this run takes."""
    of: int
    """Windows of the whole stream."""


def fit_windows(run: WindowJob, rank: int, world: int, device: str, peers: Peers | None = None) -> None:
    """Fits every `world`-th group of the job to the windows of the run, each as soon as the stream's board says it is complete.

    Ends early where the stream was stopped. A point whose rows cannot be fitted is written down and the others go on.
    """
    job = run.job
    kept = open_harvest(job.storage, job.harvest_key)
    sources = {name: kept.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for p in job.points}
    tokens = Tokens.read(kept)
    resident = Resident(kept, tokens)
    for window in run.windows:
        if not _all_ready(wait_until_ready(job.storage, run.spool, window.index), device, peers):
            return
        reading: Reading | None = None
        for group in groups(job.points)[rank::world]:
            left = [p for p in group if steps_behind(job.storage, keys[p], job.cfg.steps) < window.ends]
            reading = reading or (Reading.open(job.storage, kept, tokens, window) if left else None)
            for point in left:
                assert reading is not None
                try:
                    # evaluation rows that cannot be used are to fail early, in the first window
                    first = resident.rows(point, evaluated=not window.index or window.ends >= job.cfg.steps)
                    fitting = WindowFitting(run, window, point, keys[point], first, reading.rows(first, point, sources), device, peers)
                    fitting.complete()
                except (DictionaryError, PrecisionError) as e:
                    if peers and peers.rank:
                        continue
                    job.storage.write_json(f"{keys[point]}/{FAILED}", {"type": type(e).__name__, "message": f"{point}: {e}"})


def _all_ready(here: bool, device: str, peers: Peers | None) -> bool:
    """Whether all peers saw the window complete: one that went on alone would wait for the others in its first sum.

    None of them goes on before all are here, either: it would read a checkpoint that the writing one has not replaced yet.
    """
    if peers is None:
        return here
    seen = torch.tensor([float(here)], device=device)
    peers.sum(seen)
    return float(seen) == peers.world


class Resident:
    """The rows that stay: of one source and hookpoint at a time, so that a worker with one share reads them once and not per window."""

    def __init__(self, kept: ShardSet, tokens: Tokens) -> None:
        self._kept, self._tokens = kept, tokens
        self._of: tuple[str, int, bool] | None = None
        self._rows: Rows | None = None

    def rows(self, point: FitPoint, *, evaluated: bool) -> Rows:
        """Those of the first window, with the evaluation rows where they are needed."""
        if self._rows is None or self._of != (point.adapter, point.layer, evaluated):
            self._rows = None  # freed before others are read
            self._rows = Rows.read(self._kept, self._tokens, point.adapter, point.layer, evaluated=evaluated)
            self._of = point.adapter, point.layer, evaluated
        return self._rows


class Reading:
    """The shards of one window; a source's rows at a hookpoint are read once for all dictionaries that follow each other."""

    def __init__(self, window: Window, shards: ShardSet, tokens: Tokens) -> None:
        self._window, self._shards, self._tokens = window, shards, tokens
        self._of: tuple[str, int] | None = None
        self._rows: Rows | None = None

    @classmethod
    def open(cls, storage: Storage, kept: ShardSet, tokens: Tokens, window: Window) -> "Reading":
        if not window.index:
            return cls(window, kept, tokens)
        shards = open_harvest(storage, window.key)
        return cls(window, shards, Tokens.read(shards))

    def rows(self, first: Rows, point: FitPoint, sources: dict[str, str]) -> Rows:
        """The window's training rows, beside the evaluation rows that `first` holds."""
        if not self._window.index:
            return first
        if self._rows is None or self._of != (point.adapter, point.layer):
            self._of = point.adapter, point.layer
            # by digest: an interrupted study may have left another adapter of this name behind
            fit, kept = usable_rows(self._shards, self._tokens, sources[point.adapter], point.layer, "fit")
            docs, dropped = self._tokens.fit_docs, int((~kept).sum())
            if dropped:
                log.warning("%s layer %d: %d rows of window %d with NaN or infinity are left out", *self._of, dropped, self._window.index)
                fit, docs = fit[kept], docs[kept]
            # Featureless rows of a window are a draw of its own.
            source = f"{first.source}, window {self._window.index}"
            self._rows = Rows(fit, docs, first.evaluation, {**first.dropped, "fit": dropped}, source)
        return self._rows


class WindowFitting(Fitting):
    """One dictionary on one window: from its last checkpoint to the window's end."""

    def __init__(
        self,
        run: WindowJob,
        window: Window,
        point: FitPoint,
        key: str,
        first: Rows,
        rows: Rows,
        device: str,
        peers: Peers | None = None,
    ) -> None:
        self._of = run.of
        super().__init__(run.job, point, key, first, device, peers)
        self._before: dict[str, int] = self.noted or {"rows": 0, "dropped": 0}
        self.end = window.ends
        chosen = rows.training(point)
        if not len(chosen):
            raise DictionaryError(f"window {window.index} has no training row of documents {point.documents}: raise storage.window_tokens")
        assert window.begins <= self.trainer.steps_done <= window.ends, "windows are fitted in order"
        if window.index:
            self.trainer.take_window(chosen, window.begins, self._before["rows"])
        dropped = self._before["dropped"] + rows.dropped["fit"]
        self._after = {"rows": self._before["rows"] + len(chosen), "dropped": dropped}
        self.rows = replace(rows, dropped={**rows.dropped, "fit": dropped})

    def check_size(self, rows: int) -> None:
        super().check_size(rows * self._of)

    def keep(self) -> None:
        """Also notes how many rows the windows held that are behind it, for the manifest."""
        note = self._after if self.trainer.steps_done == self.end else self._before
        state: dict[str, Any] = {**self.trainer.state_dict(), "note": note}
        checkpoint.write(self.job.storage, self.key, state)

    def complete(self) -> None:
        """Trains to the end of the window; after the last one the dictionary is finished."""
        while self.trainer.steps_done < self.end:
            self.advance()
        if self.trainer.done:
            self.finish()
