"""What is written down of a search while it runs, so that one whose driver died goes on. JSON below the
storage root, never a pickle.

Ray Tune's own state of an experiment is pickled, and whoever can write to it can run code in the next driver.
So Tune keeps its files in a folder of this process, and a search that is begun again is told from here which
candidates there were and how each of them ended.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deltasae_ray.errors import StorageError
from deltasae_ray.storage import Storage


@dataclass(frozen=True)
class Ended:
    """The last report of a candidate that goes no further."""

    steps: int
    fvu: float
    finished: int
    """1 if it was fitted to the end, 0 if the scheduler stopped it."""


class Candidates:
    """The candidates of one search in the order in which they began, in one file."""

    def __init__(self, storage: Storage, key: str, names: Sequence[str]) -> None:
        """
        Args:
            names: of the settings that are searched; a record of others is of another search.

        Raises:
            StorageError: the file is no record of candidates.
        """
        self._storage, self._key, self._names = storage, key, tuple(names)
        self._rows: list[dict[str, Any]] = self._read() if storage.exists(key) else []

    def _read(self) -> list[dict[str, Any]]:
        rows = self._storage.read_json(self._key)["candidates"]
        if not isinstance(rows, list) or not all(self._is_row(row) for row in rows):
            raise StorageError(
                f"{self._storage.path(self._key)} lists no candidates of a search: delete it, and the search"
                " begins again"
            )
        return [dict(row) for row in rows]

    def _is_row(self, row: Any) -> bool:
        settings, ended = (row.get("settings"), row.get("ended")) if isinstance(row, dict) else (None, None)
        if (
            not isinstance(settings, dict)
            or set(settings) != set(self._names)
            or not all(map(_is_number, settings.values()))
        ):
            return False
        fields = {"steps", "fvu", "finished"}
        return (
            ended is None
            or isinstance(ended, dict)
            and set(ended) == fields
            and all(map(_is_number, ended.values()))
        )

    @property
    def settings(self) -> list[dict[str, float]]:
        """Settings of every candidate, in order."""
        return [dict(row["settings"]) for row in self._rows]

    @property
    def ended(self) -> list[tuple[dict[str, float], Ended]]:
        """The candidates that go no further, with their last report."""
        return [(dict(row["settings"]), Ended(**row["ended"])) for row in self._rows if row["ended"]]

    def begin(self, settings: dict[str, Any]) -> None:
        """Writes down a candidate; one that is there stays as it is."""
        if settings not in self.settings:
            self._rows.append({"settings": settings, "ended": None})
            self._write()

    def end(self, settings: dict[str, Any], ended: Ended) -> None:
        """Writes down how a candidate ended."""
        for row in self._rows:
            if row["settings"] == settings and row["ended"] != vars(ended):
                row["ended"] = vars(ended)
                self._write()

    def _write(self) -> None:
        self._storage.write_json(self._key, {"candidates": self._rows})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def watching(candidates: Candidates, names: Sequence[str]) -> Any:
    """A callback of Ray Tune, in the driver, that writes candidates down as they begin and end."""
    from ray.tune import Callback

    class Watching(Callback):
        def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:  # noqa: ARG002
            candidates.begin({name: trial.config[name] for name in names})

        def on_trial_result(
            self,
            iteration: int,  # noqa: ARG002
            trials: list,  # noqa: ARG002
            trial: Any,
            result: dict,
            **info: Any,  # noqa: ARG002
        ) -> None:
            if result.get("done") or result.get("finished"):
                ended = Ended(int(result["steps"]), float(result["fvu"]), int(result["finished"]))
                candidates.end({name: trial.config[name] for name in names}, ended)

    return Watching()


@contextmanager
def tune_folder() -> Iterator[str]:
    """A new folder of this user's alone for what Ray Tune writes in the driver; gone at the end. Nothing in
    it is needed by a later run."""
    with tempfile.TemporaryDirectory(prefix="deltasae-tune-", ignore_cleanup_errors=True) as folder:
        yield folder
