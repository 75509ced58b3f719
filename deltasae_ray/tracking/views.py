"""Saved views of MLflow's page: which runs of a study it lists, in which columns, and the charts above them.

The page keeps a view as a tag of the experiment, and opens it by a link that names the tag.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

TAG = "mlflow.sharedViewState."
SERVE = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows an embedded store."""
_SHOWN_RUNS = 100
"""Most runs that the page loads into a chart at once."""


@dataclass(frozen=True)
class View:
    """One link into MLflow's page."""

    name: str
    """Name in MLflow's menu of views."""
    key: str
    """Ending of the tag, and what the link says."""
    runs: str
    """Filter of the runs shown, in MLflow's search language."""
    columns: tuple[str, ...]
    """Such as "params.`rank`"."""
    charts: tuple[dict[str, Any], ...] = ()
    opens: Literal["TABLE", "CHART"] = "CHART"

    def link(self, server: str, experiment_id: str) -> str:
        """The address that opens it among the training runs."""
        words = f"viewStateShareKey={self.key}&compareRunsMode={self.opens}&workflowType=machine_learning"
        return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{words}"

    def value(self, created_ms: int) -> str:
        """The tag's value: a name and the page's own state."""
        section = f"{self.key}-charts"
        charts = [
            {"uuid": f"{self.key}-{i}", "metricSectionId": section, "deleted": False, "isGenerated": False}
            | {"runsCountToCompare": _SHOWN_RUNS}
            | chart
            for i, chart in enumerate(self.charts)
        ]
        state = {
            "searchFilter": self.runs,
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "selectedColumns": list(self.columns),
            "compareRunCharts": charts,
            "compareRunSections": [
                {"uuid": section, "name": self.name, "display": True, "isReordered": False}
            ],
        }
        return json.dumps({"name": self.name, "createdAt": created_ms, "state": json.dumps(state)})


def study_views(study: str, title: str, figure: str, behaviours: Sequence[str]) -> tuple[View, ...]:
    """The views of one study; another study of the experiment has its own.

    Args:
        study: the tag `deltasae.study` of its runs.
        title: what the study is called.
        figure: the metric of leaf runs that all charts show.
        behaviours: metrics of adapter runs, each drawn as bars.
    """
    shape = ("rank", "layer", "d_sae")
    about = ("adapter", *shape, "k", "seed")
    leaves = _runs_of(study, "leaf")
    columns = (*(f"params.`{name}`" for name in about), *(f"metrics.`{m}`" for m in (figure, "fvu")))
    charts: dict[str, dict[str, Any]] = {
        "parallel coordinates": {
            "type": "PARALLEL", "selectedParams": list(shape), "selectedMetrics": [figure],
            "showAllRuns": False,
        },
        "rank against the figure": {"type": "SCATTER", "xaxis": _param("rank"), "yaxis": _metric(figure)},
        "layer against the figure": {"type": "SCATTER", "xaxis": _param("layer"), "yaxis": _metric(figure)},
        "rank and size": {
            "type": "CONTOUR", "xaxis": _param("rank"), "yaxis": _param("d_sae"), "zaxis": _metric(figure),
        },
    }  # fmt: skip
    short = study[:8]
    bars = tuple({"type": "BAR", "metricKey": m, "selectedMetricKeys": [m]} for m in behaviours)
    changed = ("params.`rank`", *(f"metrics.`{m}`" for m in behaviours))
    named = f"{title} ({short})"
    return (
        View(f"Dictionaries · {named}", f"{short}-table", leaves, columns, opens="TABLE"),
        View(f"Charts · {named}", f"{short}-charts", leaves, columns, tuple(charts.values())),
        View(f"Behaviours · {named}", f"{short}-behaviours", _runs_of(study, "adapter"), changed, bars),
    )


def _runs_of(study: str, level: str) -> str:
    return f"tags.`deltasae.study` = '{study}' and tags.level = '{level}'"


def _param(name: str) -> dict[str, str]:
    return {"key": name, "type": "PARAM"}


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}
