"""Which rows lead: figures over all seeds of a dictionary where there are several, as the verdict and the
printed table have it."""

from collections.abc import Collection, Sequence

from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.metrics.catalogue import BETWEEN
from deltasae_ray.metrics.over_seeds import pooled

ONE_SEED = (
    "One training seed of each dictionary: what another would give is not in the intervals (fit.seeds=2)."
)


def leading_rows(rows: Sequence[DivergenceRow], metrics: Collection[str]) -> list[DivergenceRow]:
    """The rows of `metrics` (whole names) in their order, each seed's own given up for the one over seeds
    wherever there is one."""
    means = {(r.figure, r.cell): r for r in rows if r.over_seeds}
    return list(dict.fromkeys(means.get((r.name, r.cell), r) for r in rows if r.name in metrics))


def seeds_notes(rows: Sequence[DivergenceRow]) -> list[str]:
    """A sentence on the seeds behind `leading_rows`; nothing where no dictionary that has a seed enters
    them."""
    if any(r.over_seeds for r in rows):
        return [
            "Means over the training seeds of each dictionary, where it has several; their spread is in the"
            " intervals."
        ]
    return [ONE_SEED] if any(r.metric not in BETWEEN and pooled(r.name) for r in rows) else []
