"""Centred linear CKA from the unbiased HSIC, merged over minibatches, with documents as the unit of
resampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.metrics.statistics import (
    MIN_DOCUMENTS,
    TOO_FEW_DOCUMENTS,
    document_codes,
    jackknife_interval,
    permutation_p,
)

_GROUPS = 10
"""Groups of documents that the jackknife deletes in turn."""


def unbiased_hsic(k: Float[Tensor, "n n"], l: Float[Tensor, "n n"]) -> float:  # noqa: E741  the literature's name
    """HSIC₁ of two Gram matrices with zero diagonals (Song et al. 2012): [tr KL + (1ᵀK1)(1ᵀL1)/((n-1)(n-2)) -
    2·1ᵀKL1/(n-2)] / (n(n-3))."""
    n = len(k)
    trace, rows_k, rows_l = (k * l).sum(), k.sum(1), l.sum(1)
    cross = rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_l) / (n - 2)
    return float((trace + cross) / (n * (n - 3)))


@dataclass(frozen=True)
class _Batch:
    """One minibatch: at most one row per document."""

    k: Float[Tensor, "n n"]
    l: Float[Tensor, "n n"]  # noqa: E741
    document: Int[Tensor, " n"]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, rows: Int[Tensor, " n"], codes: Int[Tensor, " token"]) -> "_Batch":
        return cls(_gram(x[rows]), _gram(y[rows]), codes[rows])

    def without(self, dropped: Tensor) -> "_Batch":
        keep = ~dropped[self.document]
        return _Batch(self.k[keep][:, keep], self.l[keep][:, keep], self.document[keep])

    def in_fp32(self) -> "_Batch":
        """For permutations: nothing is subtracted there but what is random anyway, and half the bytes
        move."""
        return _Batch(self.k.float(), self.l.float(), self.document)

    def terms(self) -> np.ndarray:
        """HSIC₁ of (x, y), (x, x), (y, y)."""
        return np.array(
            [unbiased_hsic(self.k, self.l), unbiased_hsic(self.k, self.k), unbiased_hsic(self.l, self.l)]
        )


def _gram(x: Tensor) -> Tensor:
    x = x.double() - x.double().mean(0)  # HSIC₁ does not change under a shift; the numbers get smaller
    return (x @ x.T).fill_diagonal_(0)


def _ratio(terms: np.ndarray) -> float | None:
    xy, xx, yy = terms
    return float(xy / np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None


def minibatches(
    codes: np.ndarray, num_docs: int, rounds: int, max_rows: int, rng: np.random.Generator
) -> list[Int[Tensor, " n"]]:
    """Rows of each minibatch, one per document: rows of one document are alike, and more than one would count
    as agreement.

    Every round takes another row of each document (again from the first where a document has fewer rows than
    rounds) and is cut into equal parts of at most `max_rows` documents.
    """
    order = np.argsort(codes + rng.random(len(codes)), kind="stable")  # by document, at random inside
    starts = np.searchsorted(codes[order], np.arange(num_docs))
    counts = np.diff(np.append(starts, len(codes)))
    batches: list[Tensor] = []
    for r in range(min(rounds, int(counts.max()))):
        rows = order[starts + r % counts]
        shuffled = rng.permutation(rows)
        batches += [torch.from_numpy(np.sort(p)) for p in np.array_split(shuffled, -(-num_docs // max_rows))]
    return batches


def linear_cka(  # noqa: PLR0913 - public: a figure's settings, by keyword
    x: Matrix,
    y: Matrix,
    doc_ids: Sequence | np.ndarray | None = None,
    *,
    rounds: int = 8,
    max_rows: int = 1024,
    permutations: int = 199,
    seed: int = 0,
) -> Measure:
    """Unbiased linear CKA of two representations of the same rows, [token, dx] and [token, dy].

    HSIC₁ of minibatches is averaged before the ratio is taken. The interval is a jackknife that deletes a
    tenth of the documents at a time, from every minibatch they are in (minibatches share documents and are
    not independent), with a t quantile. The null and p come from permuting documents.

    Args:
        doc_ids: document of each row; without it every row counts as a document of its own.
        rounds: minibatches per document: how many rows of each document enter.
        max_rows: documents per minibatch.

    Raises:
        GeometryError: different rows, or fewer than 4 documents.
    """
    x, y = matrix(x, "x", None), matrix(y, "y", None)
    codes, num_docs = document_codes(range(len(x)) if doc_ids is None else doc_ids)
    if not len(x) == len(y) == len(codes):
        raise GeometryError(
            f"{len(x)} rows of x, {len(y)} of y, {len(codes)} document ids: CKA compares the same rows"
        )
    if num_docs < 4:
        raise GeometryError(f"{num_docs} documents: the unbiased HSIC takes at least 4")
    rng = np.random.default_rng(seed)
    row_codes = torch.from_numpy(codes)
    batches = [
        _Batch.of(x, y, rows, row_codes) for rows in minibatches(codes, num_docs, rounds, max_rows, rng)
    ]
    terms = np.mean([b.terms() for b in batches], 0)
    value = _ratio(terms)
    if value is None:
        return undefined("one side has no variance beyond single rows: nothing to compare", n=num_docs)
    exchangeable = [b.in_fp32() for b in batches]
    null = np.array([_permuted(exchangeable, num_docs, rng) for _ in range(permutations)]) / np.sqrt(
        terms[1] * terms[2]
    )
    measure = Measure(value, null=0.0, n=num_docs)
    if permutations:
        measure = replace(measure, null=float(null.mean()), p=permutation_p(value, null, "greater", rng))
    if num_docs < MIN_DOCUMENTS:
        return measure.because("ci", TOO_FEW_DOCUMENTS.format(n=num_docs))
    deleted = [
        _deleted(batches, torch.from_numpy(np.isin(np.arange(num_docs), g)))
        for g in np.array_split(rng.permutation(num_docs), _GROUPS)
    ]
    if any(d is None for d in deleted):
        return measure.because(
            "ci", "interval undefined: without a tenth of the documents one side has no variance"
        )
    interval, _ = jackknife_interval(value, np.array(deleted))
    return replace(measure, ci=interval)


def _deleted(batches: list[_Batch], dropped: Tensor) -> float | None:
    return _ratio(np.mean([b.without(dropped).terms() for b in batches], 0))


def _permuted(batches: list[_Batch], num_docs: int, rng: np.random.Generator) -> float:
    """Mean HSIC₁ of (x, y) with y's documents exchanged, the same exchange in every minibatch as far as their
    documents agree."""
    rank = torch.from_numpy(rng.random(num_docs))
    values = []
    for b in batches:
        order = rank[b.document].argsort()
        l = b.l.index_select(0, order).index_select(1, order)  # noqa: E741
        values.append(unbiased_hsic(b.k, l))
    return float(np.mean(values))
