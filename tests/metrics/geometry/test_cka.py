"""Unbiased CKA against a naive formula, on data whose answer is known, and with documents as the unit."""

import numpy as np
import pytest

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.geometry.cka import linear_cka, minibatches
from deltasae_ray.metrics.statistics import document_codes

RNG = np.random.default_rng(0)


def hsic_terms(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Song et al. 2012, equation 5, written out: of x with y, of x, of y."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n, one = len(k), np.ones(len(k))
        return (
            np.trace(k @ m)
            + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ m @ one)
        ) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    return hsic(k, m), hsic(k, k), hsic(m, m)


def naive(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith's ratio of them."""
    xy, xx, yy = hsic_terms(x, y)
    return xy / np.sqrt(xx * yy)


def biased(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_it_is_the_published_formula() -> None:
    x = RNG.normal(size=(120, 20))
    y = x @ RNG.normal(size=(20, 30)) + 3 * RNG.normal(size=(120, 30)) + 5
    assert linear_cka(x, y).value == pytest.approx(naive(x, y), abs=1e-10)


def test_minibatches_average_the_terms_and_not_the_ratio() -> None:
    """Several batches of few rows: the mean of their ratios would be another figure."""
    rng = np.random.default_rng(1)
    codes, x = np.repeat(np.arange(40), 3), rng.normal(size=(120, 6)) * np.linspace(3, 0.2, 6)
    y = x + 2 * rng.normal(size=(120, 6))
    batches = [b.numpy() for b in minibatches(codes, 40, 3, 10, np.random.default_rng(0))]
    assert len(batches) == 12 and {len(b) for b in batches} == {10}
    terms = np.array([hsic_terms(x[b], y[b]) for b in batches])
    xy, xx, yy = terms.mean(0)
    found = linear_cka(x, y, codes, rounds=3, max_rows=10, seed=0).value
    assert found == pytest.approx(xy / np.sqrt(xx * yy), abs=1e-10)
    of_ratios = np.mean(terms[:, 0] / np.sqrt(terms[:, 1] * terms[:, 2]))
    assert abs(of_ratios - found) > 0.005


def test_independent_data_gives_nothing_where_the_biased_figure_gives_almost_everything() -> None:
    x, y = RNG.normal(size=(200, 1000)), RNG.normal(size=(200, 1000))
    m = linear_cka(x, y)
    assert biased(x, y) == pytest.approx(0.83, abs=0.02)
    assert abs(m.value) < 0.02
    assert m.p > 0.01 and abs(m.null) < 0.01
    assert m.ci[0] < 0 < m.ci[1]


def test_shift_scale_and_rotation_change_nothing() -> None:
    x, y = RNG.normal(size=(100, 10)), RNG.normal(size=(100, 10))
    y[:, :5] += x[:, :5]
    q = np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    one, other = linear_cka(x, y), linear_cka(7 * x @ q + 100, y / 3 - 4)
    assert other.value == pytest.approx(one.value, abs=1e-8)
    assert linear_cka(x, x).value == pytest.approx(1)


def test_a_minibatch_holds_one_row_of_each_document() -> None:
    docs = np.repeat(np.arange(50), RNG.integers(1, 9, size=50))
    codes, num_docs = document_codes(docs)
    batches = minibatches(codes, num_docs, 4, 1024, np.random.default_rng(0))
    assert len(batches) == 4
    for rows in batches:
        assert sorted(docs[rows]) == list(range(50))
    assert sum(len(b) for b in minibatches(codes, num_docs, 4, 20, np.random.default_rng(0))) == 4 * 50


def test_rows_of_one_document_do_not_count_as_agreement() -> None:
    docs = np.repeat(np.arange(60), 20)
    x, y = (np.repeat(RNG.normal(size=(60, 30)), 20, 0) + 0.3 * RNG.normal(size=(1200, 30)) for _ in range(2))
    assert abs(linear_cka(x, y, docs).value) < 0.03
    apart = linear_cka(x, y)
    assert (
        apart.p < 0.05 or apart.value > linear_cka(x, y, docs).value
    )  # pooled rows find agreement that is not there


def test_duplicated_tokens_do_not_shrink_the_interval() -> None:
    docs = np.repeat(np.arange(60), 4)
    x = RNG.normal(size=(240, 12))
    y = x + 2 * RNG.normal(size=(240, 12))
    once, thrice = (
        linear_cka(x, y, docs),
        linear_cka(np.repeat(x, 3, 0), np.repeat(y, 3, 0), np.repeat(docs, 3)),
    )
    assert (thrice.ci[1] - thrice.ci[0]) > 0.7 * (once.ci[1] - once.ci[0])


def test_few_documents_have_no_interval_and_fewer_no_figure() -> None:
    x = RNG.normal(size=(40, 8))
    m = linear_cka(x, x + RNG.normal(size=x.shape), np.repeat(np.arange(20), 2))
    assert m.value is not None and m.ci is None and "20 evaluation documents" in m.reason
    with pytest.raises(GeometryError, match="3 documents"):
        linear_cka(x[:6], x[:6], np.repeat(np.arange(3), 2))
    with pytest.raises(GeometryError, match="same rows"):
        linear_cka(x, x[:-1])


def test_no_variance_is_undefined() -> None:
    assert linear_cka(np.ones((40, 3)), RNG.normal(size=(40, 3))).value is None
