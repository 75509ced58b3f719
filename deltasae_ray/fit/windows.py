"""What a fit worker does with a stream: every dictionary takes its steps on one window, then on the next.

A dictionary's mean, scale and start come from the first window, which stays stored. A worker whose shares do
not fit its memory together reads it again with each later one. A checkpoint says how many steps, and so which
windows, are behind a dictionary; that is all a later run needs to know.
"""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch

from deltasae_ray import heartbeat
from deltasae_ray.errors import DictionaryError
from deltasae_ray.fit import checkpoint, stacks
from deltasae_ray.fit.fitting import FAILED, MANIFEST, FitJob, Fitting
from deltasae_ray.fit.memory import machine_bytes
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.rows import Rows, Tokens, usable_rows
from deltasae_ray.fit.worker import groups, note_failure
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
    """Deals `steps` to windows in proportion to their `tokens`: each row is seen equally often, inside its
    window."""
    total, passed, windows = sum(tokens), 0, []
    for index, count in enumerate(tokens):
        begins, ends = steps * passed // total, steps * (passed + count) // total
        windows.append(Window(index, window_key(spool, index) if index else harvest_key, begins, ends))
        passed += count
    return tuple(windows)


def steps_behind(storage: Storage, key: str, steps: int) -> int:
    """Optimizer steps of `steps` that the dictionary `key` has behind it; all where it is finished, or cannot
    be fitted."""
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


def fit_windows(
    run: WindowJob, rank: int, world: int, device: str, peers: Peers | None = None, memory: int | None = None
) -> None:
    """Fits every `world`-th group of the job to the windows of the run, each as soon as the stream's board
    says it is complete. Dictionaries of one shape train stacked where that is faster.

    Ends early where the stream was stopped. A point whose rows cannot be fitted is written down and the
    others go on.

    Args:
        memory: bytes that this worker may use; all of the machine's where it is not said.
    """
    job = run.job
    kept = open_harvest(job.storage, job.harvest_key)
    sources = {name: kept.source(name).digest for name in {p.adapter for p in job.points}}
    keys = {p: p.key(job.harvest_key, sources, job.cfg) for p in job.points}
    resident = Resident(kept)
    for window in run.windows:
        if not _all_ready(wait_until_ready(job.storage, run.spool, window.index), device, peers):
            return
        dealt = [p for group in groups(job.points)[rank::world] for p in group]
        left = [p for p in dealt if steps_behind(job.storage, keys[p], job.cfg.steps) < window.ends]
        if not left:
            continue
        # evaluation rows that cannot be used are to fail early, in the first window
        evaluated = not window.index or window.ends >= job.cfg.steps
        reading = Reading.open(job.storage, resident, window, evaluated=evaluated)
        size = stacks.sizes(left, job.cfg, kept.d_model, reading.num_bytes, memory or machine_bytes(), device)
        for held in stacks.held_together(groups(left), size):
            resident.keep({(p.adapter, p.layer) for p in held})
            rows = cache(reading.rows)

            def made(
                p: FitPoint, window: Window = window, rows: Callable[[str, int], WindowRows] = rows
            ) -> WindowFitting:
                return WindowFitting(run, window, p, keys[p], rows(p.adapter, p.layer), device, peers)

            stacks.fit(held, job.cfg, size, made, partial(note_failure, job.storage, keys, peers))
            del rows, made  # a worker that waits for its next window holds no rows of this one


def _all_ready(here: bool, device: str, peers: Peers | None) -> bool:
    """Whether all peers saw the window complete: one that went on alone would wait for the others in its
    first sum.

    None of them goes on before all are here, either: it would read a checkpoint that the writing one has not
    replaced yet.
    """
    if peers is None:
        return here
    seen = torch.tensor([float(here)], device=device)
    peers.sum(seen)
    return float(seen) == peers.world


class Resident:
    """The rows that stay, by source and hookpoint: a worker whose whole share is held at once reads them once
    and not per window."""

    def __init__(self, kept: ShardSet) -> None:
        self.shards, self.tokens = kept, Tokens.read(kept)
        self._rows: dict[tuple[str, int], tuple[bool, Rows]] = {}

    def keep(self, reads: Set[tuple[str, int]]) -> None:
        """Frees all others, before these are read."""
        self._rows = {read: held for read, held in self._rows.items() if read in reads}

    def rows(self, adapter: str, layer: int, *, evaluated: bool) -> Rows:
        """Those of the first window, with the evaluation rows where they are needed."""
        with_evaluation, rows = self._rows.pop((adapter, layer), (False, None))
        if rows is None or (evaluated and not with_evaluation):
            del rows  # freed before it is read anew
            with_evaluation, rows = (
                evaluated,
                Rows.read(self.shards, self.tokens, adapter, layer, evaluated=evaluated),
            )
        self._rows[adapter, layer] = with_evaluation, rows
        return rows


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

    first: Resident
    window: Window
    shards: ShardSet
    """Of the window."""
    tokens: Tokens
    """Of the window."""
    evaluated: bool
    """Whether evaluation rows are needed."""

    @classmethod
    def open(cls, storage: Storage, first: Resident, window: Window, *, evaluated: bool) -> "Reading":
        if not window.index:
            return cls(first, window, first.shards, first.tokens, evaluated)
        shards = open_harvest(storage, window.key)
        return cls(first, window, shards, Tokens.read(shards), evaluated)

    @property
    def num_bytes(self) -> int:
        """Of the rows of one read."""
        both = (self.first.tokens, self.tokens) if self.window.index else (self.tokens,)
        return sum(tokens.num_bytes(self.shards.d_model) for tokens in both)

    def rows(self, adapter: str, layer: int) -> WindowRows:
        """Raises PrecisionError, DictionaryError as `usable_rows` does."""
        first = self.first.rows(adapter, layer, evaluated=self.evaluated)
        if not self.window.index:
            return WindowRows(first, first)
        # by digest: an interrupted study may have left another adapter of this name behind
        fit, kept = usable_rows(self.shards, self.tokens, first.source, layer, "fit")
        docs, dropped = self.tokens.fit_docs, int((~kept).sum())
        if dropped:
            log.warning(
                "%s layer %d: %d rows of window %d with NaN or infinity are left out",
                adapter,
                layer,
                dropped,
                self.window.index,
            )
            fit, docs = fit[kept], docs[kept]
        # Featureless rows of a window are a draw of its own.
        source = f"{first.source}, window {self.window.index}"
        return WindowRows(first, Rows(fit, docs, first.evaluation, {**first.dropped, "fit": dropped}, source))


class WindowFitting(Fitting):
    """One dictionary on one window: from its last checkpoint to the window's end."""

    def __init__(  # noqa: PLR0913 - what Fitting takes, and its window
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
            raise DictionaryError(
                f"window {window.index} has no training row of documents {point.documents}: raise"
                " storage.window_tokens"
            )
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
        with heartbeat.unit("checkpoint"):
            checkpoint.write(self.job.storage, self.key, state)
