"""What a dictionary is fitted to, window by window: which steps are taken on which rows.

A stored harvest is one window. Of a stream, a dictionary's mean, scale and start come from the first window,
which stays stored; a worker whose shares do not fit its memory together reads it again with each later one.
"""

import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from deltasae_ray.fit.rows import Rows, Tokens, usable_rows
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.shards.spool import window_folder
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
        windows.append(Window(index, window_folder(harvest_key, spool, index), begins, ends))
        passed += count
    return tuple(windows)


class Resident:
    """The rows that stay, by source and hookpoint: a worker whose whole share is held at once reads them once
    and not per window."""

    def __init__(self, kept: ShardSet) -> None:
        self.shards = kept
        self._rows: dict[tuple[str, int], tuple[bool, Rows]] = {}

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens.read(self.shards)

    def keep(self, reads: Set[tuple[str, int]]) -> None:
        """Frees all others, before these are read."""
        self._rows = {read: held for read, held in self._rows.items() if read in reads}

    def rows(self, adapter: str, layer: int, *, evaluated: bool) -> Rows:
        """Reads the rows of the first window, with the evaluation rows where they are needed."""
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

    window: Window
    first: Rows
    """Rows of the first window, which decide mean, scale and start, with the evaluation rows."""
    own: Rows
    """Rows of the window."""


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
        """Bytes of the rows of one read."""
        both = (self.first.tokens, self.tokens) if self.window.index else (self.tokens,)
        return sum(tokens.num_bytes(self.shards.d_model) for tokens in both)

    def rows(self, adapter: str, layer: int) -> WindowRows:
        """Raises PrecisionError, DictionaryError as `usable_rows` does."""
        first = self.first.rows(adapter, layer, evaluated=self.evaluated)
        if not self.window.index:
            return WindowRows(self.window, first, first)
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
        dropped_rows = {**first.dropped, "fit": dropped}
        return WindowRows(self.window, first, Rows(fit, docs, first.evaluation, dropped_rows, source))
