"""Codes one sample by one dictionary after another, all of them against the same flips and the same resamples
of documents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.coding.omp import Pursuit, pursue
from deltasae_ray.metrics.coding.sample import Average, Coded, Resamples, Sample, coded, most_used, use_of
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments, outside
from deltasae_ray.metrics.ratios import with_interval
from deltasae_ray.metrics.statistics import draws_p


@dataclass(frozen=True, eq=False)
class Structure:
    """V(X) = 1 - FVU(deltas) / mean FVU(flipped deltas): how much better atoms X code the deltas than
    featureless data like them."""

    measure: Measure
    coded: Coded
    draws: Float[np.ndarray, " draw"]
    """V in every bootstrap resample."""
    counts: Float[np.ndarray, "draw doc"]
    """The resamples of the documents."""

    @property
    def deleted(self) -> Float[np.ndarray, " doc"]:
        """V without each document."""
        fvu = self.coded.fvu_without()
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - fvu[:, 0] / fvu[:, 1:].mean(1)

    @property
    def fvu(self) -> float:
        return float(self.coded.fvu()[0, 0])

    @property
    def fvu_flipped(self) -> float:
        return float(self.coded.fvu()[0, 1:].mean())


def structure(parts: Coded, resamples: Resamples) -> Structure:
    """V with its bootstrap interval; p says whether the deltas are coded better than their flips (t test
    against the flips)."""
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
    structure = Structure(measure, parts, draws, resamples.counts)
    return replace(structure, measure=with_interval(measure, draws, structure.deleted))


@dataclass(frozen=True, eq=False)
class Coding:
    """A dictionary's atoms and what k of them left of the sample and of every flip."""

    coder: "Coder"
    atoms: Float[Tensor, "atom d_model"]
    pursuits: list[Pursuit]
    size: int
    """Atoms that could be chosen from: all, or those that a cut left."""

    @cached_property
    def use(self) -> list[Float[Tensor, " atom"]]:
        """What each atom carries of the chooser and of every flip of it: many cuts of one dictionary need it
        once."""
        return [
            use_of(x, self.atoms, min(self.coder.k, len(self.atoms))) for x in self.coder.chooser.versions
        ]

    @cached_property
    def cut(self) -> Callable[[int], "Coding"]:
        """The code by as many atoms that the chooser uses most; chosen anew for each flip, so that the null
        has the same choice."""
        return lru_cache(2)(self._cut)

    def _cut(self, size: int) -> "Coding":
        k, pairs = min(self.coder.k, size), zip(self.coder.sample.versions, self.use, strict=True)
        return replace(
            self, pursuits=[pursue(x, self.atoms[most_used(use, size)], k) for x, use in pairs], size=size
        )

    def structure(self, average: Average = "energy") -> Structure:
        """V of these atoms."""
        return self._structure(average)

    @cached_property
    def _structure(self) -> Callable[[Average], Structure]:
        return cache(
            lambda average: structure(coded(self.coder.sample, self.pursuits, average), self.coder.resamples)
        )


@dataclass(frozen=True, eq=False)
class Coder:
    """Codes one sample with one dictionary after another, all against the same flips and the same resamples
    of documents."""

    sample: Sample
    chooser: Sample
    """Training deltas, with the same flips, on which the atoms that a large dictionary keeps are chosen."""
    resamples: Resamples
    k: int
    training: Moments
    """Of the training deltas."""

    @cached_property
    def rest(self) -> Moments:
        """Moments of the training deltas outside the direction of their mean: what is coded."""
        return self.training.outside_mean()

    @property
    def participation(self) -> float:
        """Directions in which the deltas live: of all that varies or of what is coded, whichever are
        fewer."""
        return min(self.training.spectrum.participation_ratio, self.rest.spectrum.participation_ratio)

    def outside_mean(self, atoms: Matrix) -> Float[Tensor, "atom d_model"]:
        """Atoms without what they have along the mean of the training deltas.

        Raises:
            GeometryError: atoms of another d_model.
        """
        rows, width = matrix(atoms, "atoms"), len(self.training.mean)
        if rows.shape[1] != width:
            raise GeometryError(
                f"atoms live in d_model={rows.shape[1]}, the deltas in d_model={width}: another model's"
                " dictionary?"
            )
        return outside(rows, self.training.mean)

    def code(self, atoms: Matrix) -> Coding:
        """Codes the sample with all atoms, all of them outside the direction of the mean."""
        atoms = self.outside_mean(atoms)
        return Coding(
            self, atoms, [pursue(x, atoms, min(self.k, len(atoms))) for x in self.sample.versions], len(atoms)
        )


def make_coder(
    deltas: Tensor, training: Tensor, doc_ids: Sequence | np.ndarray, moments: Moments, settings: Settings
) -> Coder:
    """A coder for at most `settings.code_tokens` of the evaluation deltas, centred and flipped by the moments
    of the training deltas."""
    draws, seed = settings.null_draws, settings.seed
    kept, other = (spread(len(rows), settings.code_tokens) for rows in (deltas, training))
    docs = np.asarray(doc_ids)
    make = partial(
        Sample.of, mean=moments.mean, spectrum=moments.outside_mean().spectrum, draws=draws, seed=seed
    )
    sample = make(deltas[kept], doc_ids=docs[kept])
    chooser = make(training[other], doc_ids=np.arange(len(other)))
    resamples = Resamples.draw(sample.num_docs, draws, settings.bootstrap, seed)
    return Coder(sample, chooser, resamples, settings.k, moments)


def spread(num_rows: int, wanted: int) -> Int[np.ndarray, " row"]:
    """Indices of at most `wanted` of `num_rows` rows, evenly spaced."""
    return (
        np.arange(num_rows)
        if num_rows <= wanted
        else np.linspace(0, num_rows - 1, wanted).round().astype(np.int64)
    )
