"""The missing share: how much of the structure in the deltas a reference dictionary lacks. The headline of
the product.

What varies along the mean change is set aside with it, in deltas and in atoms: a fitted dictionary splits the
mean between its bias and its latents, so its atoms lean towards the mean, and would code centred deltas
better than the atoms that made them (M of the true atoms .14 instead of 0: docs/benchmarks.md). The mean
change has its own figures (`mean_change`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.coding.dictionary_coding import Structure, make_coder
from deltasae_ray.metrics.coding.matched_sizes import Matched, match_sizes
from deltasae_ray.metrics.coding.sample import Average
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.metrics.ratios import bootstrap_p, with_interval, with_kappa_interval
from deltasae_ray.metrics.statistics import document_codes, kappa

if TYPE_CHECKING:
    from deltasae_ray.metrics.inputs import DictionaryLike

MIN_PARTICIPATION = 4.0
"""Deltas that live in fewer directions than this are explained by any handful of atoms."""
MIN_STRUCTURE = 0.05
"""Lower bound of V(delta dictionary) below which there is no structure of which a share could be missing."""
MIN_FIRINGS = 30.0
"""Training firings per latent below which a dictionary says more about its training tokens than about the
deltas."""


def share_missing(
    reference: Structure, delta: Structure, participation: float, ceiling: Structure | None = None
) -> Measure:
    """M = 1 - V(reference) / V(delta dictionary), from two codings of the same sample.

    Args:
        participation: participation ratio of the deltas.
        ceiling: a second delta dictionary, to say what one that should see everything gets.
    """
    n = delta.measure.n
    if participation < MIN_PARTICIPATION:
        return too_few_directions(participation, n)
    if delta.measure.value is None or reference.measure.value is None:
        return undefined(delta.measure.reason or reference.measure.reason, null=1.0, n=n)
    lower = float(np.quantile(delta.draws, 0.025))
    if not lower >= MIN_STRUCTURE:
        return undefined(
            "the delta dictionary codes the deltas hardly better than featureless data like them (V"
            f" {delta.measure.value:.2f}, lower bound {lower:.2f}, {MIN_STRUCTURE:g} is needed): no structure"
            " of which a share could be missing",
            null=1.0,
            n=n,
        )
    value = 1 - reference.measure.value / delta.measure.value
    best = (
        None
        if ceiling is None or ceiling.measure.value is None
        else 1 - ceiling.measure.value / delta.measure.value
    )
    gap_se = 0.0 if ceiling is None else float((ceiling.draws / delta.draws).std(ddof=1))
    place, reason = kappa(value, 1.0, best, gap_se, "less")
    measure = Measure(value, null=1.0, ceiling=best, p=reference.measure.p, kappa=place, n=n).because(
        "kappa", reason
    )
    if ceiling is not None and place is not None:
        # κ = (M - 1)/(M of the ceiling - 1) = V(reference)/V(second dictionary): one resample of documents
        # and flips moves all three
        measure = with_kappa_interval(measure, reference.draws / ceiling.draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        deleted = 1 - reference.deleted / delta.deleted
    return with_interval(measure, 1 - reference.draws / delta.draws, deleted)


@dataclass(frozen=True)
class Comparison:
    """M and the two structures it comes from."""

    pair: Matched
    missing: Measure
    reference: Structure
    delta: Structure
    average: Average


def compare_structure(pair: Matched, average: Average = "energy") -> Comparison:
    """M of two dictionaries of matched sizes; the ceiling is that of the pair's second delta dictionary, if
    it has one.

    Sizes are said beside the value; where a cut changed V by too much, M is one of sizes and undefined, and
    so is a ceiling.
    """
    delta, reference = pair.delta.structure(average), pair.reference.structure(average)
    second, refused_second = None, ""
    if pair.second is not None:
        refused_second = pair.second.refused(average)
        second = None if refused_second else pair.second.structure(average)
    missing = share_missing(reference, delta, pair.participation, second)
    for sized in (pair.delta, pair.reference):
        if refused := sized.refused(average):
            missing = undefined(
                f"{refused}: the answer would depend on size, so fit dictionaries of closer sizes",
                null=1.0,
                n=missing.n,
            )
    if missing.value is not None:
        missing = missing.because("note", f"sizes: {pair.delta} against {pair.reference}")
        if refused_second:
            missing = missing.because("ceiling", f"no ceiling: {refused_second}")
        elif pair.second is not None:
            missing = missing.because("ceiling", f"the ceiling is that of {pair.second}")
    return Comparison(pair, missing, reference, delta, average)


def missing_share(  # noqa: PLR0913 - public: a figure's settings, by keyword
    deltas: Matrix,
    dictionary: Matrix,
    reference: Matrix,
    k: int = 8,
    *,
    doc_ids: Sequence | np.ndarray | None = None,
    training: Matrix | None = None,
    second: Matrix | None = None,
    average: Average = "energy",
    draws: int = 5,
    bootstrap: int = 1000,
    max_tokens: int = 4096,
    seed: int = 0,
) -> Measure:
    """M(k) = 1 - V(reference) / V(dictionary): 0, all structure that the delta dictionary found is in the
    reference; 1, the reference does no better than featureless atoms.

    Args:
        deltas: evaluation deltas [token, d_model], raw: the mean and its direction are taken off here.
        dictionary: decoder of the dictionary that was trained on deltas [latent, d_model], alive rows.
        reference: decoder that is held against it [latent, d_model].
        k: atoms per token, 1..8 (above, featureless atoms explain most of any delta).
        doc_ids: document of each row; without it every row counts as a document of its own, and intervals are
            too short.
        training: training deltas, whose mean and covariance make the null; without them those of `deltas`.
        second: decoder of another delta dictionary (another seed), cut to the size of the first; its M is the
            ceiling.
        draws: sign flips behind the null.
        max_tokens: rows that are coded, spread evenly.

    Returns:
        The larger dictionary is cut to 4 times the smaller, and the reason says both sizes. Undefined where
        the deltas have fewer than 4 directions, where the dictionary found no structure (lower bound of V
        under .05), and where that cut changes the answer.

    Raises:
        GeometryError: k outside 1..8, or matrices of different d_model.
    """
    settings = Settings(k, max_tokens, draws, bootstrap, seed)
    matched = matched_codings(deltas, (dictionary, reference, second), training, doc_ids, settings)
    return matched if isinstance(matched, Measure) else compare_structure(matched, average).missing


def matched_codings(
    deltas: Matrix,
    dictionaries: tuple[Matrix, Matrix, Matrix | None],
    training: Matrix | None,
    doc_ids: Sequence | np.ndarray | None,
    settings: Settings,
    moments: Moments | None = None,
) -> Matched | Measure:
    """Codes deltas by dictionaries of matched sizes; a measure where they have too few directions.

    Args:
        dictionaries: fitted to deltas, the reference, another fitted to deltas or None.
        moments: of the training rows, where they are known.

    Raises:
        GeometryError: k outside 1..8, or matrices of different d_model.
    """
    if not 1 <= settings.k <= 8:
        raise GeometryError(
            f"k={settings.k} atoms per token: choose 1 to 8; above, featureless atoms explain most of any"
            " delta"
        )
    x = matrix(deltas, "deltas", None)
    fit = x if training is None else matrix(training, "training", None)
    docs = np.arange(len(x)) if doc_ids is None else np.asarray(doc_ids)
    moments = moments or Moments.of(fit)
    if moments.spectrum.participation_ratio < MIN_PARTICIPATION:
        return too_few_directions(moments.spectrum.participation_ratio, document_codes(docs)[1])
    coder = make_coder(x, fit, docs, moments, settings)
    dictionary, reference, second = dictionaries
    twin = None if second is None else coder.code(second)
    return match_sizes(coder.code(dictionary), coder.code(reference), twin)


def over_control(reference: Comparison, control: Comparison) -> Measure:
    """M(reference) - M(base control), from the same resamples: what the reference misses beyond a second
    dictionary of its own kind."""
    n = reference.missing.n
    for structure in (reference.missing, control.missing):
        if structure.value is None:
            return undefined(structure.reason, null=0.0, n=n)
    assert reference.missing.value is not None and control.missing.value is not None
    draws, deleted = (
        own(control.reference) / own(control.delta) - own(reference.reference) / own(reference.delta)
        for own in (attrgetter("draws"), attrgetter("deleted"))
    )
    difference = reference.missing.value - control.missing.value
    measure = Measure(difference, null=0.0, p=bootstrap_p(draws, "two-sided"), n=n)
    return with_interval(measure, draws, deleted)


def too_little_training(dictionary: "DictionaryLike", rows: int) -> str:
    """Why no missing share may rest on a delta dictionary: it saw too few firings per latent; empty where it
    saw enough.

    Args:
        rows: training tokens that are here; a dictionary's own account counts before it.
    """
    firings = firings_per_latent(dictionary, rows)
    if firings >= MIN_FIRINGS:
        return ""
    return (
        f"the delta dictionary saw {firings:.0f} firings per latent ({dictionary.rows or rows} training"
        f" tokens), {MIN_FIRINGS:g} are needed: harvest more tokens or lower d_sae"
    )


def firings_per_latent(dictionary: "DictionaryLike", rows: int) -> float:
    """On its training tokens: its own account, since of a stream only the first window is here."""
    return float(dictionary.firing.double().sum()) * (dictionary.rows or rows) / len(dictionary.W_dec)


def too_few_directions(participation: float, num_docs: int) -> Measure:
    """M is undefined: a handful of atoms of any dictionary explains deltas of a handful of directions."""
    return undefined(
        f"the deltas live in {participation:.1f} directions (participation ratio), {MIN_PARTICIPATION:g} are"
        " needed",
        null=1.0,
        n=num_docs,
    )
