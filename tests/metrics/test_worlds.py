"""The missing share of planted worlds gets the label that is right for them. `make prove` repeats each with 50 seeds."""

from collections import Counter

import pytest
import torch

from deltasae_ray.analyses.behaviour.figures import changes_model
from tests.metrics.worlds import WORLDS, gated, inputs_of, judged, no_effect, novel


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_planted_world_gets_the_right_label(name: str) -> None:
    world, (label, told), _ = judged(name, 0)
    assert label == world.right, told


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
        world, (label, _), _ = judged(name, seed)
        labels["right" if label == world.right else label] += 1
    assert set(labels) <= {"right", "INCONCLUSIVE"}, labels
    assert labels["right"] >= (50 if WORLDS[name].__name__ in ("gaussian", "few_tokens") else 47), labels
