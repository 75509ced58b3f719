"""Causal effects from rows of documents whose truth is known."""

import numpy as np
import pytest

from deltasae_ray.analyses.causal.figures import ABLATED, ADDED, causal, random_of

DRAWS = 3


def rows(documents: int, share: float, seed: int = 0) -> list[dict]:
    """The latent closes `share` of the gap between the models, a random direction a twentieth of it, the
    whole delta nine tenths."""
    rng, made = np.random.default_rng(seed), []
    for i in range(documents):
        gap = 8 * rng.lognormal(0, 0.4)
        left = {"none": gap, "delta": 0.1 * gap, "x": gap * (1 - share) + rng.normal(0, 0.05)}
        left |= {random_of("x", j): gap * (0.95 + 0.01 * j) + rng.normal(0, 0.05) for j in range(DRAWS)}
        made.append(
            {"doc_id": str(i), "positions": 8, ABLATED: left, ADDED: {v: 2 * kl for v, kl in left.items()}}
        )
    return made


def test_a_latent_that_carries_the_effect_is_told_from_random_directions() -> None:
    found = causal(rows(40, 0.5), ["x"], DRAWS, bootstrap=300, seed=0)["x"]
    ablated, added = found[ABLATED], found[ADDED]
    assert added.value == pytest.approx(2 * ablated.value, rel=0.05) and ablated.value > 0.4
    assert ablated.null < 0.1 and ablated.ceiling > ablated.value and ablated.p < 0.01
    assert ablated.ci[0] < ablated.value < ablated.ci[1] and ablated.n == 40


def test_a_latent_that_does_what_random_directions_do_is_at_chance() -> None:
    found = causal(rows(40, 0.04), ["x"], DRAWS, bootstrap=300, seed=0)["x"]
    assert found[ABLATED].p > 0.05 and found[ABLATED].value == pytest.approx(found[ABLATED].null, abs=0.02)


def test_few_documents_give_no_interval() -> None:
    found = causal(rows(10, 0.5), ["x"], DRAWS, bootstrap=100, seed=0)["x"][ADDED]
    assert found.value is not None and found.ci is None and "10 evaluation documents" in found.reason
