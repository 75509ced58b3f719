"""Two adapters at one layer: their deltas on the same rows, and their dictionaries."""

from collections.abc import Sequence

import numpy as np

from deltasae_ray.divergence.alignment import mean_match
from deltasae_ray.divergence.arrays import Matrix
from deltasae_ray.divergence.cka import linear_cka
from deltasae_ray.divergence.context import DictionaryLike, Settings, living_rows
from deltasae_ray.divergence.matching import best_cosines, matched_draws
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import Spectrum


def similar_deltas(deltas: Matrix, other: Matrix, doc_ids: Sequence | np.ndarray, settings: Settings) -> Measure:
    """Unbiased CKA of two adapters' evaluation deltas."""
    num_docs = len(set(doc_ids))
    if num_docs < 4:
        return undefined(f"{num_docs} evaluation documents: the unbiased HSIC takes at least 4", n=num_docs)
    return linear_cka(deltas, other, doc_ids, seed=settings.seed)


def similar_dictionaries(
    spectrum: Spectrum, dictionary: DictionaryLike, other: DictionaryLike, second: DictionaryLike | None, settings: Settings
) -> Measure:
    """Mean max |cos| of one adapter's living latents with another's.

    Args:
        spectrum: of the first adapter's training deltas; atoms drawn from it are the null.
        second: another seed of the first's dictionary: the ceiling.
    """
    rows, others = living_rows(dictionary), living_rows(other)
    _, null = matched_draws(spectrum, others, len(rows), draws=settings.null_draws, seed=settings.seed)
    twin = None if second is None else best_cosines(rows, living_rows(second), absolute=True)
    return mean_match(best_cosines(rows, others, absolute=True), np.ones(len(rows)), null, twin)
