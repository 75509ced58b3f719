"""The pooled missing share: what the delta dictionary adds beside the reference, dense parts coded alike.

The plain missing share divides by each dictionary's own flips, so it moves with how much of the deltas is
dense. Here every coding holds the same pool of N(0, Σ) atoms, which codes what is dense, and one difference
is divided by another of the same kind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix
from deltasae_ray.metrics.coding.dictionary_coding import Coder
from deltasae_ray.metrics.coding.matched_sizes import Matched
from deltasae_ray.metrics.coding.missing_share import MIN_PARTICIPATION, matched_codings, too_few_directions
from deltasae_ray.metrics.coding.parts import Part, between, pursue_parts
from deltasae_ray.metrics.coding.sample import Average, coded, most_used, use_of
from deltasae_ray.metrics.inputs import Settings
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Spectrum, matched_rows
from deltasae_ray.metrics.ratios import with_interval

POOL = 4
"""Pool atoms for each atom of the larger dictionary."""
_KEPT = 16
"""Products between two parts of the atoms that are kept: of some flips."""
MIN_GAIN = 0.02
"""Lower bound of the share of the residual that the delta dictionary must take beside flipped reference
atoms."""


def pooled_missing_share(  # noqa: PLR0913 - a figure's settings, by keyword
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
    """Computes what the delta dictionary adds beside the reference, over what it adds beside a flipped one.

    M_p = [FVU(P+G+ΔS) − FVU(P+G+Δ)] / [FVU(P+GS'+ΔS) − FVU(P+GS'+Δ)].
    P is a pool of N(0, Σ) atoms, G the
    reference, Δ the delta dictionary, S and S' random sign flips of atoms in the eigenbasis of Σ. 0: all
    that it adds is in the reference;
    1: none of it.

    Args:
        deltas: evaluation deltas [token, d_model], raw: the mean and its direction are taken off here.
        dictionary: decoder of the dictionary that was trained on deltas [latent, d_model], alive rows.
        reference: decoder that is held against it [latent, d_model].
        k: atoms per token, 1..8 (above, featureless atoms explain most of any delta).
        doc_ids: document of each row; without it every row counts as a document of its own, and
            intervals are too short.
        training: training deltas, whose mean and covariance make pool and flips; without them those of
            `deltas`.
        second: decoder of another delta dictionary (another seed); its M_p in the place of the
            reference is the ceiling.
        draws: pairs of sign flips.
        max_tokens: rows that are coded, spread evenly.

    Returns:
        The share with its interval over documents and flips. Undefined where the deltas have fewer than 4
        directions, where the dictionary adds nothing even beside flipped reference atoms, and where cutting
        the larger dictionary changes the answer.

    Raises:
        GeometryError: k outside 1..8, fewer than 2 flips, or matrices of different d_model.
    """
    if draws < 2:
        raise GeometryError(f"draws={draws} sign flips: at least 2 are needed to know how much flips differ")
    settings = Settings(k, max_tokens, draws, bootstrap, seed)
    matched = matched_codings(deltas, (dictionary, reference, second), training, doc_ids, settings)
    return matched if isinstance(matched, Measure) else compare_pooled(matched, average, seed=seed)


def compare_pooled(pair: Matched, average: Average = "energy", *, seed: int = 0) -> Measure:
    """Computes M_p of two dictionaries of matched sizes; the ceiling is that of the pair's second delta
    dictionary, if it has one."""
    coder, n = pair.delta.whole.coder, pair.delta.whole.coder.sample.num_docs
    if pair.participation < MIN_PARTICIPATION:
        return too_few_directions(pair.participation, n)
    for sized in (pair.delta, pair.reference):
        if refused := sized.refused(average):
            reason = f"{refused}: the answer would depend on size, so fit dictionaries of closer sizes"
            return undefined(reason, null=1.0, n=n)
    delta, reference = (
        _atoms(coder, sized.used.atoms, sized.used.size) for sized in (pair.delta, pair.reference)
    )
    added = _added(coder, delta, reference, average, seed)
    gain, lower = added.gain, float(np.quantile(added.gain_draws, 0.025))
    if not lower >= MIN_GAIN:
        return undefined(
            f"beside featureless atoms the delta dictionary adds {gain:.3f} of what they leave (lower bound "
            f"{lower:.3f}, {MIN_GAIN:g} is needed): the delta dictionary is weak, so train it on more tokens "
            "or with a larger k",
            null=1.0,
            n=n,
        )
    atoms = POOL * max(len(delta), len(reference))
    reason = f"sizes: {pair.delta} against {pair.reference}; pool of {atoms} N(0, Σ) atoms"
    ceiling = None
    if pair.second is not None and not pair.second.refused(average):
        twin = _atoms(coder, pair.second.used.atoms, pair.second.used.size)
        ceiling = _added(coder, delta, twin, average, seed).share
    measure = Measure(added.share, null=1.0, ceiling=ceiling, n=n).because("note", reason)
    return with_interval(measure, added.draws, added.deleted)


def _atoms(coder: Coder, atoms: Float[Tensor, "atom d_model"], size: int) -> Float[Tensor, "atom d_model"]:
    """All atoms, or those that carry most on the training deltas; a cut is made once, so that flips turn
    the same atoms."""
    if size >= len(atoms):
        return atoms
    return atoms[most_used(use_of(coder.chooser.x, atoms, min(coder.k, len(atoms))), size)]


def _turned(part: Part, spectrum: Spectrum, signs: np.ndarray) -> Part:
    """Flips the signs of coordinates in the eigenbasis."""
    basis = spectrum.vectors.to(part.atoms.dtype)
    return part.turned((part.atoms @ basis * torch.from_numpy(signs).to(part.atoms.dtype)) @ basis.T)


@dataclass(frozen=True, eq=False)
class _Added:
    """What a delta dictionary adds beside a reference."""

    share: float
    """M_p."""
    draws: Float[np.ndarray, " draw"]
    """Of the share."""
    deleted: Float[np.ndarray, " doc"]
    """The share without each document."""
    gain: float
    """What Δ takes of what P + GS' + ΔS leaves."""
    gain_draws: Float[np.ndarray, " draw"]


def _added(coder: Coder, delta: Tensor, reference: Tensor, average: Average, seed: int) -> _Added:
    spectrum, sample, flips = coder.rest.spectrum, coder.sample, len(coder.sample.flipped)
    rng = np.random.default_rng([seed, 7])
    atoms = matched_rows(
        spectrum, POOL * max(len(delta), len(reference)), torch.Generator().manual_seed(seed + 7)
    )
    pool, first, other = (Part.of(x) for x in (atoms, delta, reference))
    left = partial(_left, coder, average, lru_cache(maxsize=_KEPT)(between), pool)
    whole = left(other, first)
    without, beside_flipped, flipped = [], [], []
    for _ in range(flips):
        signs = rng.choice([-1.0, 1.0], size=(2, len(spectrum.values)))
        first_turned, other_turned = _turned(first, spectrum, signs[0]), _turned(other, spectrum, signs[1])
        without.append(left(other, first_turned))
        beside_flipped.append(left(other_turned, first))
        flipped.append(left(other_turned, first_turned))
    counts, picks = coder.resamples.counts, coder.resamples.picks
    own = np.arange(flips)[None]

    def figures(total: Callable[[np.ndarray], np.ndarray], picks: np.ndarray) -> tuple[np.ndarray, ...]:
        first = total(whole[:, None])[:, 0]
        a, b, c = (
            np.take_along_axis(total(np.stack(x, 1)), picks, 1).mean(1)
            for x in (without, beside_flipped, flipped)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return (a - first) / (c - b), (c - b) / c

    (share, gain) = figures(lambda x: x.sum(0, keepdims=True), own)
    share_draws, gain_draws = figures(lambda x: counts @ x, picks)
    deleted, _ = figures(lambda x: x.sum(0) - x, np.tile(own, (sample.num_docs, 1)))
    return _Added(float(share[0]), share_draws, deleted, float(gain[0]), gain_draws)


def _left(
    coder: Coder, average: Average, products: Callable[[Part, Part], Tensor], *parts: Part
) -> Float[np.ndarray, " doc"]:
    """Sums, over documents, of what k atoms of all these leave of the deltas."""
    return coded(coder.sample, [pursue_parts(coder.sample.x, parts, coder.k, products)], average).left[:, 0]
