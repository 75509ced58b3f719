"""How often two latents fire together beyond what token and position alone bring about.

The null exchanges the partner's firings among rows of the same token and the same band of positions. Its
mean is exact: in a stratum of n rows with a firings of the one and b of the other, a b / n rows have both.
Rows of one document are not independent, so the surplus is summed over each document, and its sign is drawn
for each document anew.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from deltasae_ray.metrics.statistics import document_codes, document_sums

BANDS = (1, 5, 16, 64, 256)
"""Positions at which a new band begins: the first is apart, then each band is about four times the one
before."""
SIGNS = 1999
"""Draws of the documents' signs."""


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
