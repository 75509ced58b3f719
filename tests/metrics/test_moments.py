"""Moments merge exactly, and give the spectra that nulls are made of."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from deltasae_ray.errors import GeometryError, PrecisionError
from deltasae_ray.metrics.geometry.subspaces import principal_angles
from deltasae_ray.metrics.moments import Moments, Spectrum, matched_rows, moments_by_group, refined_subspace

X = (
    torch.randn(5000, 24, generator=torch.Generator().manual_seed(0)) * torch.linspace(5, 0.1, 24) + 30
).float()


@pytest.mark.parametrize("workers", [1, 3, 7])
def test_one_worker_and_many_give_the_same_moments(workers: int) -> None:
    whole, merged = Moments.of(X), reduce(add, (Moments.of(part) for part in X.chunk(workers)))
    assert merged.n == whole.n
    for name in ("mean", "covariance"):
        wanted = getattr(whole, name)
        torch.testing.assert_close(
            getattr(merged, name), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max())
        )


def test_moments_are_those_of_numpy_in_fp64() -> None:
    m, x = Moments.of(X), X.double().numpy()
    np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(m.covariance, np.cov(x.T, bias=True), rtol=1e-9, atol=1e-9)
    assert m.mean_share == pytest.approx((x.mean(0) ** 2).sum() / (x**2).sum(1).mean())


def test_taking_a_group_out_is_as_not_having_seen_it() -> None:
    group = np.arange(len(X)) % 5
    parts = moments_by_group(X, group, 5)
    torch.testing.assert_close(
        (Moments.of(X) - parts[2]).covariance, Moments.of(X[group != 2]).covariance, rtol=1e-9, atol=1e-9
    )


def test_columns_are_the_moments_of_those_columns() -> None:
    keep = torch.tensor([0, 3, 8])
    torch.testing.assert_close(Moments.of(X).columns(keep).covariance, Moments.of(X[:, keep]).covariance)


def test_the_participation_ratio_counts_directions() -> None:
    equal = Spectrum(torch.ones(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64))
    assert equal.participation_ratio == pytest.approx(8)
    one = Spectrum.of(torch.diag(torch.tensor([4.0, 0, 0, 0], dtype=torch.float64)))
    assert one.participation_ratio == pytest.approx(1) and one.rank == 1
    none = Spectrum.of(torch.zeros(4, 4, dtype=torch.float64))
    assert none.participation_ratio == 0 and none.rank == 0


def test_matched_rows_share_the_second_moments() -> None:
    spectrum = Moments.of(X).spectrum
    rows = matched_rows(spectrum, 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4000))
    wanted, found = Moments.of(X).covariance.ravel(), Moments.of(rows).covariance.ravel()
    assert float(torch.nn.functional.cosine_similarity(wanted, found, dim=0)) > 0.99


def test_subspace_iteration_reaches_the_leading_eigenvectors_of_a_nearby_covariance() -> None:
    whole, part = Moments.of(X), Moments.of(X[:4500])
    refined = refined_subspace(part.covariance, whole.spectrum.top(12))
    assert principal_angles(refined[:, :4], part.spectrum.top(4)).max() < 1e-3


def test_another_width_or_infinity_is_refused() -> None:
    with pytest.raises(GeometryError, match="merged"):
        Moments.of(X) + Moments.of(X[:, :5])
    with pytest.raises(PrecisionError, match="1 of 2"):
        Moments.of(np.array([[1.0, 2.0], [np.inf, 0.0]]))
