"""Two adapters at one layer: their deltas on the same rows, and their dictionaries."""

from collections.abc import Sequence

import numpy as np

from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.coding.dictionary_coding import Coder, make_coder
from deltasae_ray.metrics.coding.matched_sizes import match_sizes
from deltasae_ray.metrics.coding.missing_share import compare_structure, too_little_training
from deltasae_ray.metrics.geometry.cka import linear_cka
from deltasae_ray.metrics.geometry.matching import best_cosines, matched_draws
from deltasae_ray.metrics.geometry.matching_figures import mean_match
from deltasae_ray.metrics.inputs import DictionaryLike, Settings, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments, Spectrum
from deltasae_ray.metrics.statistics import document_codes

SAME_START = (
    "both dictionaries start from the same rows, and are alike for that too: fit two seeds (fit.seeds=2) to"
    " match across seeds"
)


def similar_deltas(
    deltas: Matrix, other: Matrix, doc_ids: Sequence | np.ndarray, settings: Settings
) -> Measure:
    """Unbiased CKA of two adapters' evaluation deltas."""
    num_docs = len(set(doc_ids))
    if num_docs < 4:
        return undefined(f"{num_docs} evaluation documents: the unbiased HSIC takes at least 4", n=num_docs)
    return linear_cka(deltas, other, doc_ids, seed=settings.seed)


def coder_of(
    deltas: Matrix, training: Matrix, doc_ids: Sequence | np.ndarray, moments: Moments, settings: Settings
) -> Coder:
    """Codes one adapter's evaluation deltas, as for the missing share.

    Args:
        moments: of that adapter's training deltas.
    """
    rows, fit = matrix(deltas, "deltas", None), matrix(training, "training", None)
    return make_coder(rows, fit, document_codes(doc_ids)[0], moments, settings)


def missing_between(
    coder: Coder,
    dictionary: DictionaryLike,
    other: DictionaryLike,
    second: DictionaryLike | None,
    apart: DictionaryLike | None,
) -> Measure:
    """The missing share M of one adapter's deltas, held against the other's dictionary in the place of the
    reference.

    Args:
        coder: of the first adapter's deltas.
        second: another seed of the first's dictionary: the ceiling.
        apart: another seed of the other's dictionary, which is what is held against the first where it is
            there.
    """
    if reason := too_little_training(dictionary, coder.training.n):
        return undefined(reason, null=1.0, n=coder.sample.num_docs)
    own, others = (coder.code(living_rows(d)) for d in (dictionary, other if apart is None else apart))
    twin = None if second is None else coder.code(living_rows(second))
    missing = compare_structure(match_sizes(own, others, twin, name="other adapter's dictionary")).missing
    return missing.because("note", SAME_START) if apart is None else missing


def similar_dictionaries(
    spectrum: Spectrum,
    dictionary: DictionaryLike,
    other: DictionaryLike,
    second: DictionaryLike | None,
    apart: DictionaryLike | None,
    settings: Settings,
) -> Measure:
    """Mean max |cos| of one adapter's living latents with another's.

    Args:
        spectrum: of the first adapter's training deltas; atoms drawn from it are the null.
        second: another seed of the first's dictionary: the ceiling.
        apart: another seed of the other's dictionary. It is what is matched where it is there: dictionaries
            of one seed start from the same rows, and are alike for that alone.
    """
    rows, others = living_rows(dictionary), living_rows(other if apart is None else apart)
    _, null = matched_draws(spectrum, others, len(rows), draws=settings.null_draws, seed=settings.seed)
    twin = None if second is None else best_cosines(rows, living_rows(second), absolute=True)
    matching = mean_match(best_cosines(rows, others, absolute=True), np.ones(len(rows)), null, twin)
    return matching.because("note", SAME_START) if apart is None else matching
