"""A whole sweep on each kind of store ends, with the dictionaries that a folder would hold."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deltasae_ray.storage import Storage
from tests.browser.servers import mlflow_server
from tests.object_store import gs_root, gs_server, s3_root, s3_server
from tests.study.flaky import flaky
from tests.study.submitted import REPOSITORY
from tests.study.words import LEAN, words

pytestmark = pytest.mark.slow


def sweep(model: Path, root: str, *more: str) -> str:
    """The output of a whole sweep, which has to end well."""
    command = [sys.executable, "jobs/sweep.py", *words(model, root, *LEAN, "storage.deltas=stored", *more)]
    env = {**os.environ, "RAY_ADDRESS": "local", "DELTASAE_TRACKING_URI": "", "DELTASAE_STORAGE_ROOT": ""}
    ended = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    return ended.stdout


def dictionaries(root: str) -> dict[str, bytes]:
    """The weights of every dictionary, by its folder."""
    storage = Storage(root)
    return {
        key: storage.read_bytes(key)
        for key in storage.list("dictionaries")
        if key.endswith("sae_weights.safetensors")
    }


@contextmanager
def store(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The root of a study on a store of this kind, which is empty."""
    if kind == "gs":
        with gs_server() as endpoint:
            yield gs_root(endpoint, "sweeps")
        return
    with s3_server() as endpoint:
        if kind == "s3 over http":
            yield s3_root(endpoint, "sweeps", monkeypatch)
        elif kind == "s3 by AWS_ENDPOINT_URL":
            s3_root(endpoint, "sweeps", monkeypatch)
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
            yield "s3://sweeps/some/study"
        else:
            s3_root(endpoint, "sweeps", monkeypatch)
            with flaky(endpoint) as (way, seen):
                yield f"s3://sweeps/some/study?endpoint_override={way}&scheme=http"
                assert seen["refused"] > 10 and seen["late"] > 10, seen


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("s3 over http", marks=pytest.mark.prove),
        pytest.param("s3 by AWS_ENDPOINT_URL", marks=pytest.mark.prove),
        pytest.param("s3 that refuses and is slow", marks=pytest.mark.prove),
        pytest.param("gs", marks=pytest.mark.prove),
    ],
)
def test_a_sweep_on_a_store_makes_the_dictionaries_of_one_in_a_folder(
    kind: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as server, store(kind, monkeypatch) as root:
        said = sweep(tiny_model, root, f"tracking.uri={server}")
        made = dictionaries(root)
        assert "Report: " in said and len(made) >= 4
        assert Storage(root).exists("report.html") and Storage(root).exists("divergence.parquet")
        if request.node.get_closest_marker("prove"):  # the folder's sweep takes half a minute more
            sweep(tiny_model, str(tmp_path / "root"))
            assert made == dictionaries(str(tmp_path / "root"))
