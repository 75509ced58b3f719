"""Every start and every checkpoint of a dictionary, as the processes of a killed and resumed study wrote them
down.

A driver gives `setup` to Ray as the hook of its worker processes; the file that LEDGER names gets a line per
event, whole even when the next moment kills the process.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LEDGER = "DELTASAE_TEST_LEDGER"


def setup() -> None:
    """Makes this process write its starts and checkpoints down."""
    from deltasae_ray.fit import checkpoint, fitting

    init, write = fitting.Fitting.__init__, checkpoint.write

    def noted_init(self: fitting.Fitting, *args: Any, **words: Any) -> None:
        init(self, *args, **words)
        _note(self.key, "starts" if self.writes else "joins", self.trainer.steps_done)

    def noted_write(storage: Any, key: str, state: dict[str, Any]) -> None:
        write(storage, key, state)
        _note(key, "keeps", state["steps_done"])

    fitting.Fitting.__init__ = noted_init  # type: ignore[method-assign]
    checkpoint.write = noted_write


def _note(key: str, event: str, steps: int) -> None:
    with open(os.environ[LEDGER], "a") as file:
        file.write(f"{key} {event} {steps} {os.getpid()}\n")


@dataclass(frozen=True)
class Event:
    """One line."""

    key: str
    """Folder of the dictionary."""
    what: Literal["starts", "joins", "keeps"]
    """starts: begins or continues, and is the one that writes; joins: the same as a peer that does not;
    keeps: has written a checkpoint."""
    steps: int
    pid: int


def events(path: Path) -> list[Event]:
    """All lines in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Event(key, what, int(steps), int(pid)) for key, what, steps, pid in map(str.split, lines)]


def started_over(happened: Sequence[Event]) -> list[Event]:
    """Starts with fewer steps than a checkpoint of the same dictionary had already kept."""
    kept: dict[str, int] = defaultdict(int)
    bad = []
    for event in happened:
        if event.what == "keeps":
            kept[event.key] = max(kept[event.key], event.steps)
        elif event.steps < kept[event.key]:
            bad.append(event)
    return bad
