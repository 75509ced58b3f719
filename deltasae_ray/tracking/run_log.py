"""One run of MLflow: measures, curves and artifacts, written again without a trace."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BATCH = 1000  # MLflow's limit of metrics per call
_TAG_CHARS = 5000  # the server's limit of a tag's value
_NOT_IN_NAMES = re.compile(
    r"[^\w.\- /:]"
)  # what MLflow takes in no name, such as the brackets of an adapter's folder
_TABLES = "mlflow.loggedArtifacts"
"""Tag in which MLflow keeps which artifacts of a run are tables."""
_NAME_CHARS = 250  # its limit of a tag's name


class RunLog:
    """Writes to one run. Writing the same values again adds nothing to their history; a changed value follows
    the old one."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Parameters are for good: MLflow refuses another value under the same name."""
        from mlflow.entities import Param

        entities = [Param(name, redact(str(value))) for name, value in params.items()]
        for i in range(0, len(entities), 100):
            self._client.log_batch(self.run_id, params=entities[i : i + 100])

    def log_measures(self, measures: Mapping[str, Measure]) -> None:
        """`<metric>`, `.null`, `.ci_low` and `.ci_high`; "undefined" is a tag `<metric>` with its reason."""
        values: dict[str, float] = {}
        undefined: dict[str, str] = {}
        for name, measure in measures.items():
            low, high = measure.ci or (None, None)
            parts = {name: measure.value, f"{name}.null": measure.null}
            parts |= {f"{name}.ci_low": low, f"{name}.ci_high": high}
            values |= {key: float(value) for key, value in parts.items() if value is not None}
            if measure.value is None:
                undefined[name] = f"undefined: {measure.reason}"
        data = self._client.get_run(self.run_id).data
        changed = {name: value for name, value in values.items() if data.metrics.get(name) != value}
        self._log([(name, value, 0) for name, value in changed.items()], undefined)
        for name in measures:
            if name not in undefined and name in data.tags:
                self._client.delete_tag(self.run_id, name)

    def log_table(self, rows: Sequence[Mapping[str, object]], artifact_file: str) -> None:
        """A table that MLflow's page shows among a run's artifacts, and `mlflow.load_table` reads; the rows
        have the same columns.

        It replaces the one that is there, where MLflow's own call would add its rows a second time.
        """
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}
        self.log_text(json.dumps(table, allow_nan=False), artifact_file)
        kept = json.loads(self._client.get_run(self.run_id).data.tags.get(_TABLES, "[]"))
        if (entry := {"path": artifact_file, "type": "table"}) not in kept:
            self.set_tags({_TABLES: json.dumps([*kept, entry])})

    def log_datasets(self, datasets: Mapping[str, tuple[str, Mapping[str, int]]]) -> None:
        """What a run read: name → digest of its content and what was counted of it, such as tokens."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self._client.log_inputs(
            self.run_id,
            datasets=[
                DatasetInput(
                    Dataset(redact(name), content, "text", "{}", profile=json.dumps(dict(counts))),
                    [InputTag("mlflow.data.context", "training and evaluation")],
                )
                for name, (content, counts) in datasets.items()
            ],
        )

    def log_model(
        self, name: str, folder: Callable[[], Path], content: str, params: Mapping[str, object]
    ) -> None:
        """A dictionary as an MLflow model with this run as its source; its files are uploaded once, and the
        folder is not fetched where the run has a model of this digest.

        Args:
            content: digest of the files.
            params: what tells the dictionary from others.
        """
        from mlflow.entities import LoggedModelOutput

        run, tag = self._client.get_run(self.run_id), f"content.{name}"
        if run.data.tags.get(tag) == content:
            return
        experiment = run.info.experiment_id
        for left in self._client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{self.run_id}'"
        ):  # of a driver that was killed here, or of other files
            self._client.delete_logged_model(left.model_id)
        model = self._client.create_logged_model(
            experiment,
            name=redact(name),
            source_run_id=self.run_id,
            tags={"content": content},
            params={key: redact(str(value)) for key, value in params.items()},
            model_type="sparse autoencoder",
        )
        self._client.log_model_artifacts(model.model_id, str(folder()))
        self._client.finalize_logged_model(model.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, 0)])
        self.set_tags({tag: content})

    def log_layer_means(self, leaves: Mapping[str, Mapping[str, Measure]]) -> None:
        """The mean of every metric over leaves (named, such as "layer 9 seed 0"): value and null.

        Leaves where a metric is undefined are left out of its mean, and a tag says which.
        """
        means: dict[str, Measure] = {}
        notes: dict[str, str] = {}
        for metric in sorted({name for measures in leaves.values() for name in measures}):
            values = {leaf: measures[metric] for leaf, measures in leaves.items() if metric in measures}
            defined = [m for m in values.values() if m.value is not None]
            missing = [f"{leaf} ({m.reason})" for leaf, m in values.items() if m.value is None]
            if not defined:
                means[metric] = undefined("; ".join(missing))
                continue
            means[metric] = Measure(_mean(defined, "value"), null=_mean(defined, "null"))
            if missing:
                notes[f"{metric}.mean_of"] = (
                    f"{len(defined)} of {len(values)}; undefined at {'; '.join(missing)}"
                )
        self.log_measures(means)
        self._log([], notes)
        stale = {f"{metric}.mean_of" for metric in means} - notes.keys()
        for tag in stale & self._client.get_run(self.run_id).data.tags.keys():
            self._client.delete_tag(self.run_id, tag)

    def log_curve(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """A learning curve of (step, value), in as few calls as MLflow allows; points that are there already
        are skipped."""
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
        self._client.log_text(self.run_id, redact(text), artifact_file)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._log([], {_NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS]: value for name, value in tags.items()})

    def _log(self, metrics: Sequence[tuple[str, float, int]], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Metric, RunTag

        now = time.time_ns() // 1_000_000
        entities = [Metric(name, value, now, step) for name, value, step in metrics]
        for i in range(0, len(entities), _BATCH):
            self._client.log_batch(self.run_id, metrics=entities[i : i + _BATCH])
        shown = {name: redact(value) for name, value in tags.items()}
        notes = [
            RunTag(name, value if len(value) <= _TAG_CHARS else value[: _TAG_CHARS - 1] + "…")
            for name, value in shown.items()
        ]
        for i in range(0, len(notes), 100):
            self._client.log_batch(self.run_id, tags=notes[i : i + 100])


def _mean(measures: Sequence[Measure], part: str) -> float | None:
    values = [getattr(m, part) for m in measures]
    return sum(values) / len(values) if None not in values else None
