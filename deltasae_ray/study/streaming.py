"""A streamed study: windows of its training text are harvested, fitted by all dictionaries, and deleted, two
at most at a time.

Tune has no part in this: each of its trials would need a harvest of its own, while here every dictionary of
the study goes over a window together. Harvest and fit run side by side where the cluster holds both, else in
turns.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from deltasae_ray.cli import say
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.stream import Stream
from deltasae_ray.errors import ResourceError, StorageError
from deltasae_ray.fit.fitting import MANIFEST, FitJob, steps_behind
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.progress import progress
from deltasae_ray.fit.run import failure, fit_job, fitted_points, forget_failures, keys_of
from deltasae_ray.fit.windows import Window, schedule
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.harvest.windows import harvest_windows
from deltasae_ray.shards.spool import SILENT_S, Board, BoardWriter, OtherSpools, spool_key, writing_board
from deltasae_ray.study.cluster_check import holds_harvest_and_fit
from deltasae_ray.study.controls import control_points, keep_controls
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.state import StudyState

WATCH_S, WATCH_REMOTELY_S = 0.5, 10.0
"""Seconds between two looks at how far all dictionaries are; object stores charge for every one."""


def fit_stream(study: Study, state: StudyState) -> None:
    """Fits controls and grid over the windows of the study's stream; a trial that cannot be fitted is noted
    and the others go on.

    Raises:
        DictionaryError, PrecisionError: a control that cannot be fitted.
        DeltaSaeError: what the harvest of a window raised, or the storage.
    """
    way = Windows.of(study, state)
    way.fit()
    storage, cfg = study.storage, study.cfg.fit
    done = fitted_points(storage, way.kept.key, way.points, cfg)
    keep_controls(state, storage, dict.fromkeys(way.controls, cfg))
    for trial in trials(way.kept.adapters, cfg):
        group = grid_points(trial, study.layers, cfg.seeds)
        if all(p in done for p in group):
            state.grid[trial] = [done[p] for p in group]
        else:
            state.failed[trial] = "; ".join(
                str(error) for p in group if (error := failure(storage, way.keys[p]))
            )


@dataclass(frozen=True)
class Windows:
    """The way of a study's dictionaries over the windows of its stream."""

    study: Study
    kept: Harvest
    """The first window and the evaluation split."""
    stream: Stream
    controls: tuple[FitPoint, ...]
    points: tuple[FitPoint, ...]
    """Controls and grid."""

    @classmethod
    def of(cls, study: Study, state: StudyState) -> "Windows":
        assert state.harvest is not None and study.stream is not None
        cfg, adapters = study.cfg.fit, state.harvest.adapters
        controls = control_points(
            study.layers,
            cfg,
            adapters,
            study.cfg.diverge.chosen,
            toy_reference=study.cfg.reference.is_toy,
            siblings=not study.has_siblings,
        )
        grid = [p for t in trials(adapters, cfg) for p in grid_points(t, study.layers, cfg.seeds)]
        return cls(
            study, state.harvest, study.stream, tuple(controls), tuple(dict.fromkeys([*controls, *grid]))
        )

    @property
    def spool(self) -> str:
        return spool_key(self.kept.key)

    @cached_property
    def plan(self) -> tuple[Window, ...]:
        return schedule(self.kept.key, self.spool, self.stream.tokens, self.study.cfg.fit.steps)

    @cached_property
    def keys(self) -> dict[FitPoint, str]:
        return keys_of(self.study.storage, self.kept.key, self.points, self.study.cfg.fit)

    def fit(self) -> None:
        """Takes every dictionary that has no manifest over the windows that it has not seen.

        Raises:
            DeltaSaeError: what the harvest of a window raised, or the storage, or a worker on purpose.
        """
        storage, others = self.study.storage, OtherSpools(self.study.storage, self.spool)
        todo = {p: key for p, key in self.keys.items() if not storage.exists(f"{key}/{MANIFEST}")}
        # tried again on the first window first: most would fail there again
        failed_before = forget_failures(storage, todo.values())
        reached, unwritten = -1, None
        while needed := self.needed():
            first = needed[0]
            if first <= reached:
                raise unwritten or ResourceError(
                    f"window {first + 1} of the stream was given up: its workers heard nothing of the driver"
                    f" for {SILENT_S:.0f} s, as of one that was held up meanwhile. The same command continues"
                )
            side_by_side = holds_harvest_and_fit(self.study.cfg) and not failed_before
            last = len(self.plan) - 1 if side_by_side else first
            unwritten = self._run(todo, self.plan[first : last + 1], side_by_side=side_by_side)
            reached = last
        storage.delete_folder(self.spool)
        for spool in others.remove_abandoned():
            say(f"  removed what an abandoned study had left in {storage.address(spool)}")

    def needed(self) -> list[int]:
        """The windows that some dictionary has still to see; none where all are finished, or cannot be
        fitted."""
        steps = self.study.cfg.fit.steps
        behind = min(steps_behind(self.study.storage, key, steps) for key in self.keys.values())
        return [w.index for w in self.plan if behind < w.ends]

    def _run(
        self, todo: Mapping[FitPoint, str], windows: tuple[Window, ...], *, side_by_side: bool
    ) -> StorageError | None:
        """Harvests and fits `windows`; the first window of the stream is there already. Returns why the board
        could not be written last."""
        storage, cfg, first = self.study.storage, self.study.cfg.fit, windows[0].index
        needed = {w.index: self.stream.windows[w.index] for w in windows if w.index}
        text = (
            f"windows {first + 1} to {windows[-1].index + 1}" if len(windows) > 1 else f"window {first + 1}"
        )
        say(
            f"  {text} of {len(self.plan)}, {len(todo)} dictionaries"
            + (", harvest beside fit" if side_by_side and needed else "")
        )
        for window in self.plan[1:first]:  # left by a kill between the last checkpoint and the deletion
            storage.delete_folder(window.key)
        job = FitJob(storage, self.kept.key, tuple(todo), cfg, windows, self.spool, len(self.plan))
        with writing_board(storage, self.spool, Board(open=first + 1 if side_by_side else first)) as board:
            harvesting = _Harvesting(self, needed, board)
            if not side_by_side:
                harvesting.end()
            with (
                progress(storage, list(todo.values()), cfg.steps, "fit", show=True),
                self._deleting(todo, windows, harvesting),
            ):
                fit_job(job)
            unwritten = board.error
            board.stop()  # the fit may have ended early: what is not harvested by now will not be
            harvesting.end(within=2 * SILENT_S)
        return unwritten

    @contextmanager
    def _deleting(
        self, todo: Mapping[FitPoint, str], windows: tuple[Window, ...], harvesting: "_Harvesting"
    ) -> Iterator[None]:
        """While the body runs, deletes each window that is behind every dictionary, and opens the next but
        one."""
        storage, steps = self.study.storage, self.study.cfg.fit.steps
        left, behind, over = list(windows), dict.fromkeys(todo.values(), 0), threading.Event()

        def look() -> None:
            while left:
                for key in behind:
                    if behind[key] < left[0].ends:
                        behind[key] = steps_behind(storage, key, steps)
                if min(behind.values()) < left[0].ends:
                    return
                window = left.pop(0)
                if window.index:
                    storage.delete_folder(window.key)
                harvesting.opened(window.index + 2)

        def watch() -> None:
            while not over.wait(WATCH_S if storage.is_local else WATCH_REMOTELY_S):
                try:
                    look()
                except (
                    Exception
                ) as e:  # in a thread nobody would hear of it, and both sides would wait for ever
                    harvesting.failed(e)
                    over.set()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        look()


class _Harvesting:
    """The harvest of some windows, in a thread of its own from birth; the board tells gangs and fit workers
    how far both sides are.

    Whatever goes wrong on this side stops the board, so that fit workers end, and is raised by `end` and not
    here.
    """

    def __init__(self, of: Windows, windows: Mapping[int, Corpus], board: BoardWriter) -> None:
        self._of, self._windows, self._board = of, windows, board
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="harvest of a stream")
        self._thread.start()

    def opened(self, index: int) -> None:
        """Windows up to this one may be harvested."""
        self._board.change(open=index)

    def failed(self, error: Exception) -> None:
        """Neither side is to wait for the other any more."""
        self._error = self._error or error
        self._board.stop()

    def end(self, within: float | None = None) -> None:
        """Waits for the harvest's end, at most `within` seconds; raises what went wrong."""
        self._thread.join(within)
        if self._error:
            raise (
                self._board.error or self._error
            )  # gangs that hear nothing of a board have an error of their own

    def _run(self) -> None:
        of, cfg = self._of, self._of.study.cfg
        try:
            for index in harvest_windows(of.study.context, cfg.harvest, of.kept, of.spool, self._windows):
                self._board.change(ready=index)
        except Exception as e:
            if not self._board.stopped:  # else it ends because the fit has
                self.failed(e)
