"""Planted worlds get the verdict that is right for them. `make prove` repeats each with 50 seeds."""

from collections import Counter

import pytest
import torch

from deltasae_ray.analyses.behaviour.figures import changes_model
from tests.metrics.worlds import WORLDS, gated, inputs_of, judged, no_effect, novel


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_planted_world_gets_the_right_verdict(name: str) -> None:
    world, found, _ = judged(name, 0)
    assert found.label == world.right, found.text


def test_the_gate_of_the_world_without_effect_opens_for_the_same_deltas_at_full_size() -> None:
    """Its right verdict is the gate's finding: it can be wrong."""
    for make, opens in ((novel, True), (no_effect, False)):
        g = torch.Generator().manual_seed(1)
        assert changes_model(gated(inputs_of(make(g), g))) is opens


@pytest.mark.prove
@pytest.mark.parametrize("name", WORLDS)
def test_no_verdict_is_wrong_over_fifty_seeds_and_few_are_inconclusive(name: str) -> None:
    labels = Counter()
    for seed in range(50):
        world, found, _ = judged(name, seed)
        labels["right" if found.label == world.right else found.label] += 1
    assert set(labels) <= {"right", "INCONCLUSIVE"}, labels
    assert labels["right"] >= (50 if WORLDS[name].__name__ in ("gaussian", "few_tokens") else 47), labels
