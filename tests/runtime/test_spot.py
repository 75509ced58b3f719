"""A cloud's notice becomes a drain of the machine's Ray node, and work that hears of it saves itself."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deltasae_ray.runtime.losses import Lives, count_restarts
from deltasae_ray.runtime.spot import amazon, google, wait_for


class Cloud(BaseHTTPRequestHandler):
    """Answers as both clouds' metadata services do: Amazon's only to who has its token."""

    notice = ""

    def do_PUT(self) -> None:
        self._answer(200, "token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else "")

    def do_GET(self) -> None:
        if self.path.startswith("/computeMetadata"):
            known = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if known else 403, "TRUE" if Cloud.notice else "FALSE")
        elif self.headers["X-aws-ec2-metadata-token"] != "token":
            self._answer(401, "")
        elif Cloud.notice:
            self._answer(200, Cloud.notice)
        else:
            self._answer(404, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Cloud.notice = ""
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def notice() -> str:
    """As Amazon writes it, two minutes ahead."""
    end = datetime.now(UTC) + timedelta(seconds=120)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_a_machine_without_notice_has_all_the_time(cloud: str) -> None:
    assert amazon(cloud) is None and google(cloud) is None


def test_each_cloud_says_how_long_the_machine_has(cloud: str, notice: str) -> None:
    Cloud.notice = notice
    left = amazon(cloud)
    assert left is not None and 110 < left <= 120
    assert google(cloud) == 30


def test_a_silent_metadata_service_is_told_once_and_asked_on(
    capsys: pytest.CaptureFixture[str], cloud: str, notice: str
) -> None:
    Cloud.notice = notice
    answers = iter([OSError("no route"), ValueError("no JSON"), None])

    def ask() -> float | None:
        answer = next(answers, amazon(cloud))
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_for(ask, every=0) > 100
    assert capsys.readouterr().out.count("does not answer (no route)") == 1


def test_faults_drained_and_lost_nodes_are_told_apart() -> None:
    lives = Lives().next("a", {"a", "b"})
    lives = lives.next("b", {"b"}, {"a"})
    lives = lives.next("b", {"b"}).next("c", {"c"})
    assert lives == Lives("c", faults=1, lost_nodes=2, drained=1)
    assert count_restarts([lives, Lives("x")]) == (
        "Gangs started again: 1 after a fault on a living node, 1 with a drained node, 1 with a node that was"
        " lost without notice"
    )
    assert count_restarts([Lives("x")]) == ""
    assert lives.reason(Lives("b", faults=1, lost_nodes=1, drained=1)) == "lost node"


@pytest.mark.prove
def test_a_fit_worker_saves_itself_and_its_node_ends_without_a_fault(tmp_path: Path) -> None:
    """Two nodes; the one that fits is drained in the middle of a round, and taken away."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.runtime.drained_fit", str(tmp_path)],
            stdout=output,
            stderr=output,
            timeout=900,
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert f"drained: {found['node']}" in found["told"][0]
    assert found["between"], "no checkpoint was written before its turn"
    assert found["fitted"] and found["reason"] == 3, "the node was not lost as a drained one"
