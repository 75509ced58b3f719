"""The MLflow server of infra/mlflow/compose.yaml, run for real: the same flags, a real Postgres, artifacts on
an S3 server (moto's, in place of the compose file's; same protocol). The containers themselves need a Docker
engine and are not started here.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "infra/mlflow/compose.yaml").read_text())
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "of-this-test-only"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BINARIES, reason="no Postgres server here: install the package `postgresql`"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2)
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{url} did not answer (exit code {process.poll()})")


def status(url: str, host: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=10).status
    except urllib.error.HTTPError as e:
        return e.code


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Address of a database `mlflow` on a loopback port; Postgres refuses to run as root, so root lends it
    another user."""
    binaries = BINARIES[-1].parent
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="deltasae-postgres-"))
    if as_user:
        shutil.chown(folder, "postgres")
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    port = free_port()

    def run(*words: object) -> None:
        subprocess.run(
            [*as_user, *map(str, words)], check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120
        )

    data = folder / "data"
    run(
        binaries / "initdb",
        "--pgdata",
        data,
        "--username=mlflow",
        "--auth=scram-sha-256",
        f"--pwfile={folder}/password",
        "--no-sync",
    )
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    run(
        binaries / "pg_ctl",
        "--pgdata",
        data,
        "--wait",
        "--log",
        folder / "log",
        "--options",
        options,
        "start",
    )
    address = f"mlflow:{PASSWORD}@127.0.0.1:{port}/mlflow"
    try:
        run(
            binaries / "psql",
            f"postgresql://{address.removesuffix('mlflow')}postgres",
            "--command=create database mlflow",
        )
        yield address
    finally:
        run(binaries / "pg_ctl", "--pgdata", data, "--mode=immediate", "--wait", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def objects() -> Iterator[str]:
    """Address of an S3 server with the bucket that the compose file makes."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    s3 = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    s3.create_bucket(Bucket="mlflow")
    yield url
    server.stop()


@pytest.fixture(scope="module")
def mlflow_server(postgres: str, objects: str) -> Iterator[str]:
    """The compose file's command and environment, but for addresses and passwords."""
    pytest.importorskip("psycopg2", reason="no Postgres driver here: install psycopg2-binary")
    service, port = COMPOSE["services"]["mlflow"], free_port()
    program, *words = service["command"]
    words = [{"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}.get(w, w) for w in words]
    scheme = service["environment"]["MLFLOW_BACKEND_STORE_URI"].partition("://")[0]
    addresses = {"MLFLOW_S3_ENDPOINT_URL": objects, "MLFLOW_BACKEND_STORE_URI": f"{scheme}://{postgres}"}
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")
    environment = {**service["environment"], **addresses, **keys}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", program, *words],
            cwd=folder,
            env={**os.environ, **environment, "MLFLOW_WORKERS": "1"},
            start_new_session=True,  # its workers end with it
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def test_runs_land_in_postgres_and_artifacts_in_the_object_store(
    mlflow_server: str, postgres: str, objects: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import boto3
    from mlflow import MlflowClient

    for key in [k for k in os.environ if k.startswith("AWS_") or k == "MLFLOW_S3_ENDPOINT_URL"]:
        monkeypatch.delenv(key)  # the server passes artifacts on: its clients hold no key
    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment("study"), tags={"level": "leaf"}).info.run_id
    client.log_param(run, "rank", 4)
    client.log_metric(run, "missing_share", 0.25)
    (tmp_path / "report.html").write_text("<p>delta</p>")
    client.log_artifact(run, str(tmp_path / "report.html"))
    client.set_terminated(run)

    psql = [
        BINARIES[-1].parent / "psql",
        f"postgresql://{postgres}",
        "--tuples-only",
        "--no-align",
        "--command",
    ]
    query = (
        "select m.key, m.value, p.value from metrics m join params p using (run_uuid) where run_uuid ="
        f" '{run}'"
    )
    rows = subprocess.run([*psql, query], check=True, capture_output=True, text=True).stdout
    assert rows.strip() == "missing_share|0.25|4"
    s3 = boto3.client(
        "s3", endpoint_url=objects, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert [
        k for k in keys if k.startswith("artifacts/") and k.endswith(f"{run}/artifacts/report.html")
    ] == keys
    folder = client.download_artifacts(run, "report.html", str(tmp_path / ""))
    assert Path(folder).read_text() == "<p>delta</p>"


def test_server_answers_to_its_own_names_only(mlflow_server: str):
    page = f"{mlflow_server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    answers = {
        host: status(page, host)
        for host in ("localhost:5000", "127.0.0.1:5000", "mlflow:5000", "mlflow", "evil.example")
    }
    assert answers == {
        "localhost:5000": 200,
        "127.0.0.1:5000": 200,
        "mlflow:5000": 200,
        "mlflow": 200,
        "evil.example": 403,
    }
