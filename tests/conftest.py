"""Fixtures: one Ray for each test process, and tiny models with adapters. Long files start first, so that
none runs alone at the end."""

import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
# A bare ray.init() joins whatever cluster wrote its address last on this machine, which may be another test
# process's.
os.environ.setdefault("RAY_ADDRESS", "local")
# Test processes share the cores: threads that spin while they wait for each other take them from whoever has
# work to do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's log monitor lists all log files ten times a second, which took half a minute of processors from every
# Ray that lived for a quarter of an hour.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "5")
# A Ray starts a process for each of its CPUs before any is asked for; actors with an environment of their
# own, as most here are, use none.
os.environ.setdefault("RAY_enable_worker_prestart", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent / "quick"), os.environ.get("PYTHONPATH")])
)
os.environ["DELTASAE_TESTS"] = (
    uuid.uuid4().hex
)  # on all that this test process starts, and all that those start
gc.set_threshold(100_000, 50, 50)  # as tests/quick has it in the processes that this one starts


LONGEST = ("study/test_sweep.py", "harvest/test_harvest.py", "adapt/test_run.py", "fit/test_run.py")
"""Files that take minutes, the longest first: one that began last would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with slow tests; within a file the order stays. What needs a Ray is
    slow."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("demo")}
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path, len(place)), item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def _nothing_lives_on() -> Iterator[None]:
    """Fails where a process that these tests started has lost its parent and still runs a minute after the
    last of them."""
    from tests.processes import end_orphans

    yield
    orphans = end_orphans("DELTASAE_TESTS", os.environ["DELTASAE_TESTS"], within_s=60)
    assert not orphans, f"ended by id, as nobody else would have: {orphans}"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of two CPUs for the test process, on loopback, without a dashboard."""
    import ray

    from deltasae_ray.runtime.local import start_local

    if not ray.is_initialized():
        start_local(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    from tests.tiny import save_model

    return save_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Adapters of rank 2 and 4 that change the tiny Llama."""
    from tests.tiny import save_adapter

    folder = tmp_path_factory.mktemp("adapters")
    return save_adapter(folder / "r2", tiny_model, rank=2, seed=1), save_adapter(
        folder / "r4", tiny_model, rank=4, seed=2
    )
