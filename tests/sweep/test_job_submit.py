"""`ray start --head`, then `ray job submit -- python jobs/sweep.py …`, with and without a working directory, as a user does it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweep.words import words

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    """Above 20,000: below lie the ports that Ray gives to workers."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            if (port := s.getsockname()[1]) > 20_000:
                return port


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A Ray head of its own, with its own temporary folder; its process group is ended by id."""
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets allow 107 characters: pytest's folders are too deep
    port, dashboard, client, agent = (free_port() for _ in range(4))
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as cluster/ does
    env.pop("RAY_ADDRESS", None)
    log = Path(scratch) / "start.log"
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}", f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", f"--ray-client-server-port={client}", f"--temp-dir={scratch}/ray"),
            # The agent takes the jobs; on its usual port another Ray of this machine may listen, and then it serves nothing.
            f"--dashboard-agent-listen-port={agent}",
        ],
        env=env, cwd=REPOSITORY, start_new_session=True, stdout=log.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not (listens(dashboard) and listens(agent)):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def submit(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", *arguments], env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=1100, check=False
    )


def test_a_sweep_by_job_submit_without_and_with_a_working_directory(
    head: dict[str, str], tiny_model: Path, tiny_adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    study = words(tiny_model, tmp_path / "study", f"adapters=[{tiny_adapters[0]}]")
    first = submit(head, "--", "python", "jobs/sweep.py", *study)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-2000:]
    assert (tmp_path / "study" / "report.html").stat().st_size > 10_000
    # The second run travels as a copy of the folder and finds every stage done.
    second = submit(head, "--working-dir", ".", "--", "python", "jobs/sweep.py", *study)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-2000:]
    assert "report.html" in second.stdout


def test_a_relative_root_under_a_job_is_a_clear_error(head: dict[str, str], tiny_model: Path) -> None:
    done = submit(head, "--", "python", "jobs/sweep.py", *words(tiny_model, "runs/lost"))
    assert done.returncode == 1
    assert "storage.root='runs/lost' is relative" in done.stdout + done.stderr
    assert not (REPOSITORY / "runs" / "lost").exists()
