"""Which rows lead: figures over all seeds of a dictionary where there are several, as the verdict and the printed table have it."""

from collections.abc import Collection, Sequence

from deltasae_ray.metrics.catalogue import BETWEEN, SEEDS
from deltasae_ray.metrics.over_seeds import pooled
from deltasae_ray.report.inputs import Row

ONE_SEED = "One training seed of each dictionary: what another would give is not in the intervals (fit.seeds=2)."


def shape(r: Row) -> tuple:
    """Rows that agree in this are of one dictionary, but for its seed."""
    return (r.adapter, r.layer, r.d_sae, r.k, r.architecture)


def leading_rows(rows: Sequence[Row], metrics: Collection[str]) -> list[Row]:
    """The rows of `metrics` in their order, each seed's own given up for the one over seeds wherever there is one."""
    means = {(r.metric.removesuffix(SEEDS), shape(r)): r for r in rows if r.metric.endswith(SEEDS)}
    return list(dict.fromkeys(means.get((r.metric, shape(r)), r) for r in rows if r.metric in metrics))


def seeds_notes(rows: Sequence[Row]) -> list[str]:
    """A sentence on the seeds behind `leading_rows`; nothing where no dictionary that has a seed enters them."""
    if any(r.metric.endswith(SEEDS) for r in rows):
        return ["Means over the training seeds of each dictionary, where it has several; their spread is in the intervals."]
    return [ONE_SEED] if any(_of_seed(r.metric) for r in rows) else []


def _of_seed(metric: str) -> bool:
    return not metric.endswith(BETWEEN) and pooled(metric)
