"""The audit: each direction that an adapter writes, with how loud it is, whether the reference can express
it, and whether it comes back.

A direction is a decoder row of the delta dictionary, or the mean change μ, which no latent holds and which
stands first. No row is evidence by itself: another seed of the same dictionary finds other latents (Paulo &
Belrose 2025), and some directions are invisible by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from deltasae_ray.analyses.audit.direction_figures import (
    ALONE,
    TESTED,
    InvisibilityByChance,
    nearest_latents,
    peaks,
    repeat_measure,
    reproducibility,
    unexplained,
)
from deltasae_ray.metrics.arrays import unit_rows
from deltasae_ray.metrics.coding.sample import flips
from deltasae_ray.metrics.geometry.matching_figures import REPEATS
from deltasae_ray.metrics.inputs import DictionaryLike, Settings, living_rows
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.moments import Moments, Spectrum
from deltasae_ray.metrics.statistics import draws_p, percentile_interval

AUDITED = 1024
"""At most so many latents of a dictionary, those of most energy; and the TESTED of the highest peaks."""
TOTALS = ("latent_blind_energy", "latent_repeating_energy")
"""What the rows come to, by name of the catalogue; `repeat_share` is of all latents alike."""


@dataclass(frozen=True, eq=False)
class AuditInputs:
    """One dictionary of deltas at one layer, and what it is held against. Rows at position 0 are already
    dropped."""

    dictionary: DictionaryLike
    reference: DictionaryLike
    others: Sequence[DictionaryLike]
    """Dictionaries of the same recipe on the same deltas from other seeds; none where there was one seed."""
    delta: Moments
    """Of the training deltas."""
    base: Spectrum
    """Of the base activations of the same tokens."""
    delta_eval: Float[np.ndarray, "token d_model"]


@dataclass(frozen=True)
class AuditedLatent:
    """What is measured of one direction; ranks and energies are None where it stands beside the ranking."""

    latent: int | None
    """Index in the dictionary; None for the mean change."""
    rank: int | None
    """By energy × reproducibility (by energy alone with one seed); 0 for the mean change."""
    peak_rank: int | None
    """By peak energy."""
    energy_share: float | None
    """E[z²] of the latent on the training tokens over that of all living latents; for the mean change ‖μ‖² /
    E‖δ‖²."""
    peak_energy: float | None
    """The largest energy it gives one evaluation token, in units of the mean energy of a delta."""
    invisibility: Measure
    """1 - R² by k atoms of the reference; the null flips signs in the eigenbasis of base activations; p: of
    being less visible."""
    percentile: float | None
    """Share of its own flips that are more visible than it is."""
    percentile_haar: float | None
    """Percentile among Haar-random directions: what a rotation of everything would do."""
    blind_spot: float | None
    """Energy share × invisibility."""
    reproducibility: Measure
    """Mean over the other seeds of |cos| with its best match there; the null are as many rows drawn from N(0,
    Σ_δ)."""
    nearest: int | None
    """Reference latent with the largest |cos|."""
    nearest_cosine: float | None
    """Signed cosine with the nearest latent."""

    @property
    def repeats(self) -> bool | None:
        """None where that is not known."""
        return None if self.reproducibility.value is None else self.reproducibility.value >= REPEATS


@dataclass(frozen=True)
class Audit:
    """All rows of one dictionary, the mean change first, then by rank; and what they come to."""

    rows: tuple[AuditedLatent, ...]
    alive: int
    totals: dict[str, Measure]
    """By name of the catalogue."""

    def leading(self, count: int) -> list[AuditedLatent]:
        """The mean change and the first `count` latents."""
        return list(self.rows[: count + 1])


def audit(inputs: AuditInputs, settings: Settings) -> Audit:
    """Every figure of every audited latent.

    Raises:
        GeometryError: a dictionary without a living latent, or of another d_model.
    """
    dictionary, k = inputs.dictionary, settings.k
    if not np.any(inputs.delta_eval) or not bool(inputs.delta.mean.any() or inputs.delta.scatter.any()):
        silent = undefined("the deltas are zero: the adapter changes nothing here")
        return Audit((), 0, dict.fromkeys(TOTALS, silent))
    alive = np.flatnonzero(np.asarray(dictionary.alive.tolist(), dtype=bool))
    decoder, reference = unit_rows(living_rows(dictionary)), living_rows(inputs.reference)
    names = np.flatnonzero(np.asarray(inputs.reference.alive.tolist(), dtype=bool))
    loud = np.asarray(dictionary.energy.tolist(), dtype=np.float64)[alive]
    share = loud / loud.sum() if loud.sum() > 0 else np.zeros(len(alive))
    scale = float(np.square(inputs.delta_eval, dtype=np.float64).sum(1).mean())
    peak = peaks(dictionary, inputs.delta_eval)[alive] / scale if scale > 0 else np.zeros(len(alive))
    kept = np.union1d(np.argsort(-share, kind="stable")[:AUDITED], np.argsort(-peak, kind="stable")[:TESTED])
    share, peak, alive, decoder = share[kept], peak[kept], alive[kept], decoder[torch.from_numpy(kept)]

    repeated, by_chance = reproducibility(decoder, inputs.others, inputs.delta, settings)
    order = np.argsort(-share * (1.0 if repeated is None else repeated), kind="stable")
    by_peak = np.argsort(-peak, kind="stable")
    tested = np.union1d(order[:TESTED], by_peak[:TESTED])
    unseen = unexplained(decoder, reference, k)
    against = InvisibilityByChance.of(
        decoder[torch.from_numpy(tested)], reference, inputs.base, k, settings.seed
    )
    nearest, cosine = nearest_latents(decoder, reference)
    places, peak_places = np.argsort(order), np.argsort(by_peak)
    rows = [_mean_row(inputs, reference, names, against, settings)]
    for i in order.tolist():
        at = int(np.searchsorted(tested, i)) if i in tested else None
        rows.append(
            AuditedLatent(
                latent=int(alive[i]),
                rank=int(places[i]) + 1,
                peak_rank=int(peak_places[i]) + 1,
                energy_share=float(share[i]),
                peak_energy=float(peak[i]),
                **against.figures(float(unseen[i]), at),
                blind_spot=float(share[i] * unseen[i]),
                reproducibility=repeat_measure(repeated, by_chance, i, len(inputs.others)),
                nearest=int(names[nearest[i]]),
                nearest_cosine=float(cosine[i]),
            )
        )
    totals = (
        _blind_energy(decoder, share, unseen, reference, inputs.base, settings),
        _repeating(share, repeated, by_chance, settings.seed),
    )
    return Audit(tuple(rows), len(loud), dict(zip(TOTALS, totals, strict=True)))


def _mean_row(
    inputs: AuditInputs,
    reference: Tensor,
    names: np.ndarray,
    against: InvisibilityByChance,
    settings: Settings,
) -> AuditedLatent:
    """The mean change: never on the same scale as latents, but where a narrow fine-tune may live alone."""
    mean, cov = inputs.delta.mean, inputs.delta.scatter.diagonal().sum() / inputs.delta.n
    total = float(mean @ mean + cov)
    share = float(mean @ mean) / total if total > 0 else 0.0
    nothing = "the mean change is zero"
    own = {"invisibility": undefined(nothing), "percentile": None, "percentile_haar": None}
    nearest, cosine = None, None
    if share > 0:
        direction = unit_rows(mean[None].float())
        chance = InvisibilityByChance(
            InvisibilityByChance.of(direction, reference, inputs.base, settings.k, settings.seed).flipped,
            against.haar,
            settings.seed,
        )
        own = chance.figures(float(unexplained(direction, reference, settings.k)[0]), 0)
        at, signed = nearest_latents(direction, reference)
        nearest, cosine = int(names[at[0]]), float(signed[0])
    return AuditedLatent(
        latent=None, rank=0, peak_rank=0, energy_share=share, peak_energy=share, **own,
        blind_spot=share * (own["invisibility"].value or 0.0),
        reproducibility=undefined("the mean change has no training seed"),
        nearest=nearest, nearest_cosine=cosine,
    )  # fmt: skip


def _blind_energy(
    decoder: Tensor,
    share: np.ndarray,
    unseen: np.ndarray,
    reference: Tensor,
    base: Spectrum,
    settings: Settings,
) -> Measure:
    """Σ e_i (1 - R²_i) / Σ e_i; every draw of the null flips all latents alike, which leaves the angles
    between them."""
    if not share.sum() > 0:
        return undefined("no latent carries energy", n=len(share))
    draws = flips(decoder.double(), base, settings.null_draws, settings.seed)
    null = np.array([np.average(unexplained(d.float(), reference, settings.k), weights=share) for d in draws])
    value = float(np.average(unseen, weights=share))
    spread = _over_latents(share * unseen, share, settings.seed)
    p = draws_p(value, null, "greater", float(spread.var(ddof=1)))
    return _within(Measure(value, null=float(null.mean()), ceiling=0.0, p=p, n=len(share)), spread)


def _repeating(
    share: np.ndarray, repeated: np.ndarray | None, by_chance: np.ndarray | None, seed: int
) -> Measure:
    if repeated is None or by_chance is None:
        return undefined(ALONE, n=len(share))
    if not share.sum() > 0:
        return undefined("no latent carries energy", n=len(share))
    again, luck = (repeated >= REPEATS).astype(np.float64), (by_chance >= REPEATS).mean(0)
    measure = Measure(
        float(np.average(again, weights=share)),
        null=float(np.average(luck, weights=share)),
        ceiling=1.0,
        n=len(share),
    )
    return _within(measure, _over_latents(share * again, share, seed))


def _over_latents(part: np.ndarray, whole: np.ndarray, seed: int) -> Float[np.ndarray, " draw"]:
    """Σ part / Σ whole in resamples of the latents."""
    counts = np.random.default_rng([seed, 17]).multinomial(
        len(part), np.full(len(part), 1 / len(part)), size=1000
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return (counts @ part) / (counts @ whole)


def _within(measure: Measure, draws: Float[np.ndarray, " draw"]) -> Measure:
    interval = percentile_interval(draws)
    if interval is None:
        return measure.because("ci", "interval undefined: some resample of the latents has no energy")
    return measure.within(*interval)
