"""Two adapters at one layer: their deltas on the same rows, and their dictionaries."""

from collections.abc import Sequence

import numpy as np

from deltasae_ray.divergence.alignment import mean_match
from deltasae_ray.divergence.arrays import Matrix
from deltasae_ray.divergence.cka import linear_cka
from deltasae_ray.divergence.context import DictionaryLike, Settings, living_rows
from deltasae_ray.divergence.matching import best_cosines, matched_draws
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import Moments


def between_adapters(
    training: Matrix,
    deltas: Matrix,
    other_deltas: Matrix,
    doc_ids: Sequence | np.ndarray,
    dictionary: DictionaryLike,
    other: DictionaryLike,
    second: DictionaryLike | None,
    settings: Settings,
) -> dict[str, Measure]:
    """CKA of both adapters' evaluation deltas, and the mean max |cos| of the first's latents with the other's.

    Args:
        training: training deltas of the first adapter, whose covariance makes the null of matching.
        second: another seed of the first's dictionary: the ceiling of matching.
    """
    rows, others = living_rows(dictionary), living_rows(other)
    spectrum = Moments.of(training).spectrum
    _, null = matched_draws(spectrum, others, len(rows), draws=settings.null_draws, seed=settings.seed)
    twin = None if second is None else best_cosines(rows, living_rows(second), absolute=True)
    measures = {"max_cosine_adapters": mean_match(best_cosines(rows, others, absolute=True), np.ones(len(rows)), null, twin)}
    num_docs = len(set(doc_ids))
    measures["cka_adapters"] = (
        undefined(f"{num_docs} evaluation documents: the unbiased HSIC takes at least 4", n=num_docs)
        if num_docs < 4
        else linear_cka(deltas, other_deltas, doc_ids, seed=settings.seed)
    )
    return measures
