"""Planted worlds of the visibility decision: base activations, deltas and a reference whose relation is
known."""

from tests.metrics.visibility.worlds.changes import changed, module, scaled
from tests.metrics.visibility.worlds.dictionaries import (
    Fitted,
    decided,
    dictionary_of,
    fit_all,
    fitted,
    half_fitted,
    known_all,
)
from tests.metrics.visibility.worlds.mixtures import absorbed, featureless, mixture
from tests.metrics.visibility.worlds.rows import Planted, Rows, dense_part, units

__all__ = [
    "Fitted",
    "Planted",
    "Rows",
    "absorbed",
    "changed",
    "decided",
    "dense_part",
    "dictionary_of",
    "featureless",
    "fit_all",
    "fitted",
    "half_fitted",
    "known_all",
    "mixture",
    "module",
    "scaled",
    "units",
]
