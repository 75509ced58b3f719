"""Rows with the moments of others and nothing beyond them."""

import pytest
import torch

from deltasae_ray.fit.featureless import gaussian_rows
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.sae.threads import threads
from tests.sae.planted import planted


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Sparse combinations of atoms around a constant shift."""
    return planted(0, rows=20_000, d_model=24, subspace=12, atoms=40).x + 0.5


def test_mean_and_covariance_are_those_of_the_rows(rows: torch.Tensor) -> None:
    real, drawn = Moments.of(rows), Moments.of(gaussian_rows(rows, 0))
    assert drawn.n == real.n
    se = (real.covariance.diagonal() / real.n).sqrt()
    assert ((drawn.mean - real.mean).abs() < 5 * se + 1e-6).all()
    assert float((drawn.covariance - real.covariance).norm() / real.covariance.norm()) < 0.03


def test_nothing_beyond_them_is_left(rows: torch.Tensor) -> None:
    """Sparse codes have heavy tails along their atoms; a Gaussian has a kurtosis of 3 in every direction."""

    def kurtosis(x: torch.Tensor) -> torch.Tensor:
        along = (x - x.mean(0)) @ planted(0, rows=20_000, d_model=24, subspace=12, atoms=40).atoms.T
        return (along**4).mean(0) / (along**2).mean(0) ** 2

    assert (kurtosis(rows) - 3).abs().max() > 0.5 > 0.25 > (kurtosis(gaussian_rows(rows, 0)) - 3).abs().max()


def test_the_same_seed_draws_the_same_rows_on_any_number_of_threads_and_another_others(
    rows: torch.Tensor,
) -> None:
    with threads(1):
        one = gaussian_rows(rows, 7)
    with threads(2):
        other = gaussian_rows(rows, 7)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not torch.allclose(one, gaussian_rows(rows, 8), atol=0.1)


def test_directions_without_energy_stay_empty(rows: torch.Tensor) -> None:
    flat = rows.clone()
    flat[:, 3] = 2.0
    drawn = gaussian_rows(flat, 0)
    assert torch.isfinite(drawn).all() and (drawn[:, 3] - 2).abs().max() < 1e-3
