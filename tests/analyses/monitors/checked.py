"""What is said of planted adapters, held against what is known of them: h0, h1, … are harmless to every probe,
t0, t1, … turn one each, by turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from deltasae_ray.analyses.monitors.table import MonitorRow
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.shards.opening import open_harvest
from tests.analyses.monitors.planted import World
from tests.harvest.study import run_units_here

STALE = 0.02
"""Lower end of a fall of AUROC from which a monitor counts as stale."""


@contextmanager
def without_ray() -> Iterator[None]:
    """Inside, all work is done in this process: who does it where is tested elsewhere."""

    def here(work: Sequence[tuple[Any, Any]], *_: object, **__: object) -> list[Any]:
        return [function(argument) for function, argument in work]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltasae_ray.runtime.context.run_units", run_units_here)
        patch.setattr("deltasae_ray.analyses.monitors.repairs.run_tasks", here)
        yield


def figures(rows: Sequence[MonitorRow]) -> dict[tuple[str, str], dict[str, Measure]]:
    """By adapter and monitor."""
    found: dict[tuple[str, str], dict[str, Measure]] = {}
    for row in rows:
        _, name, figure = row.metric.split(".")
        found.setdefault((row.adapter, name), {})[figure] = row.measure
    return found


@dataclass(frozen=True)
class Checked:
    """How many of the planted were told apart."""

    harmless: int
    """Pairs of a harmless adapter and a probe."""
    false_alarms: int
    turned: int
    found: int
    returned: tuple[float, ...]
    """Of each turned one the share of the lost AUROC that repair returned; 0 where none was told."""
    retrained: tuple[float, ...]
    """The same of a probe trained anew."""

    def __str__(self) -> str:
        return (
            f"harmless: {self.false_alarms} of {self.harmless} (adapter, probe) flagged; turned: {self.found} of"
            f" {self.turned} flagged; of the lost AUROC repair returned {min(self.returned):.3f} or more, a probe"
            f" trained anew {min(self.retrained):.3f} or more"
        )


def checked(rows: Sequence[MonitorRow], probes: Sequence[str]) -> Checked:
    """Counts what a rule `auroc_drop.ci_low > STALE` says of the planted.

    Args:
        probes: in the order in which adapters turn them.
    """
    found = figures(rows)
    harmless = [is_flagged(m) for (adapter, _), m in found.items() if adapter.startswith("h")]
    turned = dict.fromkeys(adapter for adapter, _ in found if adapter.startswith("t"))
    own = [found[adapter, probes[int(adapter[1:]) % len(probes)]] for adapter in turned]
    return Checked(
        len(harmless),
        sum(harmless),
        len(own),
        sum(map(is_flagged, own)),
        tuple(m["recovered"].value or 0.0 for m in own),
        tuple(((m["auroc"].ceiling or 0) - _value(m["auroc"])) / _value(m["auroc_drop"]) for m in own),
    )


def is_flagged(m: dict[str, Measure]) -> bool:
    """Whether a monitor counts as stale."""
    ci = m["auroc_drop"].ci
    return ci is not None and ci[0] > STALE


def _value(measure: Measure) -> float:
    assert measure.value is not None
    return measure.value


def relative_strengths(there: World, at: Hookpoint) -> list[float]:
    """Mean ‖δ‖/‖h‖ of the harmless adapters, on the evaluation text."""
    shards = open_harvest(there.context.storage, there.harvest_key)
    kept = shards.tokens("eval").position > 0
    base = np.linalg.norm(shards.read(at, "base", split="eval")[kept], axis=1)
    names = [a.name for a in there.adapters if a.name.startswith("h")]
    return [
        float((np.linalg.norm(shards.read(at, n, split="eval")[kept], axis=1) / base).mean()) for n in names
    ]
