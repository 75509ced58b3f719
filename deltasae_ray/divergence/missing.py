"""The missing share: how much of the structure in the deltas a reference dictionary lacks. The headline of the product.

What varies along the mean change is set aside with it, in deltas and in atoms: a fitted dictionary splits the mean between its bias and
its latents, so its atoms lean towards the mean, and would code centred deltas better than the atoms that made them (M of the true atoms
.14 instead of 0: docs/benchmarks.md). The mean change has its own figures (`mean_change`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.divergence.arrays import Matrix, matrix
from deltasae_ray.divergence.coding import Average, Coded, Resamples, Sample, coded, most_used
from deltasae_ray.divergence.measure import Measure, undefined
from deltasae_ray.divergence.moments import Moments, outside
from deltasae_ray.divergence.omp import Pursuit, pursue
from deltasae_ray.divergence.ratios import with_interval, with_kappa_interval
from deltasae_ray.divergence.statistics import document_codes, draws_p, kappa
from deltasae_ray.errors import GeometryError

MIN_PARTICIPATION = 4.0
"""Deltas that live in fewer directions than this are explained by any handful of atoms."""
MIN_STRUCTURE = 0.05
"""Lower bound of V(delta dictionary) below which there is no structure of which a share could be missing."""
MIN_FIRINGS = 30.0
"""Training firings per latent below which a dictionary says more about its training tokens than about the deltas."""
MAX_SIZE_RATIO = 4.0
"""The larger dictionary is cut to this many times the smaller: many atoms explain more than few, whatever they are."""
MAX_SIZE_EFFECT = 0.1
"""If the cut changes V by more than this, the answer would be one about sizes."""


@dataclass(frozen=True, eq=False)
class Structure:
    """V(X) = 1 - FVU(deltas) / mean FVU(flipped deltas): how much better atoms X code the deltas than featureless data like them."""

    measure: Measure
    coded: Coded
    draws: Float[np.ndarray, " draw"]
    """V in every bootstrap resample."""
    counts: Float[np.ndarray, "draw doc"]
    """The resamples of the documents."""

    @property
    def fvu(self) -> float:
        return float(self.coded.fvu()[0, 0])

    @property
    def fvu_flipped(self) -> float:
        return float(self.coded.fvu()[0, 1:].mean())


def structure(parts: Coded, resamples: Resamples) -> Structure:
    """V with its bootstrap interval; p says whether the deltas are coded better than their flips (t test against the flips)."""
    fvu, boot = parts.fvu()[0], parts.fvu(resamples.counts)
    null = float(fvu[1:].mean())
    if not null > 0:
        return Structure(
            undefined("the atoms explain everything, flipped or not: lower k", n=len(parts.left)),
            parts,
            np.zeros(len(boot)),
            resamples.counts,
        )
    draws = 1 - boot[:, 0] / resamples.null_means(boot)
    p = draws_p(float(fvu[0]), fvu[1:], "less", float((boot[:, 0] - boot[:, 1:].mean(1)).var(ddof=1)))
    measure = Measure(float(1 - fvu[0] / null), null=0.0, p=p, n=len(parts.left))
    return Structure(with_interval(measure, draws), parts, draws, resamples.counts)


def share_missing(reference: Structure, delta: Structure, participation: float, ceiling: Structure | None = None) -> Measure:
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
            f"the delta dictionary codes the deltas hardly better than featureless data like them (V {delta.measure.value:.2f}, "
            f"lower bound {lower:.2f}, {MIN_STRUCTURE:g} is needed): no structure of which a share could be missing",
            null=1.0,
            n=n,
        )
    value = 1 - reference.measure.value / delta.measure.value
    best = None if ceiling is None or ceiling.measure.value is None else 1 - ceiling.measure.value / delta.measure.value
    gap_se = 0.0 if ceiling is None else float((ceiling.draws / delta.draws).std(ddof=1))
    place, told = kappa(value, 1.0, best, gap_se, "less")
    measure = Measure(value, null=1.0, ceiling=best, p=reference.measure.p, kappa=place, n=n).because(told)
    if ceiling is not None and place is not None:
        # κ = (M - 1)/(M of the ceiling - 1) = V(reference)/V(second dictionary): one resample of documents and flips moves all three
        measure = with_kappa_interval(measure, reference.draws / ceiling.draws)
    return with_interval(measure, 1 - reference.draws / delta.draws)


@dataclass(frozen=True, eq=False)
class Coding:
    """A dictionary's atoms and what k of them left of the sample and of every flip."""

    atoms: Float[Tensor, "atom d_model"]
    pursuits: list[Pursuit]

    def first(self, k: int) -> "Coding":
        """The same with the first k atoms of each token: pursuit is greedy, so they are what it would choose with k."""
        kept = [replace(p, residual_energy=p.residual_energy[:, : k + 1], support=p.support[:, :k]) for p in self.pursuits]
        return Coding(self.atoms, kept)


@dataclass(frozen=True, eq=False)
class Coder:
    """Codes one sample with one dictionary after another, all against the same flips and the same resamples of documents."""

    sample: Sample
    chooser: Sample
    """Training deltas, with the same flips, on which the atoms that a large dictionary keeps are chosen."""
    resamples: Resamples
    k: int
    training: Moments
    """Of the training deltas."""

    @cached_property
    def rest(self) -> Moments:
        """Of the training deltas outside the direction of their mean: what is coded."""
        return self.training.outside_mean()

    @property
    def participation(self) -> float:
        """Directions in which the deltas live: of all that varies or of what is coded, whichever are fewer."""
        return min(self.training.spectrum.participation_ratio, self.rest.spectrum.participation_ratio)

    def outside_mean(self, atoms: Matrix) -> Float[Tensor, "atom d_model"]:
        """Atoms without what they have along the mean of the training deltas."""
        return outside(matrix(atoms, "atoms"), self.training.mean)

    def code(self, atoms: Matrix) -> Coding:
        """Of the sample with all atoms, all of them outside the direction of the mean."""
        atoms = self.outside_mean(atoms)
        return Coding(atoms, [pursue(x, atoms, min(self.k, len(atoms))) for x in self.sample.versions])

    def cut(self, coding: Coding, size: int) -> Coding:
        """The same with the `size` atoms that the chooser uses most; chosen anew for each flip, so that the null has the same choice."""
        k, pairs = min(self.k, size), zip(self.sample.versions, self.chooser.versions, strict=True)
        return Coding(coding.atoms, [pursue(x, coding.atoms[most_used(other, coding.atoms, k, size)], k) for x, other in pairs])

    def structure(self, coding: Coding, average: Average = "energy") -> Structure:
        return structure(coded(self.sample, coding.pursuits, average), self.resamples)


@dataclass(frozen=True)
class Comparison:
    """M and the two codings it comes from."""

    missing: Measure
    reference: Structure
    delta: Structure


def compare_structure(
    coder: Coder, delta: Coding, reference: Coding, *, average: Average = "energy", second: Coding | None = None
) -> Comparison:
    """M from the codings of one sample by both dictionaries; the larger is cut to MAX_SIZE_RATIO times the smaller.

    Args:
        second: coding by another delta dictionary, which gives the ceiling.
    """
    whole = {"delta dictionary": delta, "reference": reference}
    limit = int(MAX_SIZE_RATIO * min(len(c.atoms) for c in whole.values()))
    used = {name: coder.structure(c, average) for name, c in whole.items()}
    effects = []
    for name, coding in whole.items():
        if len(coding.atoms) > limit:
            before, used[name] = used[name].measure.value or 0.0, coder.structure(coder.cut(coding, limit), average)
            effects.append((name, len(coding.atoms), before, used[name].measure.value or 0.0))
    ceiling = None if second is None else coder.structure(second, average)
    missing = share_missing(used["reference"], used["delta dictionary"], coder.participation, ceiling)
    for name, size, before, after in effects:
        missing = _after_cut(missing, name, size, limit, before, after)
    return Comparison(missing, used["reference"], used["delta dictionary"])


def _after_cut(missing: Measure, name: str, size: int, limit: int, before: float, after: float) -> Measure:
    if abs(before - after) > MAX_SIZE_EFFECT:
        return undefined(
            f"the {name} has {size} atoms, over {MAX_SIZE_RATIO:g} times the other; its {limit} most used give V {after:.2f}, all give "
            f"{before:.2f}: the answer would depend on size, so fit dictionaries of closer sizes",
            null=1.0,
            n=missing.n,
        )
    return missing if missing.value is None else missing.because(f"the {limit} most used of the {size} atoms of the {name} were compared")


def missing_share(
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
    """M(k) = 1 - V(reference) / V(dictionary): 0, all structure that the delta dictionary found is in the reference; 1, the reference
    does no better than featureless atoms.

    Args:
        deltas: evaluation deltas [token, d_model], raw: the mean and its direction are taken off here.
        dictionary: decoder of the dictionary that was trained on deltas [latent, d_model], alive rows.
        reference: decoder that is held against it [latent, d_model].
        k: atoms per token, 1..8 (above, featureless atoms explain most of any delta).
        doc_ids: document of each row; without it every row counts as a document of its own, and intervals are too short.
        training: training deltas, whose mean and covariance make the null; without them those of `deltas`.
        second: decoder of another delta dictionary (another seed); its M is the ceiling.
        draws: sign flips behind the null.
        max_tokens: rows that are coded, spread evenly.

    Returns:
        Undefined where the deltas have fewer than 4 directions, where the dictionary found no structure (lower bound of V under .05), and
        where the sizes differ more than 4 times and cutting the larger changes the answer.

    Raises:
        GeometryError: k outside 1..8, or matrices of different d_model.
    """
    if not 1 <= k <= 8:
        raise GeometryError(f"k={k} atoms per token: choose 1 to 8; above, featureless atoms explain most of any delta")
    x = matrix(deltas, "deltas", None)
    fit = x if training is None else matrix(training, "training", None)
    docs = np.arange(len(x)) if doc_ids is None else np.asarray(doc_ids)
    moments = Moments.of(fit)
    if moments.spectrum.participation_ratio < MIN_PARTICIPATION:
        return too_few_directions(moments.spectrum.participation_ratio, document_codes(docs)[1])
    coder = make_coder(x, fit, docs, moments, k=k, draws=draws, bootstrap=bootstrap, max_tokens=max_tokens, seed=seed)
    twin = None if second is None else coder.code(second)
    return compare_structure(coder, coder.code(dictionary), coder.code(reference), average=average, second=twin).missing


def make_coder(
    deltas: Tensor,
    training: Tensor,
    doc_ids: Sequence | np.ndarray,
    moments: Moments,
    *,
    k: int,
    draws: int,
    bootstrap: int,
    max_tokens: int,
    seed: int,
) -> Coder:
    """A coder for at most `max_tokens` of the evaluation deltas, centred and flipped by the moments of the training deltas."""
    kept, other = spread(len(deltas), max_tokens), spread(len(training), max_tokens)
    docs = np.asarray(doc_ids)
    make = partial(Sample.of, mean=moments.mean, spectrum=moments.outside_mean().spectrum, draws=draws, seed=seed)
    sample = make(deltas[kept], doc_ids=docs[kept])
    chooser = make(training[other], doc_ids=np.arange(len(other)))
    return Coder(sample, chooser, Resamples.draw(sample.num_docs, draws, bootstrap, seed), k, moments)


def too_few_directions(participation: float, num_docs: int) -> Measure:
    """M is undefined: a handful of atoms of any dictionary explains deltas of a handful of directions."""
    return undefined(
        f"the deltas live in {participation:.1f} directions (participation ratio), {MIN_PARTICIPATION:g} are needed", null=1.0, n=num_docs
    )


def spread(num_rows: int, wanted: int) -> Int[np.ndarray, " row"]:
    """Indices of at most `wanted` of `num_rows` rows, evenly spaced."""
    return np.arange(num_rows) if num_rows <= wanted else np.linspace(0, num_rows - 1, wanted).round().astype(np.int64)
