"""A repair fitted further on the monitor's own texts, of which no label is read (pure)."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.monitors.monitor import Monitor, Repair

FEWEST = 30
"""Texts below which the map of the study's text is left as it is."""
_FOLDS = 5
_STRENGTHS = np.logspace(-2, 6, 17)
"""Of the ridge, on coordinates of unit variance."""
Vectors = Float[Tensor, "doc d_model"]


def reads_one_vector(monitor: Monitor) -> bool:
    """Whether a document has one score, of its last token or, for a probe, of the mean over tokens."""
    return monitor.reads == "last" or (monitor.reads == "mean" and monitor.weight is not None)


def refined(monitor: Monitor, repair: Repair, adapted: Vectors, base: Vectors) -> Repair:
    """The map with what it leaves on the monitor's own texts taken in, as far as the monitor reads it.

    A map fitted on other text errs where these texts differ from that. What it leaves is regressed on adapted
    activations by ridge, whose strength is chosen by leaving one document out.

    Args:
        monitor: as the user gave it.
        repair: fitted on the study's text.
        adapted: the vector of each document that the monitor reads, on the adapted model.
        base: the same on the base model.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    x, left = adapted.double(), (base - repair(adapted)).double()
    weight = None if monitor.weight is None else monitor.weight.double()
    target = left if weight is None else (left @ weight)[:, None]
    scaler: Any = StandardScaler().fit(x.numpy())
    ridge: Any = RidgeCV(_STRENGTHS).fit(scaler.transform(x.numpy()), target.numpy())
    slope = torch.from_numpy(np.atleast_2d(ridge.coef_).T / scaler.scale_[:, None])
    level = torch.from_numpy(np.atleast_1d(ridge.intercept_)) - torch.from_numpy(scaler.mean_) @ slope
    if weight is not None:  # along the probe's direction and no other
        back = (weight / weight.square().sum())[None]
        slope, level = slope @ back, level @ back
    return Repair((repair.matrix.double() + slope).float(), (repair.offset.double() + level).float())


def refined_scores(
    monitor: Monitor, repair: Repair, adapted: Vectors, base: Vectors
) -> Float[np.ndarray, " doc"]:
    """The repaired monitor's score of every document, by a map that was fitted without that document."""
    from sklearn.model_selection import KFold

    scores = np.empty(len(adapted))
    for train, test in KFold(_FOLDS, shuffle=True, random_state=0).split(scores):
        fixed = monitor.repaired(refined(monitor, repair, adapted[train], base[train]))
        scores[test] = fixed.token_scores(adapted[test]).double().numpy()
    return scores
