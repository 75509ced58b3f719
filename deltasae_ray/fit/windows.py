"""What a fit worker does with a stream: every dictionary takes its steps on one window, then on the next.

A dictionary's mean, scale and start come from the first window, which stays stored and is read again with each later one. Its checkpoint
says how many steps, and so which windows, are behind it; that is all a later run needs to know.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit import checkpoint, stacks
from deltasae_ray.fit.memory import machine_bytes
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.rows import Rows, Tokens, usable_rows
from deltasae_ray.fit.worker import FAILED, MANIFEST, FitJob, Fitting, groups, note_failure
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


def fit_windows(run: WindowJob, rank: int, world: int, device: str, peers: Peers | None = None, memory: int | None = None) -> None:
    """Fits every `world`-th group of the job to the windows of the run, each as soon as the stream's board says it is complete.
    Dictionaries of one shape train stacked where that is faster.

    Ends early where the stream was stopped. A point whose rows cannot be fitted is written down and the others go on.

    Args:
        memory: bytes that this worker may use; all of the machine's where it is not said.
    """
    job = run.job
    kept = open_harvest(job.storage, job.harvest_key)
    sources = {name: kept.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for p in job.points}
    tokens = Tokens.read(kept)
    for window in run.windows:
        if peers:  # a peer would read a checkpoint that the writing one has not replaced yet
            peers.sum(torch.zeros(1, device=device))
        if not wait_until_ready(job.storage, run.spool, window.index):
            return
        dealt = [p for group in groups(job.points)[rank::world] for p in group]
        left = [p for p in dealt if steps_behind(job.storage, keys[p], job.cfg.steps) < window.ends]
        if not left:
            continue
        reading = Reading.open(job.storage, kept, tokens, window)
        size = stacks.sizes(left, job.cfg, kept.d_model, reading.num_bytes, memory or machine_bytes(), device)
        for held in stacks.held_together(groups(left), size):
            rows = cache(reading.rows)

            def made(p: FitPoint, window: Window = window, rows: Callable[[str, int], WindowRows] = rows) -> WindowFitting:
                return WindowFitting(run, window, p, keys[p], rows(p.adapter, p.layer), device, peers)

            stacks.fit(held, job.cfg, size, made, partial(note_failure, job.storage, keys, peers))


@dataclass(frozen=True, eq=False)
class WindowRows:
    """One read of a source at a hookpoint."""

    first: Rows
    """Those of the first window, which decide mean, scale and start, with the evaluation rows."""
    own: Rows
    """Those of the window."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The shards of one window beside those of the first."""

    kept: ShardSet
    tokens: Tokens
    """Of `kept`."""
    window: Window
    shards: ShardSet
    """Of the window."""
    own: Tokens
    """Of the window."""

    @classmethod
    def open(cls, storage: Storage, kept: ShardSet, tokens: Tokens, window: Window) -> "Reading":
        if not window.index:
            return cls(kept, tokens, window, kept, tokens)
        shards = open_harvest(storage, window.key)
        return cls(kept, tokens, window, shards, Tokens.read(shards))

    @property
    def num_bytes(self) -> int:
        """Of the rows of one read."""
        both = (self.tokens, self.own) if self.window.index else (self.tokens,)
        return sum(tokens.num_bytes(self.kept.d_model) for tokens in both)

    def rows(self, adapter: str, layer: int) -> WindowRows:
        """Raises PrecisionError, DictionaryError as `usable_rows` does."""
        first = Rows.read(self.kept, self.tokens, adapter, layer)
        if not self.window.index:
            return WindowRows(first, first)
        # by digest: an interrupted study may have left another adapter of this name behind
        fit, kept = usable_rows(self.shards, self.own, first.source, layer, "fit")
        docs, dropped = self.own.fit_docs, int((~kept).sum())
        if dropped:
            log.warning("%s layer %d: %d rows of window %d with NaN or infinity are left out", adapter, layer, dropped, self.window.index)
            fit, docs = fit[kept], docs[kept]
        # Featureless rows of a window are a draw of its own.
        source = f"{first.source}, window {self.window.index}"
        return WindowRows(first, Rows(fit, docs, first.evaluation, {**first.dropped, "fit": dropped}, source))


class WindowFitting(Fitting):
    """One dictionary on one window: from its last checkpoint to the window's end."""

    def __init__(
        self,
        run: WindowJob,
        window: Window,
        point: FitPoint,
        key: str,
        rows: WindowRows,
        device: str,
        peers: Peers | None = None,
    ) -> None:
        self._of = run.of
        super().__init__(run.job, point, key, rows.first, device, peers)
        self._before: dict[str, int] = self.noted or {"rows": 0, "dropped": 0}
        self.end = window.ends
        chosen = rows.own.training(point) if window.index else self.trainer.x
        if not len(chosen):
            raise DictionaryError(f"window {window.index} has no training row of documents {point.documents}: raise storage.window_tokens")
        assert window.begins <= self.trainer.steps_done <= window.ends, "windows are fitted in order"
        if window.index:
            self.trainer.take_window(chosen, window.begins, self._before["rows"])
        dropped = self._before["dropped"] + rows.own.dropped["fit"]
        self._after = {"rows": self._before["rows"] + len(chosen), "dropped": dropped}
        self.rows = replace(rows.own, dropped={**rows.own.dropped, "fit": dropped})

    def check_size(self, rows: int) -> None:
        super().check_size(rows * self._of)

    def keep(self) -> None:
        """Also notes how many rows the windows held that are behind it, for the manifest."""
        note = self._after if self.trainer.steps_done == self.end else self._before
        state: dict[str, Any] = {**self.trainer.state_dict(), "note": note}
        checkpoint.write(self.job.storage, self.key, state)
