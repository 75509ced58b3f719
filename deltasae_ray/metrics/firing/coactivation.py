"""Does a delta latent fire where some latent of the reference fires, on the same tokens? Whatever directions
both write.

The largest of hundreds of correlations is large by chance. So a latent's partner, the reference latent that
it fires with most closely, is chosen on training rows, and how closely the two fire together is measured on
the evaluation documents. What remains by chance is that tokens of a document, and places in documents, are
alike, and that both sides know the token. Where tokens are known the null exchanges the reference's firings
among rows of the same token and band of positions (`surplus`). Without them it gives every document the
reference's firings of another, place by place, and token identity alone passes for agreement. Either mean is
exact, and moves with the documents in κ.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from deltasae_ray.metrics.context import Context
from deltasae_ray.metrics.firing.firings import Firings, fires, num_rows, varies
from deltasae_ray.metrics.firing.surplus import SIGNS, Surplus
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import Counts, with_interval, with_kappa_interval
from deltasae_ray.metrics.statistics import bootstrap_counts, kappa, permutation_p

_FEWEST = 4
"""Documents; fewer cannot be exchanged in ways enough."""
PERMUTATIONS = 199
_BLOCK_NUMBERS = 1 << 20
"""Correlations, or resampled counts, held at a time: 8 MB in fp64, of which a handful are needed."""


def coactivation_of(context: Context, dictionary: DictionaryLike, second: DictionaryLike | None) -> Measure:
    """Co-activation of a delta dictionary on deltas with the reference on base activations; ceiling: with a
    second seed's dictionary on the deltas."""
    rows = context.layer.firing_rows
    num_docs = len(rows.evaluation)
    if num_docs < _FEWEST:
        return undefined(
            f"{num_docs} evaluation documents: at least {_FEWEST} are needed to exchange them", n=num_docs
        )
    own, twin = context.layer.firings(dictionary), None if second is None else context.layer.firings(second)
    rng = np.random.default_rng([context.layer.settings.seed, 6])
    counts = bootstrap_counts(num_docs, context.layer.settings.bootstrap, rng)
    stratum = context.layer.rows.strata(rows.evaluation.ravel())
    if stratum is None:
        agreement = coactivation(own, context.reference_firings, num_docs, counts, rng, second=twin)
        agreement = agreement.because(
            "null", "tokens are not known: what only shares the token passes for agreement"
        )
    else:
        agreement = coactivation_within_tokens(
            own, context.reference_firings, stratum, counts, rng, second=twin
        )
    text = f"{rows.left_out} documents of fewer than {rows.evaluation.shape[1]} rows are left out"
    return agreement.because("note", text) if rows.left_out else agreement


def coactivation(
    own: Firings,
    others: Firings,
    num_docs: int,
    counts: Counts,
    rng: np.random.Generator,
    *,
    second: Firings | None = None,
) -> Measure:
    """Σ e φ / Σ e over the latents of `own`: φ the correlation (of fires or not) with the partner among
    `others`, e = Σ z² the energy, both on the evaluation rows.

    Args:
        num_docs: documents of the evaluation rows; each has as many rows, and they follow each other.
        counts: bootstrap resamples of these documents.
        second: another dictionary whose latents should be those of `own`: the ceiling.
    """
    pairs = _Pairs.of(own, others, num_docs)
    if pairs is None:
        return undefined(
            "no latent of the delta dictionary fires on both training and evaluation rows", n=num_docs
        )
    value = pairs.value
    null = np.array([pairs.exchanged(rng.permutation(num_docs)) for _ in range(PERMUTATIONS)])
    draws, center = pairs.draws(counts), float(pairs.by_exchange(np.ones((1, num_docs)))[0])
    measure = with_interval(
        Measure(value, null=center, p=permutation_p(value, null, "greater", rng), n=num_docs), draws
    )
    best = None if second is None else _Pairs.of(own, second, num_docs)
    return measure if best is None else _placed(measure, draws, pairs.by_exchange(counts), best, counts)


def coactivation_within_tokens(
    own: Firings,
    others: Firings,
    stratum: Int[np.ndarray, " row"],
    counts: Counts,
    rng: np.random.Generator,
    *,
    second: Firings | None = None,
) -> Measure:
    """Co-activation against a null that knows token and position: partners' firings are exchanged among
    rows of one stratum.

    Args:
        stratum: of each evaluation row; documents have as many rows each, and follow each other.
        counts: bootstrap resamples of the documents.
        second: another dictionary whose latents should be those of `own`: the ceiling.
    """
    num_docs = counts.shape[1]
    pairs = _Pairs.of(own, others, num_docs)
    if pairs is None:
        return undefined(
            "no latent of the delta dictionary fires on both training and evaluation rows", n=num_docs
        )
    by_document = pairs.beyond(stratum)
    if not np.abs(by_document).sum() > 0:
        text = "every token comes once in its band of positions: what it shares cannot be told"
        return undefined(text, n=num_docs)
    signs = rng.choice([-1.0, 1.0], size=(SIGNS, num_docs))
    p = permutation_p(float(by_document.sum()), signs @ by_document, "greater", rng)
    draws, null = pairs.draws(counts), pairs.value - float(by_document.sum())
    measure = with_interval(Measure(pairs.value, null=null, p=p, n=num_docs), draws)
    best = None if second is None else _Pairs.of(own, second, num_docs)
    return measure if best is None else _placed(measure, draws, draws - counts @ by_document, best, counts)


def _placed(
    measure: Measure, draws: np.ndarray, centers: np.ndarray, best: "_Pairs", counts: Counts
) -> Measure:
    """With the ceiling and κ; centers are the null in every resample."""
    assert measure.value is not None
    ceilings = best.draws(counts)
    spread = float((ceilings - centers).std(ddof=1))
    place, reason = kappa(measure.value, measure.null, best.value, spread, "greater")
    placed = replace(measure, ceiling=best.value, kappa=place).because("kappa", reason)
    return placed if place is None else with_kappa_interval(placed, (draws - centers) / (ceilings - centers))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Latents with a partner, and what both do on the evaluation rows."""

    row: Int[np.ndarray, " firing"]
    latent: Int[np.ndarray, " firing"]
    energy: Float[np.ndarray, " firing"]
    partner: Bool[np.ndarray, "row latent"]
    """Whether the latent's partner fires on the row."""
    num_docs: int

    @classmethod
    def of(cls, own: Firings, others: Firings, num_docs: int) -> "_Pairs | None":
        """None where no latent fires on both kinds of rows."""
        training = fires(own.training)
        kept = np.flatnonzero(varies(training) & varies(fires(own.evaluation)))
        if not len(kept):
            return None
        partner = partners(csr_array(training[:, kept]), fires(others.training))
        fired = own.evaluation[:, kept].tocoo()
        seen = csr_array(fires(others.evaluation)[:, np.maximum(partner, 0)]).toarray() > 0
        return cls(
            fired.row, fired.col, np.square(fired.data, dtype=np.float64), seen & (partner >= 0), num_docs
        )

    @property
    def value(self) -> float:
        return float(self.draws(np.ones((1, self.num_docs)))[0])

    def draws(self, counts: Counts) -> Float[np.ndarray, " draw"]:
        """In every resample of the documents."""
        rows, latents = self.partner.shape
        cell = self.row // (rows // self.num_docs) * latents + self.latent
        both, own, square = (
            np.bincount(cell, weights=w, minlength=self.num_docs * latents).reshape(self.num_docs, latents)
            for w in (self.partner[self.row, self.latent], np.ones(len(cell)), self.energy)
        )
        other = self.partner.reshape(self.num_docs, -1, latents).sum(1, dtype=np.float64)
        above = below = np.zeros(len(counts))
        for some in np.array_split(np.arange(latents), -(-latents * len(counts) // _BLOCK_NUMBERS)):
            energy, *fired = (counts @ x[:, some] for x in (square, both, own, other))
            above = above + (energy * phi(fired[0], fired[1], fired[2], rows)).sum(1)
            below = below + energy.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return above / below

    def beyond(self, stratum: Int[np.ndarray, " row"]) -> Float[np.ndarray, " doc"]:
        """The value less its null within strata, as a sum over documents; φ is linear in how often both
        fire."""
        rows, latents = self.partner.shape
        fired = np.zeros((rows, latents), dtype=bool)
        fired[self.row, self.latent] = True
        surplus = Surplus.of(fired, self.partner, stratum, np.arange(rows) // (rows // self.num_docs))
        a, b, energy = fired.sum(0), self.partner.sum(0), np.bincount(self.latent, self.energy, latents)
        slope = phi(surplus.both + 1, a, b, rows) - phi(surplus.both, a, b, rows)
        return surplus.documents @ (energy * slope) / energy.sum()

    def by_exchange(self, counts: Counts) -> Float[np.ndarray, " draw"]:
        """What all exchanges of documents give on average, in every resample of them: a pair of documents
        meets as often as any other, place by place, and φ is linear in how often both fire."""
        rows, latents = self.partner.shape
        places = rows // self.num_docs
        own = np.zeros((rows, latents), dtype=np.float32)
        own[self.row, self.latent] = 1
        square = np.zeros((self.num_docs, latents))
        np.add.at(square, (self.row // places, self.latent), self.energy)
        above = below = np.zeros(len(counts))
        for some in np.array_split(np.arange(latents), -(-latents * places * len(counts) // _BLOCK_NUMBERS)):
            fired, seen = (
                (counts @ x[:, some].reshape(self.num_docs, -1)).reshape(len(counts), places, len(some))
                for x in (own, self.partner)
            )
            energy = counts @ square[:, some]
            above = above + (
                energy * phi((fired * seen).sum(1) / self.num_docs, fired.sum(1), seen.sum(1), rows)
            ).sum(1)
            below = below + energy.sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return above / below

    def exchanged(self, order: Int[np.ndarray, " document"]) -> float:
        """With the partners' firings of document `order[d]` in the place of those of d."""
        rows, latents = self.partner.shape
        other = np.arange(rows).reshape(self.num_docs, -1)[order].ravel()
        seen = self.partner[other[self.row], self.latent]
        both, own, energy = (
            np.bincount(self.latent, weights=w, minlength=latents)
            for w in (seen, np.ones(len(seen)), self.energy)
        )
        return float(energy @ phi(both, own, self.partner.sum(0), rows) / energy.sum())


def phi(both: np.ndarray, own: np.ndarray, other: np.ndarray, rows: int | np.ndarray) -> np.ndarray:
    """Correlation of two indicators from how often both, the one and the other are 1 of `rows` times; 0 where
    one never varies."""
    both, own, other = (x.astype(np.float64) for x in (both, own, other))
    spread = np.sqrt(own * (rows - own) * other * (rows - other))
    return np.divide(rows * both - own * other, spread, out=np.zeros(spread.shape), where=spread > 0)


def partners(own: csr_array, others: csr_array) -> Int[np.ndarray, " latent"]:
    """The latent of `others` [row, other] with which each of `own` [row, latent] correlates most; -1 where
    none fires with it at all."""
    of_own, of_others = (np.asarray(x.sum(0), dtype=np.float64).ravel() for x in (own, others))
    rows, best = num_rows(own), []
    for some in np.array_split(np.arange(len(of_own)), -(-len(of_own) * len(of_others) // _BLOCK_NUMBERS)):
        both = csr_array(own[:, some].T @ others).toarray()
        correlation = phi(both, of_own[some, None], of_others[None], rows)
        best.append(np.where(both.any(1), correlation.argmax(1), -1))
    return np.concatenate(best)
