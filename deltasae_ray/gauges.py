"""What a study shows of itself while it runs, by Ray's own metrics: Prometheus reads them from every node."""

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from deltasae_ray.heartbeat import LABELS


@dataclass(frozen=True)
class Shown:
    """A metric. Prometheus sees it as `ray_deltasae_NAME`; a counter with `_total` behind it."""

    kind: Literal["gauge", "counter"]
    help: str
    tags: tuple[str, ...] = ()
    """Beside `run` and `stage`, which all have."""

    def series(self, name: str) -> str:
        """Name of the gauge in Prometheus."""
        return f"ray_deltasae_{name}" + ("_total" if self.kind == "counter" else "")


ALL = {
    "tokens": Shown("counter", "Tokens that gangs have run the model over.", ("gang",)),
    "units_done": Shown("gauge", "Units of the stage that are done."),
    "units": Shown("gauge", "Units of the stage."),
    "last_unit": Shown("gauge", "When the last unit was done, in seconds since 1970."),
    "restarts": Shown("counter", "Gangs that were lost and started again.", ("reason",)),
    "retries": Shown("counter", "Units that a gang ran again after a loss.", ("gang",)),
    "snr": Shown("gauge", "Signal to noise of an adapter's deltas.", ("adapter", "hookpoint")),
    "fvu": Shown("gauge", "Held-out share of variance that a dictionary leaves.", ("adapter", "dictionary")),
    "dead_share": Shown("gauge", "Share of a dictionary's latents that are dead.", ("adapter", "dictionary")),
    "queue": Shown("gauge", "Units or tasks of the stage that wait or run."),
    "dollars": Shown("gauge", "Dollars that the nodes of this run have cost so far, at list prices."),
}


def show(name: str, value: float, **tags: str) -> None:
    """Sets a gauge; does nothing where no Ray runs."""
    if _ray_runs():
        _metric(name).set(float(value), tags=_tags(name, tags))


def count(name: str, by: float = 1.0, **tags: str) -> None:
    """Adds to a counter; does nothing where no Ray runs, or by nothing."""
    if by > 0 and _ray_runs():
        _metric(name).inc(float(by), tags=_tags(name, tags))


def _ray_runs() -> bool:
    ray: Any = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge

    shown = ALL[name]
    metric = Gauge if shown.kind == "gauge" else Counter
    return metric(f"deltasae_{name}", description=shown.help, tag_keys=("run", "stage", *shown.tags))


def _tags(name: str, own: dict[str, str]) -> dict[str, str]:
    wanted = ("run", "stage", *ALL[name].tags)
    return {tag: str(own.get(tag, LABELS.get(tag, ""))) for tag in wanted}
