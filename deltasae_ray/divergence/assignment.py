"""Partners of their own: which latents of two dictionaries belong together when each may be used once (Hungarian assignment)."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from deltasae_ray.divergence.arrays import Matrix
from deltasae_ray.divergence.matching import cosine_blocks, unit_pair

DENSE = 1 << 24
"""Cosines up to which all of them are weighed (4096 x 4096: 64 MB, seconds); beyond, those of every latent's nearest."""
NEIGHBOURS = 16
"""Nearest latents of the reference that a latent may be given, where there are too many to weigh all."""
MAX_LATENTS = 1 << 15
"""Latents of a dictionary above which the assignment is left out: 16,384 x 16,384 take .2 to 1 minute, and the time grows as the square."""


def one_to_one(decoder: Matrix, reference: Matrix, *, dense: int = DENSE) -> Float[np.ndarray, " pair"] | None:
    """|cos| of the pairs of the best one-to-one assignment; None above MAX_LATENTS.

    Up to `dense` cosines it is the exact one. Beyond, a latent gets one of its NEIGHBOURS or none: what the assignment would have given it
    otherwise is farther than all of these. Memory is that of a block of cosines and of the neighbours, whatever the sizes.
    """
    a, b = unit_pair(decoder, reference)
    if len(a) * len(b) <= dense:
        cosine = (a @ b.T).abs_().cpu().numpy()
        rows, columns = linear_sum_assignment(cosine, maximize=True)
        return cosine[rows, columns].astype(np.float64)
    return None if max(len(a), len(b)) > MAX_LATENTS else _among_neighbours(a, b)


def _among_neighbours(a: Tensor, b: Tensor) -> Float[np.ndarray, " pair"]:
    """Costs are 2 - |cos|; each latent has a column of its own at cost 2, which stands for no partner and makes a full matching exist."""
    n, m, wanted = len(a), len(b), min(NEIGHBOURS, len(b))
    near = [cosine.abs_().topk(wanted, 1) for _, cosine in cosine_blocks(a, b)]
    cosine, column = (np.concatenate([np.asarray(part[i].cpu()) for part in near]) for i in (0, 1))
    cost = np.column_stack([2 - cosine.astype(np.float64), np.full(n, 2.0)])
    columns = np.column_stack([column, m + np.arange(n)])
    graph = csr_array((cost.ravel(), columns.ravel(), np.arange(n + 1) * (wanted + 1)), shape=(n, m + n))
    rows, chosen = min_weight_full_bipartite_matching(graph)
    partner = chosen[chosen < m]
    return 2 - np.asarray(graph[rows[chosen < m], partner], dtype=np.float64).ravel()
