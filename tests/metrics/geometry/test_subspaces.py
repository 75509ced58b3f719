"""Principal angles against scipy, at the resolution that arccos lacks, and their null."""

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.geometry.isotropic import random_subspace_angle
from deltasae_ray.metrics.geometry.subspaces import principal_angles, principal_subspace

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("ka", "kb"), [(1, 1), (3, 7), (7, 3), (12, 20)])
def test_angles_agree_with_scipy_in_ascending_order(ka: int, kb: int) -> None:
    a, b = RNG.normal(size=(40, ka)), RNG.normal(size=(40, kb))
    np.testing.assert_allclose(principal_angles(a, b), subspace_angles(a, b)[::-1], atol=1e-13)


@pytest.mark.parametrize("angle", [1e-10, 1e-6, 0.5, np.pi / 2])
def test_a_planted_angle_is_recovered(angle: float) -> None:
    q = np.linalg.qr(RNG.normal(size=(30, 6)))[0]
    b = q[:, :3].copy()
    b[:, 0] = np.cos(angle) * q[:, 0] + np.sin(angle) * q[:, 4]
    found = principal_angles(q[:, :3] @ RNG.normal(size=(3, 3)), b)
    assert found[-1] == pytest.approx(angle, rel=1e-5)
    assert found[0] < 1e-14 and found.dtype == np.float64


def test_a_span_that_is_everything_is_refused() -> None:
    for k in (8, 12):
        with pytest.raises(GeometryError, match="whole space"):
            principal_angles(RNG.normal(size=(8, k)), RNG.normal(size=(8, 2)))
    with pytest.raises(GeometryError, match="whole space"):
        principal_angles(RNG.normal(size=(8, 2)), RNG.normal(size=(8, 8)))


def test_dependent_columns_and_different_spaces_are_refused() -> None:
    a = RNG.normal(size=(8, 2))
    with pytest.raises(GeometryError, match="span only 2"):
        principal_angles(np.hstack([a, a[:, :1]]), a)
    with pytest.raises(GeometryError, match="one space"):
        principal_angles(a, RNG.normal(size=(9, 2)))


@pytest.mark.parametrize(("k", "degrees"), [(64, 83.4), (128, 80.7), (256, 76.7), (512, 70.6)])
def test_the_random_subspace_null_is_that_of_the_published_setting(k: int, degrees: float) -> None:
    assert random_subspace_angle(k, k, 3584) == pytest.approx(degrees, abs=0.3)


@pytest.mark.parametrize(("ka", "kb", "d_model"), [(1, 1, 64), (5, 9, 40), (16, 16, 64), (30, 20, 40)])
def test_the_random_subspace_null_agrees_with_simulation(ka: int, kb: int, d_model: int) -> None:
    drawn = [
        np.degrees(principal_angles(RNG.normal(size=(d_model, ka)), RNG.normal(size=(d_model, kb)))).mean()
        for _ in range(300)
    ]
    assert random_subspace_angle(ka, kb, d_model) == pytest.approx(
        np.mean(drawn), abs=0.2 + 4 * np.std(drawn) / np.sqrt(300)
    )
    assert random_subspace_angle(kb, ka, d_model) == random_subspace_angle(ka, kb, d_model)


def test_the_principal_subspace_is_that_of_the_centred_rows() -> None:
    basis = np.linalg.qr(RNG.normal(size=(20, 3)))[0]
    x = RNG.normal(size=(500, 3)) * [3, 2, 1] @ basis.T + 100 * RNG.normal(size=20)
    found = principal_subspace(x, 3)
    assert found.shape == (20, 3)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-12)
    assert principal_angles(found, basis).max() < 1e-6
    assert abs(found[:, 0] @ (np.linalg.svd(x - x.mean(0))[2][0])) == pytest.approx(1)


def test_few_rows_give_the_same_subspace_as_their_svd() -> None:
    x = RNG.normal(size=(10, 50))
    wanted = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:4].T
    assert principal_angles(principal_subspace(x, 4), wanted).max() < 1e-7
    with pytest.raises(GeometryError, match="hold 9"):
        principal_subspace(x, 10)
    with pytest.raises(GeometryError, match="choose 1 to 49"):
        principal_subspace(x, 50)
