"""MLflow, and nothing else of the package imports it: sweep run → trial run → leaf run, each with one content-made name.

`tracking.json` under the storage root remembers which run stands for which point, so that a resumed study writes to the
runs it already has. The truth is the run's own tag: a run made just before a kill is found by it and not made twice.
"""

import contextlib
import fcntl
import logging
import math
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from deltasae_ray.divergence.measure import Measure
from deltasae_ray.errors import ConfigError
from deltasae_ray.storage import Storage, digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD = "tracking.json"
PARTS = ("null", "ceiling", "kappa")
"""Parts of a Measure that become `<metric>.<part>`; its intervals become `.ci_low` and `.ci_high`, `.kappa_low` and `.kappa_high`."""
_BATCH = 1000  # MLflow's limit of metrics per call
_TAG_CHARS = 5000  # the server's limit of a tag's value

Level = Literal["sweep", "trial", "leaf"]


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are logged."""

    uri: str = ""
    """MLflow server (http://…). Empty: an embedded store, <storage.root>/mlflow.db, artifacts beside it."""
    experiment: str = "deltasae"
    """Name of the MLflow experiment."""

    def __post_init__(self) -> None:
        if self.uri and not self.uri.startswith(("http://", "https://")):
            raise ConfigError(f"tracking.uri={self.uri!r} is no server: give http://host:port, or leave it empty for the embedded store")
        if not self.experiment.strip():
            raise ConfigError("tracking.experiment is empty: give the MLflow experiment a name")


@dataclass(frozen=True)
class TrialPoint:
    """What one trial run stands for."""

    adapter: str
    rank: int
    """LoRA rank; 0 for a dictionary of base activations."""
    d_sae: int
    k: int
    architecture: str
    content: str = field(default="", kw_only=True)
    """Digest of what the names stand for (adapter, harvest): it tells runs apart, and is no parameter of the run."""

    @property
    def name(self) -> str:
        return f"{self.adapter} d_sae={self.d_sae} k={self.k} {self.architecture}"

    def leaf(self, layer: int, seed: int, reference: str) -> "LeafPoint":
        """The point of one dictionary of this trial, held against `reference`."""
        return LeafPoint(**asdict(self), layer=layer, seed=seed, reference=reference)


@dataclass(frozen=True)
class LeafPoint(TrialPoint):
    """What one leaf run stands for: a dictionary and the reference it is held against. Its fields are the run's parameters."""

    layer: int
    seed: int
    reference: str

    @property
    def name(self) -> str:
        return f"{super().name} layer={self.layer} seed={self.seed}"


class RunLog:
    """Writes to one run. Writing the same values again adds nothing to their history; a changed value follows the old one."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters are for good: MLflow refuses another value under the same name."""
        from mlflow.entities import Param

        entities = [Param(name, str(value)) for name, value in params.items()]
        for i in range(0, len(entities), 100):
            self._client.log_batch(self.run_id, params=entities[i : i + 100])

    def log_measures(self, measures: Mapping[str, Measure], step: int = 0) -> None:
        """`<metric>`, `.null`, `.ceiling`, `.kappa` and the ends of both intervals; "undefined" is a tag `<metric>` with its reason."""
        values: dict[str, float] = {}
        undefined: dict[str, str] = {}
        for name, measure in measures.items():
            parts = {f"{name}.{part}": getattr(measure, part) for part in PARTS}
            for interval, ends in (("ci", measure.ci), ("kappa", measure.kappa_ci)):
                if ends is not None:
                    parts |= {f"{name}.{interval}_low": ends[0], f"{name}.{interval}_high": ends[1]}
            values |= {key: float(value) for key, value in parts.items() if value is not None}
            if measure.value is None:
                undefined[name] = f"undefined: {measure.reason}"
            else:
                values[name] = float(measure.value)
        data = self._client.get_run(self.run_id).data
        changed = {name: value for name, value in values.items() if data.metrics.get(name) != value}
        self._log([(name, value, step) for name, value in changed.items()], undefined)
        for name in measures:
            if name not in undefined and name in data.tags:
                self._client.delete_tag(self.run_id, name)

    def log_layer_means(self, leaves: Mapping[str, Mapping[str, Measure]]) -> None:
        """The mean of every metric over leaves (named, such as "layer 9 seed 0"): value, null and ceiling.

        Leaves where a metric is undefined are left out of its mean, and a tag says which.
        """
        means: dict[str, Measure] = {}
        notes: dict[str, str] = {}
        for metric in sorted({name for measures in leaves.values() for name in measures}):
            found = {leaf: measures[metric] for leaf, measures in leaves.items() if metric in measures}
            defined = [m for m in found.values() if m.value is not None]
            missing = [f"{leaf} ({m.reason})" for leaf, m in found.items() if m.value is None]
            if not defined:
                means[metric] = Measure(None, reason="; ".join(missing))
                continue
            means[metric] = Measure(_mean(defined, "value"), null=_mean(defined, "null"), ceiling=_mean(defined, "ceiling"))
            if missing:
                notes[f"{metric}.mean_of"] = f"{len(defined)} of {len(found)}; undefined at {'; '.join(missing)}"
        self.log_measures(means)
        self._log([], notes)
        stale = {f"{metric}.mean_of" for metric in means} - notes.keys()
        for tag in stale & self._client.get_run(self.run_id).data.tags.keys():
            self._client.delete_tag(self.run_id, tag)

    def log_curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """A learning curve of (step, value), in as few calls as MLflow allows; points that are there already are skipped."""
        seen: dict[int, float] = {}
        if name in self._client.get_run(self.run_id).data.metrics:
            history = sorted(self._client.get_metric_history(self.run_id, name), key=lambda m: m.timestamp)
            seen = {m.step: m.value for m in history}
        finite = [(step, float(value)) for step, value in points if math.isfinite(value)]
        lost = len(points) - len(finite)
        note = {name: f"{lost} of {len(points)} points were not finite and are left out"} if lost else {}
        self._log([(name, value, step) for step, value in finite if seen.get(step) != value], note)

    def log_artifacts(self, folder: Path, artifact_path: str | None = None) -> None:
        """Every file of a local folder."""
        self._client.log_artifacts(self.run_id, str(folder), artifact_path)

    def log_text(self, text: str, artifact_file: str) -> None:
        """One text file, such as the resolved config."""
        self._client.log_text(self.run_id, text, artifact_file)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._log([], tags)

    def _log(self, metrics: Sequence[tuple[str, float, int]], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        entities = [Metric(name, value, now, step) for name, value, step in metrics]
        for i in range(0, len(entities), _BATCH):
            self._client.log_batch(self.run_id, metrics=entities[i : i + _BATCH])
        notes = [RunTag(name, value if len(value) <= _TAG_CHARS else value[: _TAG_CHARS - 1] + "…") for name, value in tags.items()]
        for i in range(0, len(notes), 100):
            self._client.log_batch(self.run_id, tags=notes[i : i + 100])


class Tracker:
    """Finds or makes the runs of one study. Picklable: workers of a trial open the store again from the configuration.

    Raises:
        ConfigError: the embedded store was asked for under a root that is an object store.
    """

    def __init__(self, cfg: TrackingConfig, storage: Storage) -> None:
        if not cfg.uri and not storage.is_local:
            raise ConfigError(
                f"storage.root={storage.root!r} is an object store and cannot hold the embedded mlflow.db: "
                "set tracking.uri=http://… to an MLflow server, or use a local storage.root"
            )
        self.cfg = cfg
        # Absolute: a Ray worker's working directory is not the driver's.
        self.storage = Storage(str(storage.local(""))) if storage.is_local else storage

    def __getstate__(self) -> dict:
        return {"cfg": self.cfg, "storage": self.storage}

    @property
    def uri(self) -> str:
        """What `MlflowClient` and `mlflow ui --backend-store-uri` open."""
        return self.cfg.uri or f"sqlite:///{self.storage.local('mlflow.db')}"

    @cached_property
    def client(self) -> "MlflowClient":
        _calm_mlflow()
        if self.cfg.uri:
            _reach(self.cfg.uri)
        else:
            _create_embedded(self.storage.local("mlflow.db"), self._artifact_root)
        from mlflow import MlflowClient

        with _quiet():
            return MlflowClient(self.uri)

    @cached_property
    def experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.cfg.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=None if self.cfg.uri else self._artifact_root)
            except MlflowException:  # another process was faster; a real failure shows in the next line
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise ConfigError(f"tracking.experiment={name!r} was deleted in MLflow: restore it there or choose another name")
        if not self.cfg.uri and found.artifact_location != self._artifact_root:
            _relocate(self.storage.local("mlflow.db"), found.artifact_location, self._artifact_root)
        return found.experiment_id

    @contextlib.contextmanager
    def sweep(self, name: str, content: str) -> Iterator[RunLog]:
        """The run above all trials; `content` names the study and must not change when a rank, layer or size is added.

        Enter it in the driver, before any trial. Runs that a killed study left open are ended at the start, and runs whose
        process died are ended at the end, so that none stays RUNNING.
        """
        self._end_open_runs("KILLED")
        try:
            with self._run("sweep", name, {"content": content}, parent=None) as log:
                yield log
        finally:
            self._end_open_runs("FAILED")

    def trial(self, point: TrialPoint, parent: str) -> contextlib.AbstractContextManager[RunLog]:
        """The run of one trial below the sweep run `parent`."""
        return self._run("trial", point.name, asdict(point), parent)

    def leaf(self, point: LeafPoint, parent: str) -> contextlib.AbstractContextManager[RunLog]:
        """The run of one dictionary below the trial run `parent`. Entered again (after Tune), it is the same run."""
        return self._run("leaf", point.name, asdict(point), parent)

    def failed_trial(self, point: TrialPoint, parent: str, error: str) -> None:
        """A trial of which nothing came but its error: its run ends as FAILED. Entered as a trial later, it is the same run, and clean."""
        run_id, _ = self._find_or_create("trial", point.name, asdict(point), parent)
        log = RunLog(self.client, run_id)
        log.log_params({key: value for key, value in asdict(point).items() if key != "content"})
        log.set_tags({"error": error})
        self.client.set_terminated(run_id, "FAILED")

    @contextlib.contextmanager
    def _run(self, level: Level, name: str, point: dict, parent: str | None) -> Iterator[RunLog]:
        run_id, status = self._find_or_create(level, name, point, parent)
        log = RunLog(self.client, run_id)
        if status in ("FAILED", "KILLED"):
            self.client.update_run(run_id, status="RUNNING")
        try:
            if level != "sweep":
                log.log_params({key: value for key, value in point.items() if key != "content"})
            yield log
        except BaseException as e:
            log.set_tags({"error": f"{type(e).__name__}: {e}"})
            self.client.set_terminated(run_id, "FAILED" if isinstance(e, Exception) else "KILLED")
            raise
        if status != "FINISHED":  # entered again, a finished run keeps its end time
            if "error" in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, "error")
            self.client.set_terminated(run_id, "FINISHED")

    def _find_or_create(self, level: Level, name: str, point: dict, parent: str | None) -> tuple[str, str]:
        key = digest({"level": level, "experiment": self.cfg.experiment, "parent": parent, **point})
        record = self._record()
        run = self._recorded(record["runs"].get(self._store, {}).get(key)) or self._tagged(key)
        if run is None:
            tags = {"level": level, "deltasae.study": record["study"], "deltasae.point": key}
            tags |= {"mlflow.parentRunId": parent} if parent else {}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        if record["runs"].get(self._store, {}).get(key) != run.info.run_id:
            record = self._record()
            record["runs"].setdefault(self._store, {})[key] = run.info.run_id
            # Two processes may write at once and one entry be lost: the tag finds its run again.
            self.storage.write_json(RECORD, record)
        return run.info.run_id, run.info.status

    def _recorded(self, run_id: str | None):
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None  # the store was emptied, or is another one under the same address
        return run if run.info.lifecycle_stage == "active" else None

    def _tagged(self, key: str):
        wanted = f"tags.`deltasae.study` = '{self._record()['study']}' and tags.`deltasae.point` = '{key}'"
        runs = self.client.search_runs([self.experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return runs[0] if runs else None

    def _record(self) -> dict:
        """The study's own id, written before its first run, and the run id of every point, by store."""
        if not self.storage.exists(RECORD):
            self.storage.write_json(RECORD, {"study": uuid4().hex, "runs": {}})
        return self.storage.read_json(RECORD)

    def _end_open_runs(self, status: str) -> None:
        wanted = f"tags.`deltasae.study` = '{self._record()['study']}' and attributes.status = 'RUNNING'"
        while runs := self.client.search_runs([self.experiment_id], wanted, max_results=1000):
            for run in runs:
                self.client.set_terminated(run.info.run_id, status)

    @property
    def _store(self) -> str:
        return self.cfg.uri or "embedded"  # not the path: a study whose folder was moved keeps its runs

    @property
    def _artifact_root(self) -> str:
        return self.storage.local("mlflow-artifacts").as_uri()


def _mean(measures: Sequence[Measure], part: str) -> float | None:
    values = [getattr(m, part) for m in measures]
    return sum(values) / len(values) if None not in values else None


def _calm_mlflow() -> None:
    # Before mlflow is first imported: it reads these once. No usage data leaves the machine, no address goes to stdout.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only what creating a database says at INFO, and only meanwhile."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _create_embedded(path: Path, artifact_root: str) -> None:
    """An empty store, made beside and renamed: two processes that create its tables at once, or a kill between, break it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(".mlflow.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        temporary = path.with_name(f".tmp-{uuid4().hex}.db")
        try:
            with _quiet():
                # The artifact root also goes to MLflow's own "Default" experiment, else ./mlruns.
                store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root)
            store.engine.dispose()
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _relocate(path: Path, old: str, new: str) -> None:
    """The study's folder was moved or copied: artifacts must not go back to where it was."""
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", (old, new))
        connection.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", (old, new))


def _reach(uri: str) -> None:
    """One short look before long work: MLflow's own client tries for minutes.

    Raises:
        ConfigError: nothing answers; any answer, also a refusal, is one.
    """
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return
    except OSError as e:
        raise ConfigError(f"tracking.uri={uri!r} does not answer within 10 s ({e}): start the server, or leave tracking.uri empty") from e
