"""What a cluster's launcher file sets for every job: the place below which roots lie, and the tracking
server."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from deltasae_ray.errors import ConfigError
from deltasae_ray.paths import below, expanded
from deltasae_ray.study.config import StudyConfig

STORAGE_ROOT = "DELTASAE_STORAGE_ROOT"
"""Folder, s3:// or gs:// below which a relative storage.root lies."""
TRACKING_URI = "DELTASAE_TRACKING_URI"
"""MLflow server of studies that name none."""
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the program of a submitted job."""


def with_launcher(cfg: StudyConfig, environ: Mapping[str, str]) -> StudyConfig:
    """Fills in, from the environment, where a study writes: a relative root goes below DELTASAE_STORAGE_ROOT,
    an empty tracking.uri becomes DELTASAE_TRACKING_URI. What a word says outright stays.

    Raises:
        ConfigError: a variable that holds no address; a root that leads out of DELTASAE_STORAGE_ROOT; or a
            submitted job that neither words nor environment give a place, which names both variables.
    """
    root, uri = cfg.storage.root, cfg.tracking.uri
    if _is_relative(root) and (parent := environ.get(STORAGE_ROOT, "")):
        root = _below(parent, root)
    if not uri:
        uri = environ.get(TRACKING_URI, "")
    if _IN_JOB in environ:
        _check_job(root, uri)
    try:
        tracking = replace(cfg.tracking, uri=uri)
    except ConfigError as e:  # the word itself was checked before
        raise ConfigError(f"{TRACKING_URI}: {e}") from e
    return replace(cfg, storage=replace(cfg.storage, root=root), tracking=tracking)


def _is_relative(root: str) -> bool:
    return "://" not in root and not Path(root).is_absolute()


def _below(parent: str, root: str) -> str:
    parent = expanded(parent, STORAGE_ROOT)
    if _is_relative(parent):
        raise ConfigError(
            f"{STORAGE_ROOT}={parent!r} is relative: give s3://bucket/prefix, gs://bucket/prefix or an"
            " absolute path"
        )
    inner = PurePosixPath(root)
    if ".." in inner.parts or not inner.parts:
        raise ConfigError(
            f"storage.root={root!r} names no folder below {STORAGE_ROOT}={parent!r}: give a name without .."
            ", an absolute path, or s3://…"
        )
    return below(parent, str(inner))


def _check_job(root: str, uri: str) -> None:
    """Refuses a submitted job whose results would be lost, or whose runs have no store."""
    set_them = (
        f"set {STORAGE_ROOT} (s3://bucket/prefix) and {TRACKING_URI} (http://host:port) once where the"
        " cluster is started, as the files in cluster/ do, or give storage.root=s3://… tracking.uri=http://…"
    )
    if _is_relative(root):
        raise ConfigError(
            f"storage.root={root!r} is relative, and a Ray job runs in a temporary copy of the folder:"
            f" results would be lost. For all jobs, {set_them}"
        )
    if not root.startswith(("/", "file://")) and not uri:
        raise ConfigError(
            f"storage.root={root!r} is an object store, which cannot hold the embedded store of MLflow, and"
            f" there is no tracking.uri. For all jobs, {set_them}"
        )
