"""Codes of two dictionaries on the same rows, kept sparse: what co-activation is counted from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack

from deltasae_ray.metrics.coding.dictionary_coding import spread

if TYPE_CHECKING:
    from deltasae_ray.metrics.inputs import DictionaryLike

_ROWS_AT_ONCE = 1024
"""Rows that are encoded at a time: 64 MB of codes where a dictionary has 16,384 latents."""
TRAINING_ROWS = 4
"""Training rows for each evaluation row: a partner is chosen among hundreds by how often both fire, and most
latents are rare."""


@dataclass(frozen=True, eq=False)
class FiringRows:
    """The rows on which firings are compared."""

    training: Int[np.ndarray, " row"]
    evaluation: Int[np.ndarray, "document place"]
    """Evaluation rows, as many of each document, so that documents can be exchanged whole; documents of too
    few rows are left out."""
    left_out: int
    """Evaluation documents of too few rows."""

    @classmethod
    def of(
        cls, num_training: int, documents: Int[np.ndarray, " row"], num_docs: int, wanted: int
    ) -> "FiringRows":
        """About `wanted` evaluation rows, spread evenly over each document: rows are exchanged with those at
        the same place of another.

        Args:
            documents: of each evaluation row, from 0 up.
        """
        lengths = np.bincount(documents, minlength=num_docs)
        sizes = np.arange(1, max(1, min(wanted // num_docs, int(lengths.max()))) + 1)
        size = int(
            sizes[np.argmax(sizes * (lengths >= sizes[:, None]).sum(1))]
        )  # as many rows in all as can be had
        order = np.argsort(documents, kind="stable")
        starts = np.append(0, lengths.cumsum())[:-1]
        kept = np.flatnonzero(lengths >= size)
        places = np.stack([starts[d] + spread(int(lengths[d]), size) for d in kept])
        return cls(spread(num_training, TRAINING_ROWS * wanted), order[places], num_docs - len(kept))


@dataclass(frozen=True, eq=False)
class Firings:
    """Activations of the living latents of one dictionary."""

    training: csr_array
    """[row, latent]"""
    evaluation: csr_array
    """[document · place, latent]"""

    @classmethod
    def of(
        cls,
        dictionary: "DictionaryLike",
        fit: Float[np.ndarray, "token d_model"],
        evaluation: Float[np.ndarray, "eval_token d_model"],
        rows: FiringRows,
    ) -> "Firings":
        return cls(
            _codes(dictionary, fit, rows.training), _codes(dictionary, evaluation, rows.evaluation.ravel())
        )


def _codes(
    dictionary: "DictionaryLike", x: Float[np.ndarray, "token d_model"], rows: Int[np.ndarray, " row"]
) -> csr_array:
    alive = dictionary.alive
    parts = []
    with torch.no_grad():
        for some in np.array_split(rows, -(-len(rows) // _ROWS_AT_ONCE)):
            raw = torch.from_numpy(np.ascontiguousarray(x[some])).float()
            parts.append(csr_array(dictionary.encode(raw)[:, alive].float().cpu().numpy()))
    return csr_array(vstack(parts))


def fires(codes: csr_array) -> csr_array:
    """1 where a latent fires."""
    firing = codes.copy()
    firing.data = (codes.data > 0).astype(np.float32)
    firing.eliminate_zeros()
    return firing


def varies(firing: csr_array) -> Bool[np.ndarray, " latent"]:
    """Latents that fire on some rows and not on all: of others no correlation is defined."""
    count = np.asarray(firing.sum(0)).ravel()
    return (count > 0) & (count < num_rows(firing))


def num_rows(codes: csr_array) -> int:
    return len(codes.indptr) - 1
