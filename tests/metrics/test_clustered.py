"""Intervals over few documents whose rows resemble each other."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from deltasae_ray.metrics.coding.dictionary_coding import make_coder, structure
from deltasae_ray.metrics.coding.missing_share import Comparison, over_control, share_missing
from deltasae_ray.metrics.coding.sample import Coded, Resamples, coded
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.ratios import Ratio, difference
from deltasae_ray.metrics.statistics import bootstrap_counts, document_interval, percentile_interval
from tests.metrics.visibility.worlds import Rows, units

ROWS = 40
"""Of each document."""
SIDES = ("delta", "reference", "control")


def covered(measure: Measure, truth: float) -> bool:
    return measure.ci is not None and measure.ci[0] <= truth <= measure.ci[1]


def test_thirty_documents_of_like_rows_are_covered_where_percentiles_do_not() -> None:
    """Shares of energy, of documents that differ in both, as where a text is on one matter."""
    rng, found, plain = np.random.default_rng(0), [], []
    for _ in range(400):
        size = np.exp(rng.standard_normal(30))
        share = rng.beta(2, 2, 30)
        ratio = Ratio(np.stack([size * share, size], 1), lambda s: s[:, 0] / s[:, 1])
        counts = bootstrap_counts(30, 300, rng)
        found.append(covered(ratio.measure(counts), 0.5))
        low, high = percentile_interval(ratio.draws(counts)) or (1, 0)
        plain.append(low <= 0.5 <= high)
    assert np.mean(found) >= 0.94 > 0.92 > np.mean(plain)


def test_one_document_that_makes_an_interval_leaves_it_few_degrees_of_freedom() -> None:
    alike, one = np.linspace(-1, 1, 40), np.r_[np.zeros(39), 1.0]
    narrow, wide = (document_interval(0.0, x / x.std(), np.zeros(10)) for x in (alike, one))
    assert narrow is not None and wide is not None and wide[1] > 1.9 * narrow[1]
    assert document_interval(0.0, np.array([0.0, np.nan]), np.zeros(10)) is None
    still = document_interval(1.0, np.ones(40), np.array([0.0, 2.0]))
    assert still is not None and still[0] < 0, "what the draws vary by besides documents stays"


@dataclass(frozen=True)
class Documents:
    """Very many documents, coded once by three dictionaries: repetitions draw some of them."""

    parts: dict[str, Coded]

    @classmethod
    def planted(cls, count: int = 1500) -> "Documents":
        """Documents prefer features, and differ in strength, so that what the reference leaves has an
        intraclass correlation of .3."""
        g = torch.Generator().manual_seed(0)
        line, d, features = Rows(count * ROWS, ROWS, g), 64, 48
        atoms = units(features, d, g)
        codes = line.codes(features, 4, (0.5, 1.5), liking=1.0)
        strength = torch.exp(0.2 * torch.randn(count, generator=g)).repeat_interleave(ROWS)
        x = codes @ atoms * strength[:, None] + 0.01 * torch.randn(len(codes), d, generator=g)
        half = features // 2
        held = {
            "delta": atoms,
            "reference": torch.cat([atoms[:half], units(half, d, g)]),
            "control": torch.cat([atoms[half // 2 : half // 2 + half], units(half, d, g)]),
        }
        coder = make_coder(
            x,
            x[:8000],
            line.doc_ids,
            Moments.of(x[:8000]),
            Settings(k=4, code_tokens=len(x), null_draws=5, bootstrap=2, seed=0),
        )
        pursuits = {side: coder.code(held[side]).pursuits for side in SIDES}
        left = (pursuits["reference"][0].residual_energy[:, -1]).double().numpy().reshape(count, ROWS)
        between, within = ROWS * left.mean(1).var(ddof=1), left.var(1, ddof=1).mean()
        assert 0.25 < (between - within) / (between + (ROWS - 1) * within) < 0.35
        return cls({side: coded(coder.sample, pursuits[side], "energy") for side in SIDES})

    def figures(self, chosen: np.ndarray, bootstrap: int, seed: int) -> dict[str, Measure]:
        """Six figures of some of the documents."""
        parts = {k: replace(x, left=x.left[chosen], total=x.total[chosen]) for k, x in self.parts.items()}
        resamples = Resamples.draw(len(chosen), 5, bootstrap, seed)
        delta, reference, control = (structure(parts[side], resamples) for side in SIDES)
        sides = [
            Comparison(None, share_missing(x, delta, 30.0), x, delta, "energy")  # type: ignore[arg-type]
            for x in (reference, control)
        ]
        fvu = {
            k: Ratio(np.stack([x.left[:, 0], x.total[:, 0]], 1), lambda s: s[:, 0] / s[:, 1])
            for k, x in parts.items()
        }
        return {
            "structure_delta": delta.measure,
            "missing_share": sides[0].missing,
            "missing_share_base_control": sides[1].missing,
            "missing_share_over_base": over_control(*sides),
            "fvu_reference": fvu["reference"].measure(resamples.counts),
            "gain": difference(fvu["delta"], [fvu["reference"]], resamples.counts),
        }


@pytest.fixture(scope="module")
def documents() -> Documents:
    return Documents.planted()


@pytest.mark.prove
@pytest.mark.parametrize("count", [30, 60, 120])
def test_figures_of_the_verdict_are_covered_over_clustered_documents(
    documents: Documents, count: int
) -> None:
    every = np.arange(len(documents.parts["delta"].left))
    truth = {k: x.value for k, x in documents.figures(every, 2, 0).items()}
    rng, hits = np.random.default_rng(count), {k: 0 for k in truth}
    for seed in range(1000):
        for name, found in documents.figures(rng.choice(every, count), 400, seed).items():
            hits[name] += covered(found, float(truth[name] or 0))
    assert min(hits.values()) >= 930, hits
