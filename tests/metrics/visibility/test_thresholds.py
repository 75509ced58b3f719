"""What the thresholds of the rule cost: the table of docs/visibility.md is what the rule gives, exactly."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.metrics.visibility.decision import label_of
from deltasae_ray.metrics.visibility.resampled import counted, share_interval

DOCS = Path(__file__).parents[3] / "docs" / "visibility.md"
JUDGED = (24, 64, 128)
LABELS = ("VISIBLE", "PARTLY VISIBLE", "NOT VISIBLE", "INCONCLUSIVE")


@cache
def labels(n: int) -> np.ndarray:
    """The label of each count of latents that are not visible, of n judged ones."""
    return np.array([label_of(share_interval(counted(c, c, n)), n) for c in range(n + 1)])


def probabilities(f: float) -> list[list[float]]:
    """Label → its probability where f is true, by how many latents are judged."""
    draws = {n: stats.binom.pmf(np.arange(n + 1), n, f) for n in JUDGED}
    return [[float(draws[n] @ (labels(n) == label)) for n in JUDGED] for label in LABELS]


def table() -> dict[float, list[list[float]]]:
    """f → cells of the row, as the page has them."""
    lines = DOCS.read_text().split("| true f |")[1].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return {float(f): [[float(x) for x in cell.split(", ")] for cell in cells] for f, *cells in rows}


def test_the_table_of_error_costs_is_that_of_the_rule() -> None:
    rows = table()
    assert {0.0, 0.1, 0.5} <= rows.keys(), "no error, and both borders"
    for f, cells in rows.items():
        for cell, exact in zip(cells, probabilities(f), strict=True):
            assert cell == pytest.approx(exact, abs=0.0051), f
