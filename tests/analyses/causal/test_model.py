"""What a latent does to predictions: taken out, put in, and where there is nothing to take."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deltasae_ray.analyses.causal.figures import ABLATED, ADDED, DELTA, NONE, causal, random_of
from deltasae_ray.analyses.causal.model import Probe, document_effects
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import residuals, unit_ids
from deltasae_ray.models.load import load_model
from deltasae_ray.models.patching import continued, whole_pass
from tests.analyses.loss_recovered.test_model import unit
from tests.tiny import D_MODEL, LAYERS

AT, DRAWS = Hookpoint(1), 8
LAST = Hookpoint(LAYERS - 1)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tiny_adapters: tuple[Path, Path]) -> Any:
    return attach(load_model(tiny_model), {"r2": tiny_adapters[0], "r4": tiny_adapters[1]})


def probe(model: Any, at: Hookpoint = AT) -> Probe:
    """The leading direction of the deltas, and one that never fires."""
    ids = unit_ids(unit())
    delta = (residuals(model, ids, [at], "r4")[at] - residuals(model, ids, [at])[at])[:, 1:].reshape(
        -1, D_MODEL
    )
    leading = torch.linalg.svd(delta, full_matrices=False).Vh[0]
    random = F.normalize(torch.randn(DRAWS, D_MODEL, generator=torch.Generator().manual_seed(0)), dim=1)
    none = torch.zeros(1)
    return Probe(
        "leaf",
        "r4",
        at,
        {"leading": leading, "silent": leading},
        lambda x: torch.stack([x @ leading, none.expand(len(x))], 1),
        random,
    )


@pytest.fixture(scope="module")
def rows(model: Any) -> list[dict]:
    return document_effects(model, unit(), [probe(model)], positions=4)


def test_what_never_fires_does_nothing_at_all(rows: list[dict]) -> None:
    for r in rows:
        for side in (ABLATED, ADDED):
            assert r[side]["silent"] == pytest.approx(r[side][NONE], abs=1e-4)
            assert all(r[side][random_of("silent", i)] == r[side]["silent"] for i in range(DRAWS))
    found = causal(rows, ["silent"], DRAWS, bootstrap=100, seed=0)["silent"]
    assert all(abs(found[side].value) < 1e-5 and found[side].p > 0.05 for side in (ABLATED, ADDED))


def test_the_leading_direction_of_the_deltas_brings_the_models_nearer_than_random_ones(
    rows: list[dict],
) -> None:
    found = causal(rows, ["leading"], DRAWS, bootstrap=300, seed=0)["leading"]
    for side in (ABLATED, ADDED):
        m = found[side]
        assert m.null < m.value < m.ceiling and m.p < 0.05 and m.ci[0] > 0


def test_the_whole_delta_after_the_last_block_leaves_no_difference(model: Any) -> None:
    """There both models share norm and head: without the delta the adapted one is the base."""
    for r in document_effects(model, unit(8), [probe(model, LAST)], positions=4):
        for side in (ABLATED, ADDED):
            assert r[side][NONE] > 1e-3 and r[side][DELTA] == pytest.approx(0, abs=1e-4)


def test_the_adapted_model_goes_on_with_its_adapter(model: Any) -> None:
    ids = unit_ids(unit(2))
    taken, wanted = whole_pass(model, ids, [AT], "r4")
    torch.testing.assert_close(continued(model, ids, AT, taken[AT], "r4"), wanted)
    assert not torch.allclose(continued(model, ids, AT, taken[AT]), wanted, atol=1e-3)


def test_position_0_is_left_as_it_is(model: Any) -> None:
    seen: list[torch.Tensor] = []
    watching = probe(model)
    amounts = watching.amounts

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return amounts(x)

    document_effects(
        model, unit(3), [Probe("leaf", "r4", AT, watching.directions, watch, watching.random)], positions=4
    )
    assert all(len(x) == 3 * 15 for x in seen) and len(seen) == 2
