"""MLflow's store: the embedded one is made, moved and kept silent here; a server is looked for before long
work."""

import base64
import contextlib
import http.client
import logging
import os
import sqlite3
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from deltasae_ray.errors import ConfigError
from deltasae_ray.fingerprints import locked
from deltasae_ray.paths import inside_local

LOCK_S = 120.0
"""Seconds to wait for another process that makes the same store."""


def calm_mlflow() -> None:
    # Before mlflow is first imported: it reads these once. No usage data leaves the machine, no address goes
    # to stdout.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Keeps MLflow's database from logging below `level`, and only meanwhile: at INFO it tells of every table
    that it makes."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)


def create_embedded(path: Path, artifact_root: str) -> None:
    """An empty store, made beside and renamed: two processes that create its tables at once, or a kill
    between, break it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(
        inside_local(path.parent, ".mlflow.lock"), "a"
    ) as lock:  # "w" would empty what a symlink of that name points to
        if not locked(lock, LOCK_S):
            raise ConfigError(
                f"{lock.name} is kept by another process for more than {LOCK_S:.0f} s: see that no stopped or"
                " hanging driver works on this storage.root, and start the same command again"
            )
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        temporary = path.with_name(f".tmp-{uuid4().hex}.db")
        try:
            with quiet():
                # The artifact root also goes to MLflow's own "Default" experiment, else ./mlruns.
                store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root)
            store.engine.dispose()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def relocate(path: Path, old: str, new: str) -> None:
    """The study's folder was moved or copied: artifacts must not go back to where it was."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", (old, new)
        )
        connection.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (old, new))
        connection.execute(
            "UPDATE logged_models SET artifact_location = replace(artifact_location, ?, ?)", (old, new)
        )


def reach(uri: str) -> None:
    """One short look before long work: MLflow's own client tries for minutes.

    Raises:
        ConfigError: nothing answers, or it asks for a user and password that it was not given; any other
            answer is one.
    """
    try:
        asked = urllib.request.Request(f"{uri.rstrip('/')}/health", headers=_login())
        # the certificate that MLflow's client trusts; none: those that the system does
        trusted = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        opener = urllib.request.build_opener(_KeepsLogin, urllib.request.HTTPSHandler(context=trusted))
        opener.open(asked, timeout=10).close()
    except urllib.error.HTTPError as e:
        if e.code == 401:
            raise ConfigError(
                f"tracking.uri={uri!r} refuses user and password (401): give them by MLFLOW_TRACKING_USERNAME"
                " and MLFLOW_TRACKING_PASSWORD, or a token by MLFLOW_TRACKING_TOKEN"
            ) from e
    except (OSError, ValueError, http.client.HTTPException) as e:
        raise ConfigError(
            f"tracking.uri={uri!r} does not answer within 10 s ({e}): start the server, or leave tracking.uri"
            " empty"
        ) from e


class _KeepsLogin(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and gives user and password to no other host: urllib sends every header on."""

    def redirect_request(  # noqa: PLR0913 - urllib's signature
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (following.host, following.type) not in (
            (req.host, req.type),
            (req.host, "https"),
        ):
            following.remove_header("Authorization")
        return following


def _login() -> dict[str, str]:
    """The header that MLflow's client sends, from the variables that it reads."""
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if user or password:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}
