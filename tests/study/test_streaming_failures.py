"""What goes wrong in a stream ends it with its own error, in bounded time, and the next run ends as if
nothing had been."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.errors import DeltaSaeError, PrecisionError, ResourceError, StorageError
from deltasae_ray.fit import checkpoint
from deltasae_ray.harvest import windows
from deltasae_ray.harvest.worker import HarvestWorker
from deltasae_ray.shards import spool
from deltasae_ray.storage import Storage
from deltasae_ray.study import streaming
from deltasae_ray.study.streaming import Windows, fit_stream
from tests.object_store import s3_root, s3_server
from tests.study.streamed import SMALL, config, digests, fit_here, study_words, without_ray

PATIENCE = 6.0
"""Seconds."""
FULL = StorageError("the disk is full")


@pytest.fixture(scope="module")
def calm(
    tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """A root with what stays of the stream, and the dictionaries of a study that nothing disturbs."""
    root, begun = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("begun") / "root"
    with pytest.MonkeyPatch.context() as patch:
        _, _, way = without_ray(
            config(study_words(tiny_model, root, tiny_adapters[0], *SMALL)), patch, side_by_side=True
        )
        shutil.copytree(root, begun)
        way.fit()
    assert len(way.plan) >= 4
    return begun, digests(way)


@pytest.fixture
def words(
    calm: tuple[Path, dict[str, str]], tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> list[str]:
    shutil.copytree(calm[0], tmp_path / "root")
    return study_words(tiny_model, tmp_path / "root", tiny_adapters[0], *SMALL)


def lose_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a silent board is what is tested: on a busy machine any thread may be held up for
    seconds."""
    monkeypatch.setattr(spool, "BEAT_S", 0.3)
    monkeypatch.setattr(spool, "SILENT_S", PATIENCE)
    monkeypatch.setattr(streaming, "SILENT_S", PATIENCE)


def raising(function: Callable, error: Exception, when: Callable[..., bool]) -> Callable:
    """The function, which raises `error` whenever `when` says so of its arguments."""

    def broken(*args: Any, **words: Any) -> Any:
        if when(*args, **words):
            raise error
        return function(*args, **words)

    return broken


def in_harvest(*_: Any, **__: Any) -> bool:
    return threading.current_thread().name == "harvest of a stream"


def board_of_window(index: int) -> Callable[..., bool]:
    """Of `Storage.write_bytes`: whether it is a board that says that this window is ready, or a later one."""
    reached = threading.Event()

    def when(_: Storage, key: str, data: bytes) -> bool:
        if key.endswith("board.json") and any(f'"ready": {i},'.encode() in data for i in range(index, 99)):
            reached.set()
        return reached.is_set() and key.endswith("board.json")

    return when


Break = Callable[[pytest.MonkeyPatch, Windows], None]
NAN = PrecisionError("NaN in window 3")
FAILURES: dict[str, tuple[Break, type[DeltaSaeError], str]] = {
    "the harvest of a window": (
        lambda patch, way: patch.setattr(HarvestWorker, "write", raising(HarvestWorker.write, NAN, lambda *a,
            **_: a[3] == way.plan[2].key)),
        PrecisionError, "NaN in window 3",
    ),
    "the record of a harvested window": (
        lambda patch, _: patch.setattr(windows, "write_units", raising(windows.write_units, FULL, lambda _,
            key, __: "000002" in key)),
        StorageError, "the disk is full",
    ),
    "the board, from the third window on": (
        lambda patch, _: patch.setattr(Storage, "write_bytes", raising(Storage.write_bytes, FULL,
            board_of_window(2))),
        StorageError, "the disk is full",
    ),
    "the gangs' look at the board": (
        lambda patch, _: patch.setattr(spool, "read_board", raising(spool.read_board, FULL, in_harvest)),
        StorageError, "the disk is full",
    ),
    "the driver's look at the dictionaries": (
        lambda patch, _: patch.setattr(
            streaming, "steps_behind",
            raising(streaming.steps_behind, FULL,
                lambda *_: threading.current_thread() is not threading.main_thread()),
        ),
        StorageError, "the disk is full",
    ),
    "the deletion of a window": (
        lambda patch, way: patch.setattr(
            Storage, "delete_folder", raising(Storage.delete_folder, FULL, lambda _,
                key: key == way.plan[1].key)
        ),
        StorageError, "the disk is full",
    ),
    "a checkpoint in the third window": (
        lambda patch, way: patch.setattr(
            checkpoint, "write", raising(checkpoint.write, FULL,
                lambda *a: a[2]["steps_done"] > way.plan[2].begins)
        ),
        StorageError, "the disk is full",
    ),
}  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.parametrize("place", FAILURES)
def test_a_failure_anywhere_ends_the_study_with_its_error_in_bounded_time_and_the_next_run_ends_as_a_calm_one(
    place: str, words: list[str], calm: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, made, way = without_ray(config(words), monkeypatch, side_by_side=True)
    broken, kind, said = FAILURES[place]
    with monkeypatch.context() as patch:
        broken(patch, way)
        if place.startswith("the board"):
            lose_patience(patch)
        began = time.monotonic()
        with pytest.raises(kind, match=said):
            fit_stream(study, made)
        took = time.monotonic() - began
        for thread in threading.enumerate():
            if thread.name == "harvest of a stream":
                thread.join(2 * PATIENCE)
                assert not thread.is_alive(), "the harvest waits for a fit that has ended"
    assert took < 60, f"{took:.0f} s"
    assert way.needed() or place == "the deletion of a window"
    fit_stream(study, made)
    assert digests(way) == calm[1] and way.needed() == []
    assert study.storage.list(way.spool) == []


def test_workers_whose_driver_was_held_up_end_and_the_driver_says_so(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, made, _ = without_ray(config(words), monkeypatch, side_by_side=True)
    lose_patience(monkeypatch)
    monkeypatch.setattr(streaming.BoardWriter, "change", lambda *_, **__: None)
    with pytest.raises(ResourceError, match="window [23] of the stream was (given up|not harvested).*driver"):
        fit_stream(study, made)


def test_a_board_that_fails_for_a_moment_changes_nothing(
    words: list[str], calm: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, made, way = without_ray(config(words), monkeypatch, side_by_side=True)
    writings = count()
    monkeypatch.setattr(spool, "BEAT_S", 0.3)
    monkeypatch.setattr(
        Storage,
        "write_bytes",
        raising(
            Storage.write_bytes, FULL, lambda *a: a[1].endswith("board.json") and next(writings) in (2, 3, 5)
        ),
    )
    fit_stream(study, made)
    assert digests(way) == calm[1] and next(writings) > 5


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.mark.slow
def test_a_stream_on_an_object_store_that_is_killed_and_continued_has_the_dictionaries_of_a_calm_one(
    endpoint: str, calm: tuple[Path, dict[str, str]], tiny_model: Path, tiny_adapters: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(spool, "LOOK_REMOTELY_S", 0.1)
    monkeypatch.setattr(streaming, "WATCH_REMOTELY_S", 0.3)
    root, tracking = (
        s3_root(endpoint, "a-stream", monkeypatch),
        "tracking.uri=http://127.0.0.1:9",
    )  # no study is tracked here
    command = study_words(tiny_model, Path("x"), tiny_adapters[0], *SMALL, tracking)
    study, made, way = without_ray(config([*command, f"storage.root={root}"]), monkeypatch, side_by_side=True)

    def killed(job: Any) -> None:
        with monkeypatch.context() as patch:
            at = way.plan[2].begins + 5
            patch.setattr(
                checkpoint,
                "write",
                raising(checkpoint.write, KeyboardInterrupt(), lambda *a: a[2]["steps_done"] > at),
            )  # type: ignore[arg-type]
            fit_here(job)

    monkeypatch.setattr(streaming, "fit_job", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_stream(study, made)
    assert way.needed()[0] in (1, 2) and study.storage.list(way.spool)
    monkeypatch.setattr(streaming, "fit_job", fit_here)
    fit_stream(study, made)
    assert digests(way) == calm[1] and study.storage.list(way.spool) == []


def test_what_an_abandoned_study_left_is_removed_by_another_and_what_is_worked_on_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, own = Storage(str(tmp_path)), spool.spool_key("harvest/own")
    alive, gone, cut_off = (spool.spool_key(f"harvest/{name}") for name in ("alive", "gone", "cut off"))
    for key in (own, alive, gone):
        spool.write_board(storage, key, spool.Board(beat=1))
    for key in (own, alive, gone, cut_off):
        storage.write_bytes(f"{spool.window_key(key, 1)}/x.parquet", b"x")
    monkeypatch.setattr(spool, "SILENT_S", 0.2)
    others = spool.OtherSpools(storage, own)
    assert others.remove_abandoned() == [], "nobody was silent for long enough yet"
    time.sleep(0.3)
    spool.write_board(storage, alive, spool.Board(beat=2))
    born = spool.spool_key("harvest/born meanwhile")
    spool.write_board(storage, born, spool.Board(beat=1))
    assert others.remove_abandoned() == sorted([gone, cut_off])
    assert {name.split("/")[1] for name in storage.list("spool")} == {
        key.split("/")[1] for key in (own, alive, born)
    }
