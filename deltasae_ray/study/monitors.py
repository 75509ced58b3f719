"""The user's monitors in a study: kept at the plan, measured after the comparison."""

from collections.abc import Sequence

from deltasae_ray.analyses.monitors.kept import MonitorRef
from deltasae_ray.analyses.monitors.run import TextShape, monitor_rows
from deltasae_ray.analyses.monitors.table import MonitorRow, write_monitors
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.state import StudyState


def watch(study: Study, state: StudyState) -> list[MonitorRow]:
    """Measures every monitor under every adapter and writes the table; without monitors there is
    none."""
    assert state.harvest is not None
    rows: list[MonitorRow] = []
    if study.monitors:
        shape = TextShape(study.cfg.corpus.context_len, study.cfg.corpus.contexts_per_unit)
        adapters = state.harvest.adapters
        rows = monitor_rows(
            study.context, state.harvest.key, study.monitors, adapters, study.cfg.diverge, shape
        )
    write_monitors(study.storage, rows)
    return rows


def describe_monitors(monitors: Sequence[MonitorRef]) -> str:
    """What the plan says of them."""
    parts = [f"{m.name} ({m.hookpoint}, {m.texts:,} labelled texts)" for m in monitors]
    return ", ".join(parts)
