"""Two drivers on one root: the second is refused while the first lives, and only then."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deltasae_ray.cli import parse
from deltasae_ray.errors import CorpusError, LeaseError
from deltasae_ray.runtime.lease import BEAT_S, STALE_S, Claim, Lease, lease
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import SHORTHAND, StudyConfig
from deltasae_ray.study.run import run
from tests.object_store import s3_root, s3_server
from tests.study.submitted import REPOSITORY
from tests.study.words import words

ELSEWHERE = replace(Claim.of_this_process("jobs/fit.py"), boot="another", host="far-away", pid=4321)


@contextmanager
def holder(root: str) -> Iterator[subprocess.Popen]:
    """A driver in a process of its own, which holds the root."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.holder", root],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout and process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def claims(root: Path) -> list[Path]:
    return sorted(root.glob("lease-*"))


def put(root: Path, claim: Claim, *, silent_s: float = 0.0) -> Path:
    """A claim whose owner gave its last sign of life so long ago."""
    root.mkdir(exist_ok=True)
    path = root / "lease-0123.json"
    path.write_text(json.dumps(asdict(claim)))
    os.utime(path, (time.time() - silent_s,) * 2)
    return path


@pytest.mark.parametrize("stage", ["adapt", "sweep"])
def test_a_second_driver_is_refused_before_it_looks_at_model_or_text(stage: str, tmp_path: Path) -> None:
    cfg = parse(StudyConfig, words(Path("/no/model"), tmp_path), shorthand=SHORTHAND, description="")
    with holder(str(tmp_path)) as first:
        (claim,) = claims(tmp_path)
        with pytest.raises(LeaseError) as refused:
            run(stage, cfg)
        said = str(refused.value)
        assert all(
            part in said
            for part in (
                str(claim),
                "jobs/sweep.py",
                f"pid {first.pid} on",
                f"kill {first.pid}",
                "another storage.root",
            )
        )
        assert claims(tmp_path) == [claim], "who is refused leaves nothing behind"


def test_after_a_kill_the_next_driver_goes_on_at_once(tmp_path: Path) -> None:
    with holder(str(tmp_path)) as first:
        first.send_signal(signal.SIGKILL)
        while (
            b"State:\tZ" not in Path(f"/proc/{first.pid}/status").read_bytes()
        ):  # dead, though nobody has asked for its exit code
            time.sleep(0.01)
        before = time.monotonic()
        with lease(Storage(str(tmp_path)), "jobs/sweep.py"):
            assert time.monotonic() - before < 0.9, (
                "no second is waited for a process that is seen to be dead"
            )
            assert len(claims(tmp_path)) == 1
    assert claims(tmp_path) == []


@pytest.mark.parametrize("error", [None, CorpusError, KeyboardInterrupt, SystemExit])
def test_a_lease_ends_with_the_study_however_that_ends(
    error: type[BaseException] | None, tmp_path: Path
) -> None:
    with suppress(CorpusError, KeyboardInterrupt, SystemExit), lease(Storage(str(tmp_path)), "jobs/fit.py"):
        assert len(claims(tmp_path)) == 1
        if error:
            raise error
    assert claims(tmp_path) == []


def test_a_pid_that_was_given_out_again_does_not_hold_a_root(tmp_path: Path) -> None:
    mine = Claim.of_this_process("jobs/fit.py")
    put(tmp_path, replace(mine, started=mine.started - 1))
    with lease(Storage(str(tmp_path)), "jobs/fit.py"):
        assert len(claims(tmp_path)) == 1


@pytest.mark.parametrize(
    "other", [ELSEWHERE, replace(ELSEWHERE, boot=Claim.of_this_process("").boot, namespace="pid:[1]")]
)
def test_an_owner_elsewhere_holds_a_root_once_it_gives_a_sign_of_life(
    other: Claim, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path, other, silent_s=STALE_S - 50)
    once_watched(caplog, lambda: os.utime(path))
    with (
        pytest.raises(LeaseError, match=r"pid 4321 on far-away.*end it there \(\d+ s ago"),
        lease(Storage(str(tmp_path)), "x", beat_s=0.2),
    ):
        pass
    assert claims(tmp_path) == [path]
    assert re.search(r"silent for [789]\d s.*this driver goes on in [2345]\d s", caplog.text)


@pytest.mark.parametrize("silent_s", [STALE_S - 2, STALE_S + 2])
@pytest.mark.parametrize("known", [True, False])
def test_an_owner_elsewhere_that_gives_no_sign_of_life_is_outlived(
    known: bool, silent_s: float, tmp_path: Path
) -> None:
    path = put(tmp_path, ELSEWHERE, silent_s=silent_s)
    if not known:
        path.write_text('{"version": 2}')
        os.utime(path, (time.time() - silent_s,) * 2)
    before = time.monotonic()
    with lease(Storage(str(tmp_path)), "jobs/fit.py", beat_s=0.2):
        assert time.monotonic() - before > STALE_S - silent_s
        assert len(claims(tmp_path)) == 1 and not path.exists()


def test_an_owner_that_wakes_up_while_it_is_taken_for_dead_keeps_its_root(tmp_path: Path) -> None:
    path = put(tmp_path, ELSEWHERE, silent_s=STALE_S + 5)

    def wakes_up() -> None:
        while path.exists():
            time.sleep(0.001)
        put(tmp_path, ELSEWHERE)
        time.sleep(2)
        put(tmp_path, ELSEWHERE)

    thread = threading.Thread(target=wakes_up)
    thread.start()
    with pytest.raises(LeaseError, match="far-away"), lease(Storage(str(tmp_path)), "jobs/fit.py", beat_s=4):
        pass
    thread.join()


def test_an_owner_gives_signs_of_life_and_sees_when_its_root_is_taken_over(tmp_path: Path) -> None:
    assert 3 * BEAT_S < STALE_S
    with lease(Storage(str(tmp_path)), "jobs/fit.py", beat_s=0.02) as held:
        (claim,) = claims(tmp_path)
        os.utime(claim, (0, 0))
        until(lambda: claim.stat().st_mtime > 0)
        held.check()
        until(lambda: loses(held))
        with pytest.raises(
            LeaseError, match=f"{claim.name}.*another driver took over.*start the same command again"
        ):
            held.check()
        assert claims(tmp_path) == [], "the root is another's now"


def loses(held: Lease) -> bool:
    """Takes the claim away, and looks whether its owner has seen so. A sign of life that was on its way may
    bring it back once."""
    held._storage.delete_file(held.key)
    try:
        held.check()
    except LeaseError:
        return True
    return False


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def together(root: Path, drivers: int) -> list[int]:
    """Drivers that begin at once: how many held the root whenever one of them had got it."""
    inside, found, begin = [], [], threading.Barrier(drivers)

    def drive() -> None:
        begin.wait()
        with suppress(LeaseError), lease(Storage(str(root)), "jobs/fit.py"):
            inside.append(1)
            found.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=drive) for _ in range(drivers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_of_drivers_that_begin_at_once_never_two_go_on_and_of_two_one_does(tmp_path: Path) -> None:
    assert set(together(tmp_path, 6)) <= {1}
    assert any(together(tmp_path, 2) for _ in range(3)), "both withdraw each time"
    assert claims(tmp_path) == []


def once_watched(caplog: pytest.LogCaptureFixture, act: Callable[[], object]) -> None:
    """Does so after a driver has said that it waits for a sign of life: one that came before, or within the
    same second of an object store's clock, would be no sign."""

    def wait() -> None:
        until(lambda: "waiting for a sign of life" in caplog.text)
        time.sleep(1.1)
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.slow
def test_a_lease_on_an_object_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_server() as endpoint:
        root = s3_root(endpoint, "leased", monkeypatch)
        storage = Storage(root)
        with holder(root) as first:
            with (
                pytest.raises(LeaseError, match=rf"leased/some/study/lease-.*pid {first.pid} on"),
                lease(storage, "jobs/fit.py"),
            ):
                pass
            first.kill()
            first.wait()
            with lease(storage, "jobs/fit.py", beat_s=0.02) as held:
                time.sleep(0.2)
                held.check()
                assert len(storage.list("")) == 1
                until(lambda: loses(held))
        storage.write_json("lease-0123.json", asdict(ELSEWHERE))
        once_watched(caplog, lambda: storage.write_json("lease-0123.json", asdict(ELSEWHERE)))
        with pytest.raises(LeaseError, match="far-away"), lease(storage, "jobs/fit.py", beat_s=0.2):
            pass
        assert storage.list("") == ["lease-0123.json"]
