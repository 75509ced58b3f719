"""The runs of a study: trial runs lie below the sweep run; adapter and leaf runs lie flat, and name theirs in
a tag.

`tracking.json` under the storage root remembers which run stands for which point, so that a resumed study
writes to the runs it already has. The truth is the run's own tag: a run made just before a kill is found by
it and not made twice.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote
from uuid import uuid4

from deltasae_ray.credentials import bare_tracking_address
from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.paths import checked_folder, inside_local
from deltasae_ray.redaction import redact
from deltasae_ray.storage import Storage, digest
from deltasae_ray.tracking.failures import noted_below, typed
from deltasae_ray.tracking.points import LeafPoint, TrackingConfig, TrialPoint
from deltasae_ray.tracking.run_log import RunLog
from deltasae_ray.tracking.store import calm_mlflow, create_embedded, quiet, reach, relocate
from deltasae_ray.tracking.views import SERVE, TAG, study_views

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD = "tracking.json"

_NOT_IN_ADDRESSES = "%?"
"""What SQLAlchemy and alembic take apart in sqlite:///path."""
Level = Literal["sweep", "trial", "adapter", "leaf"]
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment whose page opens on training runs."""


class Tracker:
    """Finds or makes the runs of one study. Picklable: workers of a trial open the store again from the
    configuration.

    Raises:
        ConfigError: the embedded store was asked for under a root that is an object store, or has a character
            in its path that ends an address or begins an escape.
    """

    def __init__(self, cfg: TrackingConfig, storage: Storage) -> None:
        if not cfg.uri and not storage.is_local:
            raise ConfigError(
                f"storage.root={storage.root!r} is an object store and cannot hold the embedded mlflow.db: "
                "set tracking.uri=http://… to an MLflow server, or use a local storage.root"
            )
        if not cfg.uri and (bad := sorted(set(_NOT_IN_ADDRESSES) & set(storage.path("")))):
            raise ConfigError(
                f"storage.root={storage.root!r} has {' '.join(bad)} in its path, which the address of the"
                " embedded mlflow.db cannot hold: rename the folder, or set tracking.uri=http://… to an"
                " MLflow server"
            )
        self.cfg = replace(cfg, uri=bare_tracking_address(cfg.uri))
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
        calm_mlflow()
        if self.cfg.uri:
            reach(self.cfg.uri)
        else:
            create_embedded(self.storage.local("mlflow.db"), self._artifact_root)
        from mlflow import MlflowClient

        with quiet():
            return typed(MlflowClient(self.uri), self.uri)

    @cached_property
    def experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        name = redact(self.cfg.experiment)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(
                    name, artifact_location=None if self.cfg.uri else self._artifact_root
                )
            except MlflowException:  # another process was faster; a real failure shows in the next line
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise ConfigError(
                f"tracking.experiment={name!r} was deleted in MLflow: restore it there or choose another name"
            )
        if not self.cfg.uri and experiment.artifact_location != self._artifact_root:
            relocate(self.storage.local("mlflow.db"), experiment.artifact_location, self._artifact_root)
        return experiment.experiment_id

    @contextlib.contextmanager
    def sweep(self, name: str, content: str) -> Iterator[RunLog]:
        """The run above all trials; `content` names the study and must not change when a rank, layer or size
        is added.

        Enter it in the driver, before any trial. Runs that a killed study left open are ended at the start,
        and runs whose process died are ended at the end, so that none stays RUNNING.
        """
        self._end_open_runs("KILLED")
        try:
            with self._run("sweep", name, {"content": content}, parent=None) as log:
                yield log
        except BaseException as e:
            with noted_below(e):
                self._end_open_runs("FAILED")
            raise
        self._end_open_runs("FAILED")

    def trial(self, point: TrialPoint, parent: str) -> contextlib.AbstractContextManager[RunLog]:
        """The run of one trial below the sweep run `parent`."""
        return self._run("trial", point.name, asdict(point), parent)

    def adapter(self, name: str, rank: int, parent: str) -> contextlib.AbstractContextManager[RunLog]:
        """The run of one adapter of the sweep run `parent`: what it does to the model's predictions."""
        return self._run("adapter", name, {"adapter": name, "rank": rank}, parent)

    def leaf(self, point: LeafPoint, trial: str) -> contextlib.AbstractContextManager[RunLog]:
        """The run of one dictionary of the trial run `trial`. Entered again (after Tune), it is the same
        run."""
        return self._run("leaf", point.name, asdict(point), trial)

    def save_views(self, title: str, figure: str, behaviours: Sequence[str]) -> dict[str, str]:
        """Saves the views of this study in its experiment.

        Args:
            title: what the study is called in the names of its views.
            figure: the metric of leaf runs that the charts show.
            behaviours: metrics of adapter runs.

        Returns:
            Name of a view → the link that opens it.
        """
        experiment = self.client.get_experiment(self.experiment_id)
        views = study_views(self._record()["study"], redact(title), figure, behaviours)
        tags = KIND | {f"{TAG}{view.key}": view.value(experiment.creation_time or 0) for view in views}
        for name, value in tags.items():
            if experiment.tags.get(name) != value:
                self.client.set_experiment_tag(self.experiment_id, name, value)
        return {view.name: view.link(self.cfg.uri or SERVE, self.experiment_id) for view in views}

    def failed_trial(self, point: TrialPoint, parent: str, error: str) -> None:
        """A trial of which nothing came but its error: its run ends as FAILED. Entered as a trial later, it
        is the same run, and clean."""
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
            with noted_below(e):
                log.set_tags({"error": f"{type(e).__name__}: {e}"})
                self.client.set_terminated(run_id, "FAILED" if isinstance(e, Exception) else "KILLED")
            raise
        if status != "FINISHED":  # entered again, a finished run keeps its end time
            if "error" in self.client.get_run(run_id).data.tags:
                self.client.delete_tag(run_id, "error")
            self.client.set_terminated(run_id, "FINISHED")

    def _find_or_create(self, level: Level, name: str, point: dict, parent: str | None) -> tuple[str, str]:
        key = digest({"level": level, "experiment": self.cfg.experiment, "parent": parent, **point})
        record, experiment = (
            self._record(),
            self.experiment_id,
        )  # which also tells a store that was moved where it is now
        run = self._recorded(record["runs"].get(self._store, {}).get(key)) or self._tagged(key)
        if run is None:
            tags = {"level": level, "deltasae.study": record["study"], "deltasae.point": key}
            # Runs of charts lie flat: MLflow's page shows runs with a parent collapsed below it, and leaves
            # them out of its charts.
            above = {"leaf": "trial", "adapter": "sweep"}.get(level, "mlflow.parentRunId")
            tags |= {above: parent} if parent else {}
            run = self.client.create_run(experiment, tags=tags, run_name=redact(name))
        if record["runs"].get(self._store, {}).get(key) != run.info.run_id:
            record = self._record()
            record["runs"].setdefault(self._store, {})[key] = run.info.run_id
            # Two processes may write at once and one entry be lost: the tag finds its run again.
            self.storage.write_json(RECORD, record)
        if not self.cfg.uri:
            self._check_place(run.info.run_id, run.info.artifact_uri or "")
        return run.info.run_id, run.info.status

    def _check_place(self, run_id: str, uri: str) -> None:
        """Raises StorageError where the embedded store, which lies below the root, would put a run's files
        outside of it."""
        root, folder = f"{self._artifact_root}/", self.storage.local("mlflow-artifacts")
        if not uri.startswith(root):
            raise StorageError(
                f"{self.storage.local('mlflow.db')} puts the files of run {run_id} at {uri!r}, which is not"
                f" below {root}: the store was altered. Delete mlflow.db and run again; figures that are made"
                " are not made again"
            )
        checked_folder(inside_local(folder, unquote(uri.removeprefix(root))), folder)

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
        runs = self.client.search_runs(
            [self.experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"]
        )
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
        return (
            redact(self.cfg.uri) or "embedded"
        )  # not the path: a study whose folder was moved keeps its runs

    @property
    def _artifact_root(self) -> str:
        return self.storage.local("mlflow-artifacts").as_uri()
