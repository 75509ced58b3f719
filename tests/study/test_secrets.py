"""Secrets are planted wherever a user can put one, and nothing that a study prints, stores, logs or sends
holds any of them."""

import http.server
import os
import subprocess
import sys
import tempfile
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs
import pytest
import yaml

from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.documents import corpora
from deltasae_ray.credentials import bare_root, bare_tracking_address
from deltasae_ray.errors import ConfigError
from deltasae_ray.storage import Storage
from deltasae_ray.study.main import main
from deltasae_ray.study.tune import keep_keys_at_home
from deltasae_ray.tracking import Tracker, TrackingConfig
from tests.browser.servers import mlflow_server
from tests.object_store import s3_server
from tests.study.submitted import REPOSITORY
from tests.study.words import WORDS, words

KEY, SECRET = "AKIAPLANTED000000001", "plantedSecret/of+AWS0000001"
USER, PASSWORD = "planteduser01", "planted/pass word@01"
VARIABLES = {
    "HF_TOKEN": "hf_plantedTokenOfTheHub0001",
    "WANDB_API_KEY": "plantedkeyofwandb0001",
    "MY_DB_PASSWORD": "planted pass of db 0001",
}
PLANTED = [KEY, SECRET, USER, PASSWORD, *VARIABLES.values()]


def found_in(text: bytes) -> list[str]:
    """The planted secrets that a text holds, in whichever spelling."""
    spelled = {p: {p, quote(p), quote(p, safe=""), p.replace(" ", "+")} for p in PLANTED}
    spelled[PASSWORD].add(b64encode(f"{USER}:{PASSWORD}".encode()).decode())
    return [p for p, ways in spelled.items() if any(way.encode() in text for way in ways)]


def files_with_secrets(folder: Path) -> dict[str, list[str]]:
    read = {str(p): found_in(p.read_bytes()) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    return {path: found for path, found in read.items() if found}


# make test: tests/study/test_sweep.py looks through the study that it shares; what is planted in addresses,
# below
@pytest.mark.prove
def test_a_study_on_an_object_store_with_a_server_leaves_no_secret_anywhere(
    tiny_model: Path, tmp_path: Path
) -> None:
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    (tmp_path / "server").mkdir()
    with s3_server() as endpoint, mlflow_server(tmp_path / "server") as server:
        pafs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            endpoint_override=endpoint,
            scheme="http",
            allow_bucket_creation=True,
        ).create_dir("planted")
        root = f"s3://{KEY}:{quote(SECRET, safe='')}@planted/study?endpoint_override={endpoint}&scheme=http"
        (tmp_path / "study.yaml").write_text(
            yaml.safe_dump({"storage": {"root": root}, "model": {"base": str(tiny_model)}})
        )
        address = server.replace("://", f"://{quote(USER)}:{quote(PASSWORD, safe='')}@")
        command = [sys.executable, "jobs/sweep.py", *WORDS, f"config={tmp_path / 'study.yaml'}"]
        env = {
            **os.environ,
            **VARIABLES,
            "DELTASAE_TRACKING_URI": address,  # as a launcher file sets it
            "RAY_TMPDIR": str(ray_folder),
            "RAY_ADDRESS": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        ended = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, timeout=900)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert found_in(ended.stdout + ended.stderr) == []
        fs = pafs.S3FileSystem(access_key=KEY, secret_key=SECRET, endpoint_override=endpoint, scheme="http")
        objects = [
            i.path
            for i in fs.get_file_info(pafs.FileSelector("planted", recursive=True))
            if i.type == pafs.FileType.File
        ]
        held = {path: found for path in objects if (found := found_in(fs.open_input_stream(path).read()))}
        assert len(objects) > 50 and held == {}
    (tmp_path / "study.yaml").unlink()  # the user's own
    assert files_with_secrets(tmp_path) == {}
    assert any(ray_folder.rglob("gcs_server*")) and files_with_secrets(ray_folder) == {}


def test_a_plan_shows_no_key_of_its_root_and_no_password(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    ):
        monkeypatch.setenv(name, "")  # what the study sets is taken back
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with s3_server() as endpoint:
        pafs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            endpoint_override=endpoint,
            scheme="http",
            allow_bucket_creation=True,
        ).create_dir("bucket")
        root = f"s3://{KEY}:{quote(SECRET, safe='')}@bucket/study?endpoint_override={endpoint}&scheme=http"
        asked = words(
            tiny_model,
            root,
            f"tracking.uri=http://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:9",
            "dry_run=true",
        )
        monkeypatch.setattr(sys, "argv", ["sweep.py", *asked])
        main("sweep", None)
    printed = capsys.readouterr()
    assert "below s3://bucket/study" in printed.out and found_in((printed.out + printed.err).encode()) == []
    monkeypatch.setattr(
        sys, "argv", ["sweep.py", *asked, f"layers=[{PASSWORD}]", "tracking.uri=ftp://ann:planteduser01@host"]
    )
    with pytest.raises(SystemExit):
        main("sweep", None)
    assert "planteduser01" not in capsys.readouterr().err


def test_an_untyped_error_is_printed_with_its_traceback_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object) -> None:
        raise RuntimeError(f"GET http://{USER}:x@host?access_token={PASSWORD}")

    monkeypatch.setattr("deltasae_ray.study.run.run", bug)
    monkeypatch.setattr(sys, "argv", ["sweep.py", f"storage.root={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        main("sweep", None)
    said = capsys.readouterr().err
    assert (
        ended.value.code == 1
        and "Traceback" in said
        and said.strip().splitlines()[-1].startswith("RuntimeError: GET http://***@host")
    )
    assert USER not in said


class _Guarded(http.server.BaseHTTPRequestHandler):
    """An MLflow server behind a login: it answers who gives user and password, and nobody else."""

    def do_GET(self) -> None:
        right = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        known = self.headers.get("Authorization") == right
        body = b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}' if known else b"no"
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_tracking_address_with_user_and_password_is_used_and_not_kept(guarded: str, tmp_path: Path) -> None:
    given = f"http://{quote(USER)}:{quote(PASSWORD, safe='')}@{guarded}"
    tracker = Tracker(TrackingConfig(uri=given), Storage(str(tmp_path)))
    assert tracker.experiment_id == "7"
    assert (
        tracker.uri == tracker.cfg.uri == f"http://{guarded}"
        and found_in(repr(tracker.__getstate__()).encode()) == []
    )


def test_a_wrong_password_is_told_as_such_and_not_shown(guarded: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        Tracker(TrackingConfig(uri=f"http://{USER}:wrongpassword@{guarded}"), Storage(str(tmp_path))).client  # noqa: B018
    assert "wrongpassword" not in str(raised.value) and "(401)" in str(raised.value)


def test_a_server_that_sends_elsewhere_does_not_send_the_password_there(guarded: str, tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Elsewhere(_Guarded):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            super().do_GET()

    class Sends(_Guarded):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{other.server_address[1]}/health")
            self.end_headers()

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Elsewhere, Sends)]
    other, first = servers
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://{quote(USER)}:{quote(PASSWORD, safe='')}@127.0.0.1:{first.server_address[1]}"
        with pytest.raises(ConfigError, match="refuses user and password"):
            Tracker(TrackingConfig(uri=address), Storage(str(tmp_path))).client  # noqa: B018
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
    assert seen == [None]


def test_keys_of_a_root_go_to_the_environment_of_a_ray_of_one_s_own_and_are_refused_on_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "before")
    root = f"s3://{KEY}:{SECRET}@bucket/a@b?region=eu"
    assert bare_root(root, shared=False) == "s3://bucket/a@b?region=eu"
    assert (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]) == (KEY, SECRET)
    assert "AWS_SESSION_TOKEN" not in os.environ
    for refused, shared in (
        (root, True),
        (f"s3://{KEY}@bucket", False),
        ("gs://ann:secretpass@bucket", False),
    ):
        with pytest.raises(ConfigError) as raised:
            bare_root(refused, shared=shared)
        assert found_in(str(raised.value).encode()) == [] and "secretpass" not in str(raised.value)
    for kept in ("s3://bucket/a@b", "gs://anonymous@bucket", "runs/demo", "/a/b@c", "gs://bucket/x:1@2"):
        assert bare_root(kept, shared=True) == kept


def test_a_text_is_not_named_after_the_key_of_its_bucket() -> None:
    """The name is stored with every unit, and shown."""
    named = corpora(
        CorpusConfig(
            path=("builtin:kjv",),
            unrelated=(f"s3://{KEY}:{SECRET}@texts", f"s3://{KEY}:{SECRET}@texts/a/law.jsonl"),
        )
    )
    assert "law" in named and found_in(" ".join(named).encode()) == []


@pytest.mark.parametrize(
    "uri", ["http://ann:pass/word@host:5000", "http://ann:pw@host:port", "http://ann:pw@:5000"]
)
def test_an_address_whose_password_cannot_be_read_is_refused_for_that_and_not_shown(uri: str) -> None:
    with pytest.raises(ConfigError) as raised:
        bare_tracking_address(uri)
    assert "ann:" not in str(raised.value) and (
        "%2F" in str(raised.value) or "names no host" in str(raised.value)
    )


def test_tune_copies_no_key_into_a_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes these to its logs in clear."""
    from ray.tune.execution.class_cache import _ActorClassCache

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "planted")
    keep_keys_at_home()
    actor = _ActorClassCache().get(type("Trainable", (), {}))
    assert "planted" not in repr(actor._default_options["runtime_env"])
