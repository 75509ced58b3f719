"""Real Ray Train: two workers, kill -9 of a worker and of the driver, and an object store."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest

from deltasae_ray.errors import DictionaryError, ShardError
from deltasae_ray.fit import checkpoint
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.fit.fitting import FitJob
from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import fit_points, fitted_points, keys_of
from deltasae_ray.fit.worker import fit_share
from deltasae_ray.sae.threads import cores, threads
from deltasae_ray.storage import Storage
from tests.fit.made import CFG, KEY, make_harvest, point

pytestmark = pytest.mark.slow
LONG = replace(CFG, steps=600)
POINTS = [point(layer=1), point(layer=1, d_sae=48)]
"""Of two shapes: they are fitted one after the other."""
STACK = [point(layer=1, seed=1), point(layer=3, seed=1), point("base", seed=1)]
"""Of one shape: they are fitted together."""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made)
    return made


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """POINTS and STACK fitted without Ray or disturbance, each by itself."""
    made = Storage(str(tmp_path_factory.mktemp("calm")))
    make_harvest(made)
    with threads(
        cores()
    ):  # as a worker that has the machine to itself; other counts may sum in another order
        for p in (*POINTS, *STACK):
            fit_share(FitJob(made, KEY, (p,), LONG), 0, 1, "cpu")
    return made


def manifests(storage: Storage, points: list[FitPoint] = POINTS) -> list[bytes]:
    return [
        storage.read_bytes(f"{key}/manifest.json") for key in keys_of(storage, KEY, points, LONG).values()
    ]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)


def train_workers(kind: str = "TrainWorker") -> list[psutil.Process]:
    """Of this process' Ray."""
    return processes(kind)


def processes(title: str) -> list[psutil.Process]:
    """Of this process' Ray, with this title."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(child.cmdline()):
                found.append(child)
    return found


def half_fitted(storage: Storage, which: FitPoint) -> bool:
    key = keys_of(storage, KEY, [which], LONG)[which]
    return checkpoint.steps_done(storage, key) > 0 and not storage.exists(f"{key}/manifest.json")


EVERYWHERE = [point(adapter, layer) for adapter in ("base", "r4") for layer in (1, 3)]
SILENT = point("late", 1)
"""Its rows are all equal."""


@dataclass(frozen=True)
class Fitted:
    """What a first run by two workers left behind, of EVERYWHERE and SILENT."""

    storage: Storage
    error: Exception
    cfg: FitConfig

    def files(self) -> dict[str, int]:
        """Every file of the dictionaries, and when it was written."""
        return {
            k: self.storage.fs.get_file_info(self.storage.path(k)).mtime_ns
            for k in self.storage.list("dictionaries")
        }


@pytest.fixture(scope="module")
def fitted(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Fitted:  # noqa: ARG001
    made, cfg = Storage(str(tmp_path_factory.mktemp("fitted"))), replace(CFG, workers=2)
    make_harvest(made)
    with pytest.raises(DictionaryError) as caught:
        fit_points(made, KEY, [SILENT, *EVERYWHERE], cfg, bar=False)
    return Fitted(made, caught.value, cfg)


def test_rows_that_cannot_be_fitted_are_a_typed_error_after_everything_else_is_fitted(fitted: Fitted) -> None:
    assert "late layer 1" in str(fitted.error)
    assert list(fitted_points(fitted.storage, KEY, [SILENT, *EVERYWHERE], fitted.cfg)) == EVERYWHERE


def test_two_workers_fit_all_points_and_a_second_run_fits_none(fitted: Fitted) -> None:
    before, started = fitted.files(), time.monotonic()
    again = fit_points(fitted.storage, KEY, EVERYWHERE, replace(fitted.cfg, workers=1), bar=False)
    assert time.monotonic() - started < 2
    assert [f.point for f in again] == EVERYWHERE and all(0 < f.metrics["fvu"] < 0.6 for f in again)
    assert before == fitted.files()


def test_two_workers_share_the_batches_of_one_dictionary(
    ray_cluster: None, storage: Storage, tmp_path: Path
) -> None:  # noqa: ARG001
    alone = Storage(str(tmp_path / "alone"))
    make_harvest(alone)
    fit_share(FitJob(alone, KEY, (point(),), CFG), 0, 1, "cpu")
    (together,) = fit_points(storage, KEY, [point()], replace(CFG, workers=2, layout="ddp"), bar=False)
    (expected,) = fitted_points(alone, KEY, [point()], CFG).values()
    assert (
        together.key == expected.key and together.digest != expected.digest
    )  # the same sums in another order
    assert together.metrics == pytest.approx(expected.metrics, rel=0.02)


def test_a_damaged_shard_is_a_typed_error(storage: Storage) -> None:
    """How such an error comes out of Ray Train: the fixture `fitted`."""
    shard = next(k for k in storage.list(KEY) if k.endswith(".parquet"))
    storage.write_bytes(shard, storage.read_bytes(shard)[:-200])
    points = tuple(point(a, 3) for a in ("base", "r4", "late"))
    with pytest.raises(ShardError, match=Path(shard).name):
        fit_share(FitJob(storage, KEY, points, CFG), 0, 1, "cpu")


DRIVER = """
import sys
from deltasae_ray.runtime.local import join
from deltasae_ray.fit.run import fit_points
from deltasae_ray.storage import Storage
from tests.fit.made import KEY
from tests.fit.test_run import LONG, POINTS, STACK

join(address=sys.argv[1], log_to_driver=False)
fit_points(Storage(sys.argv[2]), KEY, [*STACK, *POINTS], LONG, bar=False)
"""


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_then_a_killed_driver_refit_nothing_and_end_as_each_dictionary_alone(
    storage: Storage, calm: Storage
) -> None:
    """The worker dies while a stack is fitted, the driver while a later dictionary is."""
    import ray

    keys = keys_of(storage, KEY, POINTS, LONG)
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address, storage.root], cwd=Path(__file__).parents[2]
    )
    try:
        wait_for(
            lambda: half_fitted(storage, STACK[1]) or driver.poll() is not None, "checkpoint of the stack"
        )
        (worker,) = train_workers()
        worker.kill()
        wait_for(
            lambda: half_fitted(storage, POINTS[1]) or driver.poll() is not None,
            "checkpoint of the last dictionary",
        )
        assert driver.poll() is None and storage.exists(f"{keys[POINTS[0]]}/manifest.json")
    finally:
        driver.kill()
        driver.wait()
    # What Ray takes from a driver that is gone, it may take a moment later: a worker that still writes is not
    # what comes next.
    wait_for(
        lambda: not train_workers() and not train_workers("TrainController"),
        "end of the dead driver's workers and their controller",
    )
    left = checkpoint.steps_done(storage, keys[POINTS[1]])
    assert 0 < left < LONG.steps and worker.pid not in psutil.pids()
    done = [*STACK, POINTS[0]]
    written = [
        storage.fs.get_file_info(storage.path(f"{key}/manifest.json")).mtime_ns
        for key in keys_of(storage, KEY, done, LONG).values()
    ]
    fit_points(storage, KEY, [*STACK, *POINTS], LONG, bar=False)
    again = [
        storage.fs.get_file_info(storage.path(f"{key}/manifest.json")).mtime_ns
        for key in keys_of(storage, KEY, done, LONG).values()
    ]
    assert again == written
    assert manifests(storage, [*STACK, *POINTS]) == manifests(calm, [*STACK, *POINTS])


@pytest.mark.prove
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("title", ["TrainWorker", "TrainController"])
def test_a_stopped_process_of_a_fit_is_told_and_the_fit_ends_as_a_calm_one(
    title: str,
    storage: Storage,
    calm: Storage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("deltasae_ray.heartbeat.FLOOR_S", 3.0)

    def stop() -> None:
        wait_for(lambda: half_fitted(storage, STACK[1]), "checkpoint of the stack")
        for process in processes(title):
            process.suspend()

    thread = threading.Thread(target=stop)
    thread.start()
    fit_points(storage, KEY, [*STACK, *POINTS], LONG, bar=False)
    thread.join()
    assert manifests(storage, [*STACK, *POINTS]) == manifests(calm, [*STACK, *POINTS])
    assert any("is stopped (SIGSTOP) since" in record.getMessage() for record in caplog.records), (
        "nobody was told"
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = ":".join(map(str, server.get_host_and_port()))
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True).create_dir(
        "fits"
    )
    yield Storage(f"s3://fits/study?endpoint_override={endpoint}&scheme=http")
    server.stop()


def test_dictionaries_and_checkpoints_live_in_an_object_store(bucket: Storage, storage: Storage) -> None:
    make_harvest(bucket)
    for root in (bucket, storage):
        fit_share(FitJob(root, KEY, (point(),), CFG), 0, 1, "cpu")
    assert [k for k in bucket.list("dictionaries")] == storage.list("dictionaries")
    assert manifests_of(bucket) == manifests_of(storage)


def manifests_of(storage: Storage) -> list[bytes]:
    return [storage.read_bytes(k) for k in storage.list("dictionaries") if k.endswith("manifest.json")]
