"""How far a stage has come: one live display on a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

FIRST_LINE_S, LONGEST_S = 60.0, 3600.0
"""Seconds until a log has a line of a stage again; each wait is twice the last, an hour at most."""


class Bar:
    """The progress of one piece of work, on the driver; use it as a context.

    Args:
        total: units in all.
        name: what is being done, such as "harvest".
        unit: what is counted, such as "tok".
        shown: False shows nothing.
    """

    def __init__(self, total: int, name: str, unit: str, *, shown: bool = True) -> None:
        self.total, self.name, self.unit, self.done = total, name, unit, 0
        self._shown, self._note, self._start = shown, "", time.monotonic()
        self._lines: _Lines | _Live | None = None

    def __enter__(self) -> Self:
        if self._shown:
            self._lines = _Live(self) if sys.stderr.isatty() else _Lines(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.end()

    def update(self, count: int = 1) -> None:
        """Counts more units as done."""
        self.set(self.done + count)

    def set(self, done: int) -> None:
        """Says how many units are done in all."""
        self.done = done
        if self._lines is not None:
            self._lines.show()

    def note(self, text: str) -> None:
        """Says something beside the figures, such as a loss."""
        self._note = text
        if self._lines is not None:
            self._lines.show()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def __str__(self) -> str:
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        text = f"{self.name}: {self.done:,} of {self.total:,} {self.unit}{share}"
        if self.done and self.seconds > 1:
            text += f", {rate:,.1f} {self.unit}/s"
        if 0 < self.done < self.total:
            text += f", about {(self.total - self.done) / rate / 60:,.0f} min left"
        return f"{text}; {self._note}" if self._note else text


class _Lines:
    """Plain lines: at the start, ever more seldom in between, at the end."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._wait, self._next = bar, FIRST_LINE_S, FIRST_LINE_S
        self._print(str(bar))

    def show(self) -> None:
        if self._bar.seconds >= self._next:
            self._print(str(self._bar))
            self._wait = min(2 * self._wait, LONGEST_S)
            self._next = self._bar.seconds + self._wait

    def end(self) -> None:
        self._print(f"{self._bar} in {self._bar.seconds / 60:.1f} min")

    def _print(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Live:
    """A task of the one display that all open bars share."""

    _lock = threading.Lock()
    shared: Progress | None = None
    _open = 0

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        with _Live._lock:
            if _Live.shared is None:
                _Live.shared = Progress(
                    TextColumn("{task.description}", markup=False),
                    BarColumn(),
                    _Figures(),
                    TimeRemainingColumn(),
                    console=Console(file=sys.stderr),
                )
                _Live.shared.start()
            _Live._open += 1
            self._display = _Live.shared
            self._task = self._display.add_task(bar.name, total=bar.total, figures="")

    def show(self) -> None:
        figures = str(self._bar).partition(": ")[2].partition(", about")[0]
        self._display.update(self._task, completed=self._bar.done, figures=figures)

    def end(self) -> None:
        self.show()
        with _Live._lock:
            _Live._open -= 1
            if not _Live._open:
                self._display.stop()
                _Live.shared = None


class _Figures(ProgressColumn):
    """Figures and note of a bar, as text that is no markup."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("figures", "")))
