"""Figures as published: what chance gives in each, in closed form, from drawn rows and from a decoder that
was never trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.verdict import LeafFigures, verdict
from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.geometry.isotropic import isotropic_median_cosine, isotropic_share_below
from deltasae_ray.metrics.geometry.matching import best_cosines, max_cosine, median_interval
from deltasae_ray.metrics.geometry.published import NOVEL_BELOW, published_angles, published_matching
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.recipe import measure
from deltasae_ray.sae.start import start_rows
from tests.metrics.worlds import CHANGED, D_MODEL, dictionary_of, half, inputs_of


@pytest.fixture(scope="module")
def context() -> Context:
    g = torch.Generator().manual_seed(0)
    return Context.of(inputs_of(half(g), g), Settings(bootstrap=100))


def units(rows: int, seed: int, d_model: int = D_MODEL) -> torch.Tensor:
    """Random unit rows."""
    return torch.nn.functional.normalize(
        torch.randn(rows, d_model, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def untrained(d_sae: int, d_model: int) -> torch.Tensor:
    """The decoder at its start, for rows without any direction of their own."""
    rows = torch.randn(512, d_model, generator=torch.Generator().manual_seed(5))
    return start_rows(rows, measure(rows), d_sae, torch.Generator().manual_seed(0))


def test_an_untrained_decoder_meets_a_random_reference_at_the_papers_figure_and_the_verdict_calls_that_chance() -> (
    None
):
    """N = 16,384 rows of the reference in d = 3584: how many rows the decoder has decides the interval only,
    not the mean."""
    reference = units(16_384, 1, 3584)
    found = max_cosine(untrained(1024, 3584), reference)
    assert found.value == pytest.approx(0.0663, abs=5e-4) and found.null == pytest.approx(0.0663, abs=1e-4)
    missing = Measure(0.5, null=1.0, ci=(0.4, 0.6), n=77)
    untrained_leaf = LeafFigures(
        "r4", 12, 1024, 8, "topk", 0, {"missing_share": missing, "paper_max_cosine": found}
    )
    said = verdict("r4", [untrained_leaf], CHANGED).text
    assert (
        f"Mean max-cosine as published {found:.3f}, isotropic chance 0.066: at chance" in said
        and "aligned" not in said
    )
    trained = {
        "paper_max_cosine": replace(found, value=0.071, ci=(0.070, 0.072)),
        "paper_max_cosine_untrained": found,
    }
    said = verdict(
        "r4", [LeafFigures("r4", 12, 1024, 8, "topk", 0, {"missing_share": missing, **trained})], CHANGED
    ).text
    assert (
        f"0.071 [0.070, 0.072], isotropic chance 0.066, the decoder before training {found.value:.3f}: at"
        " chance" in said
    )


def test_median_and_share_by_chance_are_those_of_drawn_rows() -> None:
    best = best_cosines(units(4000, 2, 96), units(300, 1, 96))
    assert isotropic_median_cosine(300, 96) == pytest.approx(float(np.median(best)), abs=2e-3)
    assert isotropic_share_below(0.25, 300, 96) == pytest.approx(float((best < 0.25).mean()), abs=0.02)
    assert isotropic_median_cosine(16_384, 3584) == pytest.approx(0.0656, abs=1e-4)
    assert isotropic_share_below(NOVEL_BELOW, 16_384, 3584) > 0.999
    assert isotropic_median_cosine(1, 96) == pytest.approx(0, abs=1e-6)
    with pytest.raises(GeometryError, match="at least 2 dimensions"):
        isotropic_median_cosine(10, 1)


def test_random_rows_have_the_median_share_and_angles_of_chance(context: Context) -> None:
    rows = units(2000, 3)
    random, other = dictionary_of(rows, rows), replace(context, reference=dictionary_of(units(400, 4), rows))
    found = published_matching(other, random, rows)
    assert found["paper_max_cosine_untrained"].value == pytest.approx(
        found["paper_max_cosine"].value, abs=1e-6
    )
    for name in ("paper_max_cosine", "paper_median_cosine"):
        assert found[name].value == pytest.approx(found[name].null, abs=0.01), name
    assert found["paper_novel_share"].value == pytest.approx(found["paper_novel_share"].null, abs=0.02)
    for name, m in published_angles(other, random).items():
        assert m.value == pytest.approx(m.null, abs=4), name


def test_a_copy_of_the_reference_is_at_1_and_nothing_of_it_is_novel(context: Context) -> None:
    copy = dictionary_of(context.reference.W_dec, torch.from_numpy(context.layer.rows.delta_fit))
    found = published_matching(context, copy, None)
    assert found["paper_max_cosine"].value == pytest.approx(1) and found[
        "paper_median_cosine"
    ].value == pytest.approx(1)
    assert found["paper_novel_share"].value == 0 and "paper_max_cosine_untrained" not in found
    angles = published_angles(context, copy)
    assert max(m.value for m in angles.values()) < 1e-5


def test_angles_of_fewer_rows_than_directions_are_undefined(context: Context) -> None:
    few = dictionary_of(units(3, 0), torch.from_numpy(context.layer.rows.delta_fit), k=2)
    found = published_angles(context, few)
    assert (
        found["paper_angle_k2"].value is not None
        and "fewer than 4 directions" in found["paper_angle_k4"].reason
    )


def test_the_interval_of_a_median_covers_it() -> None:
    rng = np.random.default_rng(0)
    covered = [
        low <= 0.3 <= high for low, high in (median_interval(rng.normal(0.3, 0.05, 101)) for _ in range(400))
    ]
    assert 0.92 < np.mean(covered) < 0.99
