"""Firing together beyond token and position: uniform p where only these are shared, power where more is."""

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.visibility.together import Surplus, coactivation_within, strata

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

    def measured(self, own: np.ndarray, partner: np.ndarray, *, placed: bool = True) -> Measure:
        positions = self.positions if placed else None
        return coactivation_within(own, partner > 0, self.tokens, positions, self.docs, bootstrap=100)


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
    assert found.ci is not None and found.null < found.ci[0] < found.value < found.ci[1]


def test_a_partner_that_never_fires_leaves_it_undefined() -> None:
    text = Text(3)
    assert text.measured(text.codes(), 0 * text.codes()).value is None


def test_strata_are_tokens_within_bands_of_positions() -> None:
    found = strata(np.array(["a", "a", "a", "b", "a"]), np.array([0, 1, 4, 4, 5]))
    assert found[1] == found[2] and len({found[0], found[1], found[3], found[4]}) == 4
    assert strata(np.array([7, 7, 8]), None).tolist()[0:2] == [0, 0]
