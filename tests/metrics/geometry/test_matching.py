"""Matching of decoder rows, and what chance gives."""

import math

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.divergence.pair_figures import SAME_START, similar_dictionaries
from deltasae_ray.errors import GeometryError, PrecisionError
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.isotropic import isotropic_max_cosine
from deltasae_ray.metrics.geometry.matching import best_cosines, match, matched_draws, max_cosine
from deltasae_ray.metrics.geometry.matching_figures import matching_measures, mean_match
from deltasae_ray.metrics.inputs import LayerInputs, Settings
from deltasae_ray.metrics.moments import Moments
from tests.metrics.worlds import dictionary_of


def units(rows: int, d_model: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def test_the_isotropic_null_is_that_of_the_published_setting() -> None:
    assert isotropic_max_cosine(16384, 3584) == pytest.approx(0.0663, abs=0.0005)


@pytest.mark.parametrize(
    ("rows", "d_model", "absolute"),
    [(1, 8, False), (1, 8, True), (512, 64, False), (512, 64, True), (7, 2, False)],
)
def test_the_isotropic_null_agrees_with_simulation(rows: int, d_model: int, absolute: bool) -> None:
    drawn = np.concatenate(
        [
            best_cosines(units(200, d_model, i), units(rows, d_model, 100 + i), absolute=absolute)
            for i in range(60)
        ]
    )
    # rows of one reference share it: the mean over references is what varies
    se = drawn.reshape(60, -1).mean(1).std() / math.sqrt(60)
    assert isotropic_max_cosine(rows, d_model, absolute=absolute) == pytest.approx(
        drawn.mean(), abs=4 * se + 1e-4
    )


def test_a_random_decoder_against_a_random_reference_sits_at_its_null() -> None:
    m = max_cosine(units(2048, 128, 0), units(2048, 128, 1))
    assert isinstance(m.null, float)
    assert m.value == pytest.approx(m.null, abs=0.01)


def test_max_cosine_is_signed_and_takes_rows_as_latents() -> None:
    a = torch.eye(4)
    assert max_cosine(a, a).value == pytest.approx(1.0)
    assert max_cosine(a, -a).value == pytest.approx(0.0)
    assert max_cosine(a, -a, absolute=True).value == pytest.approx(1.0)
    assert max_cosine(3 * a[:2], a[:1]).value == pytest.approx(
        0.5
    )  # row 0 is there, row 1 is orthogonal; norms do not matter


def test_weights_decide_which_latents_count() -> None:
    a, b = torch.eye(4), torch.eye(4)[:1]
    assert max_cosine(a, b, weights=np.array([1.0, 0, 0, 0])).value == pytest.approx(1.0)
    assert max_cosine(a, b, weights=np.array([3.0, 1, 0, 0])).value == pytest.approx(0.75)
    for bad in (np.array([-1.0, 1, 1, 1]), np.zeros(4)):
        with pytest.raises(GeometryError, match="weights"):
            max_cosine(a, b, weights=bad)
    with pytest.raises(GeometryError, match="weights"):
        max_cosine(a, b, weights=np.ones(3))


def test_signed_and_absolute_cosines_come_from_one_product_whatever_the_block() -> None:
    a, b = units(70, 16, 0), units(50, 16, 1)
    cosine = (a @ b.T).double()
    found = match(a, b)
    wanted = (cosine.amax(1), cosine.abs().amax(1))
    for got, best in zip((found.signed, found.absolute), wanted, strict=True):
        np.testing.assert_allclose(got, best, atol=1e-6)


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = units(70, 16, 0), units(50, 16, 1)
    whole = match(a, b)
    monkeypatch.setattr("deltasae_ray.metrics.geometry.matching._BLOCK_NUMBERS", 200)
    np.testing.assert_allclose(match(a, b).signed, whole.signed, atol=1e-7)
    np.testing.assert_allclose(match(a, b).absolute, whole.absolute, atol=1e-7)


def test_covariance_matched_atoms_come_nearer_than_isotropic_ones_where_data_is_anisotropic() -> None:
    scale = torch.linspace(3, 0.1, 64)
    data = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)) * scale
    reference = torch.nn.functional.normalize(data[:100], dim=1)
    signed, absolute = matched_draws(Moments.of(data).spectrum, reference, 200, draws=5, seed=0)
    assert signed.shape == (5, 200)
    assert signed.mean() > isotropic_max_cosine(100, 64) + 0.1
    assert (absolute >= signed - 1e-6).all()


def test_two_adapters_are_matched_across_seeds_where_there_are_two_and_say_so_where_they_share_a_start() -> (
    None
):
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    start, other = (dictionary_of(units(32, 16, seed), rows) for seed in (1, 2))
    found = {
        apart: similar_dictionaries(Moments.of(rows).spectrum, start, start, None, d, Settings())
        for apart, d in ((False, None), (True, other))
    }
    assert found[False].value == pytest.approx(1) and SAME_START in found[False].reason
    assert (
        found[True].value == pytest.approx(found[True].null, abs=0.05)
        and SAME_START not in found[True].reason
    )


def test_another_width_or_nan_is_refused() -> None:
    with pytest.raises(GeometryError, match="d_model"):
        max_cosine(torch.eye(4), torch.eye(5))
    with pytest.raises(PrecisionError, match="1 of 4"):
        max_cosine(torch.eye(4).index_fill(0, torch.tensor([2]), float("nan")), torch.eye(4))


def test_kappa_of_matching_resamples_a_latents_value_and_twin_together() -> None:
    """Every latent half way between null and ceiling: whichever latents were drawn, κ is .5, and only the
    null's draws are left to doubt."""
    rng = np.random.default_rng(0)
    twin = rng.uniform(0.5, 1.0, 64)
    null = 0.3 + 0.01 * rng.standard_normal((5, 64))
    half_way = null.mean() + 0.5 * (twin - null.mean())
    m = mean_match(half_way, np.ones(64), null, twin)
    assert m.kappa == pytest.approx(0.5) and m.kappa_ci is not None and m.ci is not None
    assert m.kappa_ci[1] - m.kappa_ci[0] < 0.01 < m.ci[1] - m.ci[0]
    apart = mean_match(rng.permutation(half_way), np.ones(64), null, twin)
    assert apart.kappa_ci is not None and apart.kappa_ci[1] - apart.kappa_ci[0] > 0.05, (
        "the same figures of other latents"
    )
    wide = mean_match(half_way, np.ones(64), 0.3 + 0.5 * rng.standard_normal((5, 64)), twin)
    assert wide.kappa is None or wide.kappa_ci is not None and wide.kappa_ci[1] - wide.kappa_ci[0] > 0.05


def test_featureless_atoms_that_carry_energy_lie_nearer_to_a_reference_of_the_same_leading_directions() -> (
    None
):
    """And so the energy-weighted figure of a featureless dictionary is held against theirs, and not against
    all atoms alike."""
    g = torch.Generator().manual_seed(0)
    scale = torch.cat([torch.full((8,), 2.0), torch.full((56,), 0.3)])
    rows = torch.randn(4000, 64, generator=g) * scale
    inputs = LayerInputs(
        delta_fit=rows[:3000].numpy(), delta_eval=rows[3000:].numpy(), base_fit=rows[:3000].numpy(),
        base_eval=rows[3000:].numpy(),
        fit_docs=np.arange(3000) // 30, eval_docs=np.arange(1000) // 20,
        reference=dictionary_of(units(128, 64, 3) * scale, rows[:3000]),
    )  # fmt: skip
    featureless = dictionary_of(
        torch.nn.functional.normalize(units(96, 64, 4) * scale, dim=1), rows[:3000], k=8
    )
    found = matching_measures(Context.of(inputs, Settings(k=8, code_tokens=512)), featureless, None)
    plain, weighted = found["max_cosine"], found["max_cosine_weighted"]
    assert weighted.null > plain.null + 0.005
    assert weighted.p > 0.01 and abs(weighted.value - weighted.null) < abs(weighted.value - plain.null)
