"""The pooled missing share on planted mixtures: the truth, half of it, none, with padding and with a dense
part."""

import numpy as np
import pytest
import torch

import deltasae_ray as ds
from deltasae_ray.errors import GeometryError
from tests.metrics.visibility.worlds import Planted, mixture, units

SMALL = {"d": 64, "fit": 4000, "rows": 5500, "features": 48, "active": 4, "padding": 48}


def pooled(world: Planted, reference: torch.Tensor | None = None, **how: object) -> ds.Measure:
    fit, rest = slice(0, world.fit), slice(world.fit, None)
    held = world.reference if reference is None else reference
    return ds.pooled_missing_share(
        world.deltas[rest],
        world.atoms,
        held,
        4,
        doc_ids=world.doc_ids[rest],
        training=world.deltas[fit],
        bootstrap=200,
        **how,
    )


def test_the_truth_misses_nothing_none_of_it_everything_and_half_lies_between() -> None:
    low, middle, high = (pooled(mixture(0, share=share, **SMALL)) for share in (1, 0.5, 0))
    assert low.value == pytest.approx(0, abs=0.06) and high.value == pytest.approx(1, abs=0.03)
    assert middle.value is not None and 0.5 < middle.value < 0.85
    assert (
        middle.ci is not None
        and middle.ci[0] < middle.value < middle.ci[1]
        and middle.ci[1] - middle.ci[0] < 0.2
    )


def test_padding_and_a_dense_part_move_it_little_where_the_plain_share_calls_half_the_truth_visible() -> None:
    world = mixture(1, share=0.5, dense=0.6, **{**SMALL, "padding": 24})
    padded = torch.cat([world.reference, units(96, 64, torch.Generator().manual_seed(5))])
    few, many = pooled(world), pooled(world, padded)
    assert (
        few.value is not None and many.value == pytest.approx(few.value, abs=0.07) and 0.4 < many.value < 0.85
    )
    whole = pooled(mixture(1, share=1, dense=0.6, **SMALL))
    assert whole.value is not None and abs(whole.value) < 0.12, (
        "all features, and a dense part that the reference lacks"
    )


def test_a_second_dictionary_is_the_ceiling_and_a_sign_is_no_difference() -> None:
    world = mixture(2, share=0.5, **SMALL)
    found = pooled(world, second=world.atoms)
    assert found.ceiling == pytest.approx(0, abs=0.06) and found.null == 1
    assert pooled(world, -world.reference).value == pytest.approx(found.value, abs=0.02)


def test_a_dictionary_that_adds_nothing_is_called_weak_with_the_remedy() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 32, generator=g) * torch.linspace(2, 0.2, 32)
    found = ds.pooled_missing_share(
        x[1500:], units(32, 32, g), units(64, 32, g), 4, training=x[:1500], bootstrap=100
    )
    assert found.value is None and "more tokens or with a larger k" in found.reason
    line = torch.randn(3000, 1, generator=g) * units(1, 32, g)
    narrow = ds.pooled_missing_share(line[1500:], units(32, 32, g), units(64, 32, g), 4, training=line[:1500])
    assert narrow.value is None and "directions" in narrow.reason


def test_what_cannot_be_asked_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    with pytest.raises(GeometryError, match="choose 1 to 8"):
        ds.pooled_missing_share(x, x[:16], x[:16], 9)
    with pytest.raises(GeometryError, match="at least 2"):
        ds.pooled_missing_share(x, x[:16], x[:16], draws=1)
    with pytest.raises(GeometryError, match="d_model"):
        ds.pooled_missing_share(x, x[:16], x[:16, :8])
