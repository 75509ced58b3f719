"""What stands beside a figure must be there, or there is a reason: said of every part that is missing."""

from deltasae_ray.metrics.catalogue import metric
from deltasae_ray.metrics.catalogue.entry import CEILING_NEEDS, Metric
from deltasae_ray.metrics.measure import Measure

UNKNOWN = "not measured here"
"""For a part that the catalogue promises and no reason explains: a test holds that no figure needs it."""


def lacking(name: str, m: Measure) -> str:
    """Which of null, ceiling, kappa and p a defined figure lacks, each with why: `ceiling: it takes a second
    seed of …; kappa: …`.

    An undefined figure lacks nothing but its value, whose reason it has.
    """
    if m.value is None:
        return ""
    entry = metric(name)
    absent = {
        "null": (m.null, _null),
        "ceiling": (m.ceiling, _ceiling),
        "kappa": (m.kappa, _kappa),
        "p": (m.p, _p),
    }
    return "; ".join(f"{part}: {why(entry, m)}" for part, (value, why) in absent.items() if value is None)


def _null(entry: Metric, m: Measure) -> str:  # noqa: ARG001 - one signature for all parts
    return entry.no_null or UNKNOWN


def _ceiling(entry: Metric, m: Measure) -> str:
    if entry.no_ceiling:
        return entry.no_ceiling
    if m.why("ceiling"):
        return m.why("ceiling")
    return next((needs for text, needs in CEILING_NEEDS.items() if text in entry.ceiling), UNKNOWN)


def _kappa(entry: Metric, m: Measure) -> str:
    if m.null is None or m.ceiling is None:
        return "it takes a null and a ceiling"
    return entry.no_kappa or m.why("kappa") or UNKNOWN


def _p(entry: Metric, m: Measure) -> str:
    if entry.tail is None:
        return "no tail of it speaks against the null" if m.null is not None else "it takes a null"
    return entry.no_p or m.why("p") or UNKNOWN
