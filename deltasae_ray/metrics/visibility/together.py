"""Does a latent fire with a latent of the reference, beyond what token and position alone bring about?

The null exchanges the partner's firings among rows of the same token and the same band of positions. Its
mean is exact: in a stratum of n rows with a firings of the one and b of the other, a b / n rows have both.
Rows of one document are not independent, so the surplus is summed over each document, and its sign is drawn
for each document anew.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control

from deltasae_ray.metrics.firing.coactivation import partners, phi
from deltasae_ray.metrics.firing.firings import FiringRows, Firings, fires
from deltasae_ray.metrics.inputs import DictionaryLike
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.ratios import with_interval
from deltasae_ray.metrics.statistics import bootstrap_counts, document_codes, document_sums, permutation_p
from deltasae_ray.metrics.visibility.rows import Rows

BANDS = (1, 5, 16, 64, 256)
"""Positions at which a new band begins: the first is apart, then each band is about four times the one
before."""
SIGNS = 1999
_AT_ONCE = 256
"""Latents whose firings are held dense at a time."""
RATE = 0.05
"""False discovery rate at which a latent counts as firing with its partner."""
FEWEST_DOCUMENTS = 8
"""Documents below which signs cannot be drawn in ways enough."""
ENOUGH = 20
"""Evaluation firings from which a latent that does not fire with its partner is said not to."""


def strata(token_ids: np.ndarray, positions: np.ndarray | None) -> Int[np.ndarray, " row"]:
    """Rows among which partners are exchanged: the same token, in the same band of positions."""
    band = np.zeros(len(token_ids), int) if positions is None else np.digitize(np.asarray(positions), BANDS)
    pairs = np.stack([document_codes(np.asarray(token_ids))[0], band], 1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel()


@dataclass(frozen=True, eq=False)
class Surplus:
    """Rows on which latent and partner fire together, less those expected in their strata, summed over
    documents."""

    documents: Float[np.ndarray, "document latent"]
    both: Float[np.ndarray, " latent"]
    expected: Float[np.ndarray, " latent"]

    @classmethod
    def of(
        cls,
        own: Bool[np.ndarray, "row latent"],
        partner: Bool[np.ndarray, "row latent"],
        stratum: Int[np.ndarray, " row"],
        doc_ids: np.ndarray,
    ) -> "Surplus":
        """From firings of latents and of their partners, column by column."""
        a, b, n = own.astype(np.float64), partner.astype(np.float64), int(stratum.max()) + 1
        size = np.bincount(stratum, minlength=n)[:, None].astype(np.float64)
        mean_a, mean_b = (document_sums(x, stratum, n) / size for x in (a, b))
        docs, num_docs = document_codes(doc_ids)
        left = document_sums((a - mean_a[stratum]) * (b - mean_b[stratum]), docs, num_docs)
        return cls(left, (a * b).sum(0), (size * mean_a * mean_b).sum(0))

    def p(self, rng: np.random.Generator) -> Float[np.ndarray, " latent"]:
        """Probability of as large a surplus where the sign of each document's is by chance."""
        observed = self.documents.sum(0)
        signs = rng.choice([-1.0, 1.0], size=(SIGNS, len(self.documents)))
        drawn = signs @ self.documents
        ties = rng.random(len(observed)) * ((drawn == observed).sum(0) + 1)
        return ((drawn > observed).sum(0) + ties) / (SIGNS + 1)


def coactivation_within(  # noqa: PLR0913 - a figure's settings, by keyword
    own: Float[np.ndarray, "row latent"],
    partner: Bool[np.ndarray, "row latent"],
    token_ids: np.ndarray,
    positions: np.ndarray | None,
    doc_ids: np.ndarray,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Measure:
    """Computes Σ e φ / Σ e, φ the correlation of firing with the partner, e energy; null: token and position.

    Args:
        own: codes of the latents on the evaluation rows.
        partner: whether each latent's partner, chosen on other rows, fires there.
        token_ids: of each row.
        positions: of each row in its document; without them only tokens are held fixed.
        doc_ids: document of each row.
    """
    fires = own > 0
    surplus = Surplus.of(fires, partner, strata(token_ids, positions), doc_ids)
    energy, rows = np.square(own.astype(np.float64)).sum(0), len(own)
    docs, num_docs = document_codes(doc_ids)
    a, b = fires.sum(0), partner.sum(0)
    slope = phi(surplus.both + 1, a, b, rows) - phi(
        surplus.both, a, b, rows
    )  # φ is linear in how often both fire
    if not (energy * slope).sum() > 0:
        return undefined(
            "no latent and partner both fire, and both pause, on the evaluation rows", n=num_docs
        )
    value = float(energy @ phi(surplus.both, a, b, rows) / energy.sum())
    null = float(energy @ phi(surplus.expected, a, b, rows) / energy.sum())
    by_document = surplus.documents @ (energy * slope) / energy.sum()
    rng = np.random.default_rng([seed, 14])
    signs = rng.choice([-1.0, 1.0], size=(SIGNS, num_docs))
    p = permutation_p(float(by_document.sum()), signs @ by_document, "greater", rng)
    counts = bootstrap_counts(num_docs, bootstrap, rng)
    sums = [document_sums(x.astype(np.float64), docs, num_docs) for x in (fires & partner, fires, partner)]
    size = document_sums(np.ones(rows), docs, num_docs)
    both, ours, theirs = (counts @ x for x in sums)
    drawn = phi(both, ours, theirs, (counts @ size)[:, None]) @ energy / energy.sum()
    return with_interval(Measure(value, null=null, p=p, n=num_docs), drawn)


def firing_apart(
    training: csr_array, evaluation: csr_array, reference: DictionaryLike, rows: Rows, seed: int
) -> tuple[Bool[np.ndarray, " latent"], list[str]]:
    """Tells which latents fire often, and yet not with the reference latent that they fire with most.

    Args:
        training: codes of the delta latents on the training rows, by which partners are chosen.
        evaluation: the same on the evaluation rows.
    """
    often = np.asarray(fires(evaluation).sum(0)).ravel()
    nowhere = np.zeros(len(often), dtype=bool)
    if rows.token_ids is None:
        return nowhere, ["no token_ids: whether latents fire with the reference is undefined"]
    stratum = strata(rows.token_ids, rows.positions)
    if document_codes(rows.doc_ids)[1] < FEWEST_DOCUMENTS:
        return nowhere, [
            f"fewer than {FEWEST_DOCUMENTS} documents: whether latents fire with the reference is undefined"
        ]
    if np.bincount(stratum).max() < 2:
        return nowhere, [
            "no token comes twice in a band of positions: whether latents fire with the reference is "
            "undefined"
        ]
    places = FiringRows(np.arange(len(rows.training_base)), np.arange(len(rows.base))[None], 0)
    others = Firings.of(reference, rows.training_base.numpy(), rows.base.numpy(), places)
    partner = partners(fires(training), fires(others.training))
    rng, p = np.random.default_rng([seed, 16]), np.ones(len(often))
    for some in np.array_split(np.arange(len(often)), -(-len(often) // _AT_ONCE)):
        own = csr_array(evaluation[:, some]).toarray() > 0
        seen = csr_array(others.evaluation[:, np.maximum(partner[some], 0)]).toarray() > 0
        p[some] = Surplus.of(own, seen & (partner[some] >= 0), stratum, rows.doc_ids).p(rng)
    apart = (false_discovery_control(p) > RATE) & (often >= ENOUGH)
    told = f"{apart.sum()} of {len(apart)} judged latents fire with no reference latent"
    return apart, [f"{told} beyond token and position"] if apart.any() else []
