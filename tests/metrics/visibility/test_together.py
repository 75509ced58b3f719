"""Firing together beyond token and position: uniform p where only these are shared, power where more is."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.firing.coactivation import coactivation_within_tokens
from deltasae_ray.metrics.firing.firings import Firings
from deltasae_ray.metrics.firing.surplus import Surplus, strata
from deltasae_ray.metrics.inputs import LayerRows
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.statistics import bootstrap_counts

DOCUMENTS, PLACES, LATENTS, VOCABULARY = 60, 25, 12, 15


class Text:
    """Tokens of some documents, and codes whose latents prefer tokens, positions, documents."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tokens = self.rng.integers(0, VOCABULARY, DOCUMENTS * PLACES)
        self.positions = np.tile(np.arange(PLACES), DOCUMENTS)
        self.docs = np.repeat(np.arange(DOCUMENTS), PLACES)
        self.by_token = 2 * self.rng.standard_normal((VOCABULARY, LATENTS))

    def codes(self, *, shared: bool = True, by_document: float = 0.0, first: float = 0.0) -> np.ndarray:
        """[row, latent]; each side draws by itself, but for the preference of tokens where that is shared."""
        of_token = self.by_token if shared else 2 * self.rng.standard_normal((VOCABULARY, LATENTS))
        likes = (
            of_token[self.tokens] + by_document * self.rng.standard_normal((DOCUMENTS, LATENTS))[self.docs]
        )
        likes = likes + first * (self.positions == 0)[:, None] - 2.0
        fired = self.rng.random(likes.shape) < stats.norm.cdf(likes)
        return fired * self.rng.uniform(0.5, 1.5, likes.shape)

    def measured(
        self, own: np.ndarray, partner: np.ndarray, *, placed: bool = True, second: np.ndarray | None = None
    ) -> Measure:
        """Each latent's partner is that of its own number: on training rows only these fire together."""
        alone = csr_array(np.eye(LATENTS, dtype=np.float32))
        sides = [Firings(alone, csr_array(x.astype(np.float32))) for x in (own, partner)]
        twin = None if second is None else Firings(alone, csr_array(second.astype(np.float32)))
        stratum = strata(self.tokens, self.positions if placed else None)
        counts = bootstrap_counts(DOCUMENTS, 100, self.rng)
        return coactivation_within_tokens(*sides, stratum, counts, self.rng, second=twin)


def test_p_is_uniform_where_both_only_know_the_token_though_documents_differ() -> None:
    """The null that exchanges whole documents calls this agreement, always."""
    p, phi, null = [], [], []
    for seed in range(200):
        text = Text(seed)
        found = text.measured(text.codes(by_document=1.0), text.codes(by_document=1.0))
        p.append(found.p)
        phi.append(found.value)
        null.append(found.null)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert np.mean(phi) > 0.3 and np.mean(null) == pytest.approx(np.mean(phi), abs=0.01)


def test_each_latent_has_a_uniform_p_too() -> None:
    p = []
    for seed in range(60):
        text = Text(1000 + seed)
        own, partner = text.codes() > 0, text.codes() > 0
        found = Surplus.of(own, partner, strata(text.tokens, text.positions), text.docs)
        often = np.minimum(own.sum(0), partner.sum(0)) > 100
        p.extend(found.p(text.rng)[often])
    assert len(p) > 200 and stats.kstest(p, "uniform").pvalue > 0.01


def test_the_first_position_is_held_fixed_where_positions_are_given() -> None:
    text = Text(1)
    own, partner = text.codes(shared=False, first=4.0), text.codes(shared=False, first=4.0)
    assert text.measured(own, partner).p > 0.01 and text.measured(own, partner, placed=False).p < 0.01


def test_what_fires_together_on_the_same_rows_lies_above_the_null_with_its_interval() -> None:
    text = Text(2)
    own, other = text.codes(), text.codes()
    copy = np.where(text.rng.random(own.shape) < 0.6, own, other)
    found = text.measured(own, copy)
    assert found.p == pytest.approx(1 / 2000) and found.value > found.null + 0.2
    placed = text.measured(own, copy, second=own)
    assert placed.ceiling == pytest.approx(1.0) and 0.3 < placed.kappa < 0.9
    assert placed.kappa_ci is not None and placed.kappa_ci[0] < placed.kappa < placed.kappa_ci[1]
    assert found.ci is not None and found.null < found.ci[0] < found.value < found.ci[1]


def test_a_partner_that_never_fires_leaves_it_undefined() -> None:
    text = Text(3)
    assert text.measured(text.codes(), 0 * text.codes()).value is None
    own, other = text.codes(), text.codes()
    text.tokens = np.arange(len(text.tokens))
    assert "once" in text.measured(own, other).reason


def test_strata_are_tokens_within_bands_of_positions() -> None:
    found = strata(np.array(["a", "a", "a", "b", "a"]), np.array([0, 1, 4, 4, 5]))
    assert found[1] == found[2] and len({found[0], found[1], found[3], found[4]}) == 4
    assert strata(np.array([7, 7, 8]), None).tolist()[0:2] == [0, 0]


def test_rows_of_a_layer_know_their_strata_where_tokens_are_given() -> None:
    x = np.zeros((6, 2), dtype=np.float32)
    some, docs = np.array([0, 1, 4]), [0] * 6
    assert LayerRows(x, x, x, x, docs, docs).strata(some) is None
    known = LayerRows(x, x, x, x, docs, docs, eval_tokens=np.array([5, 5, 7, 7, 5, 8]))
    assert known.strata(some).tolist() == [0, 0, 0]
    apart = replace(known, eval_positions=np.array([0, 1, 2, 3, 60, 70]))
    assert len(set(apart.strata(some).tolist())) == 3
    with pytest.raises(GeometryError, match="eval_tokens has 2 entries"):
        replace(known, eval_tokens=np.zeros(2, int))
