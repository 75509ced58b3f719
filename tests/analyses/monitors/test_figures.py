"""Figures of monitors on scores whose truth is known."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from deltasae_ray.analyses.monitors.figures import (
    Scored,
    auroc,
    delong_p,
    labelled,
    retrained_auroc,
    unlabelled,
)

RNG = np.random.default_rng(0)
LABEL = np.arange(240) % 2 == 0
BEFORE = RNG.normal(size=240) + 2 * LABEL


def scored(after: np.ndarray, repaired: np.ndarray | None = None, random: np.ndarray | None = None) -> Scored:
    return Scored(LABEL, np.arange(240), BEFORE, after, BEFORE if repaired is None else repaired, random)


def measured(*args: np.ndarray | None) -> dict:
    return labelled(scored(*args), 0.97, bootstrap=200, seed=0)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_that_of_scikit_learn_under_weights(ties: bool) -> None:
    scores = BEFORE.round(0) if ties else BEFORE
    weights = RNG.integers(0, 3, (4, 240)).astype(float)
    for row, found in zip(weights, auroc(scores, LABEL, weights), strict=True):
        assert found == pytest.approx(roc_auc_score(LABEL, scores, sample_weight=row))


def test_p_of_delong_is_uniform_where_nothing_fell_and_small_where_it_did() -> None:
    rng = np.random.default_rng(1)

    def drawn(noise: float) -> float:
        shared = rng.normal(size=120) + 2 * LABEL[:120]
        return delong_p(shared + rng.normal(size=120), shared + noise * rng.normal(size=120), LABEL[:120])

    same = [drawn(1.0) for _ in range(300)]
    assert 0.02 < np.mean(np.array(same) < 0.05) < 0.09 and 0.42 < np.mean(same) < 0.58
    assert np.mean([drawn(4.0) for _ in range(50)]) < 0.01


def test_a_fall_is_found_and_repair_returns_it() -> None:
    found = measured(-BEFORE, BEFORE + 0.01, BEFORE + 0.1 * RNG.normal(size=240))
    drop = found["auroc_drop"]
    assert drop.value == pytest.approx(0.84, abs=0.1) and drop.ci[0] > 0.5 and drop.p < 1e-6
    assert abs(drop.null) < 0.02 and found["recovered"].value == pytest.approx(1.0)
    assert found["tpr_drop"].value > 0.3 and found["threshold_drift"].ci is not None
    assert found["repaired_drop"].value == pytest.approx(0.0)


def test_a_harmless_change_is_none_and_there_is_nothing_to_recover() -> None:
    found = measured(BEFORE + 0.05 * RNG.normal(size=240))
    drop = found["auroc_drop"]
    assert drop.ci[0] < 0.01 and drop.p > 0.01 and drop.null is None and "random_lora" in drop.reason
    assert found["recovered"].value is None and "nothing to recover" in found["recovered"].reason


def test_a_shift_of_all_scores_moves_the_threshold_and_costs_no_auroc() -> None:
    found = measured(BEFORE + 3)
    assert found["auroc_drop"].value == 0 and found["tpr_drop"].value == 0
    assert found["threshold_drift"].value == pytest.approx(3 / BEFORE.std())


def test_few_texts_give_no_operating_point_and_no_interval() -> None:
    few = Scored(LABEL[:20], np.arange(20), BEFORE[:20], BEFORE[:20], BEFORE[:20])
    found = labelled(few, None, bootstrap=100, seed=0)
    assert found["tpr_drop"].value is None and "100 are needed" in found["tpr_drop"].reason
    assert found["auroc_drop"].ci is None and "20 evaluation documents" in found["auroc_drop"].reason


def test_scores_of_each_token_are_resampled_by_documents() -> None:
    document, own = np.repeat(np.arange(60), 8), RNG.normal(size=60)
    label = document % 2 == 0
    before = np.repeat(own, 8) + label
    tokens = Scored(label, document, before, np.repeat(RNG.permutation(own), 8), before)
    found = labelled(tokens, None, bootstrap=300, seed=0)["auroc_drop"]
    assert found.n == 60 and found.ci[1] - found.ci[0] > 0.15 and found.p is not None


def test_without_labels_the_shift_is_told_in_spreads_with_its_null() -> None:
    after = {"adapter": BEFORE + 2 * BEFORE.std(), "random": BEFORE + 0.1 * RNG.normal(size=240)}
    found = unlabelled(BEFORE, after, np.arange(240), bootstrap=200, seed=0)
    assert found["shift"].value == pytest.approx(2) and abs(found["shift"].null) < 0.05
    assert found["shift"].ci[0] <= 2 <= found["shift"].ci[1]
    turned = unlabelled(
        BEFORE, {"adapter": 2 * BEFORE.mean() - BEFORE}, np.arange(240), bootstrap=200, seed=0
    )
    assert abs(turned["shift"].value) < 1e-9 and turned["staleness"].value == pytest.approx(2)
    flat = unlabelled(0 * BEFORE, after, np.arange(240), bootstrap=100, seed=0)
    assert flat["shift"].value is None and "do not vary" in flat["shift"].reason


def test_a_retrained_probe_scores_documents_that_it_did_not_see() -> None:
    noise = RNG.normal(size=(240, 40))
    assert 0.35 < (retrained_auroc(noise, LABEL) or 0) < 0.65
    noise[:, 0] += 3 * LABEL
    assert (retrained_auroc(noise, LABEL) or 0) > 0.9 and retrained_auroc(noise[:6], LABEL[:6]) is None
