"""A Ray head of its own, and jobs submitted to it, as a user does it."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.processes import end_orphans

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


@contextmanager
def ray_head() -> Iterator[dict[str, str]]:
    """`ray start --head` with its own temporary folder; the environment of who submits to it. Its processes
    are ended by id."""
    for attempt in range(3):
        process, env, agent, log = _start()
        try:
            if _up(process, (int(env["RAY_API_SERVER_ADDRESS"].rpartition(":")[2]), agent)):
                yield env
                return
        finally:
            _end(process, env["RAY_TMPDIR"])
        # Where the machine is busy, a part of Ray gives up on another that has not come up within its 30
        # seconds.
        assert attempt < 2, log.read_text()


def _start() -> tuple[subprocess.Popen, dict[str, str], int, Path]:
    scratch = tempfile.mkdtemp(
        prefix="ray-", dir="/tmp"
    )  # sockets allow 107 characters: pytest's folders are too deep
    port, dashboard, client, agent = (free_port() for _ in range(4))
    env = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_TMPDIR": scratch,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as cluster/ does
    env.pop("RAY_ADDRESS", None)
    log = Path(scratch) / "start.log"
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
                f"--dashboard-port={dashboard}"),
            *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1",
                f"--ray-client-server-port={client}", f"--temp-dir={scratch}/ray"),
            # The agent takes the jobs; on its usual port another Ray of this machine may listen, and then it
            # serves nothing.
            f"--dashboard-agent-listen-port={agent}",
        ],
        env=env, cwd=REPOSITORY, start_new_session=True, stdout=log.open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    return process, {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}, agent, log


def _up(process: subprocess.Popen, ports: tuple[int, int]) -> bool:
    """Waits until dashboard and agent listen; whether they do."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if all(map(listens, ports)):
            time.sleep(2)  # a head that is about to end over one of its parts does so now
            return process.poll() is None
        time.sleep(0.5)
    return False


def _end(process: subprocess.Popen, scratch: str) -> None:
    """Kills the head with all it started: asked to end, Ray takes half a minute. What it started just now is
    found by its folder."""
    ours = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    for one in ours:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(60)
    end_orphans("RAY_TMPDIR", scratch, within_s=10)


def submit(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, to its end."""
    return subprocess.run(
        [str(BIN / "ray"), "job", "submit", *arguments],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
