"""Worlds of mixtures: how many of the deltas' features the reference holds."""

import numpy as np
import torch
import torch.nn.functional as F

from tests.metrics.visibility.worlds.rows import Planted, Rows, dense_part, planted, units


def mixture(
    seed: int,
    *,
    share: float = 0.5,
    dense: float = 0.0,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    features: int = 64,
    active: int = 8,
    amplitude: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.01,
    dense_rank: int = 10,
    padding: int = 64,
    base_holds: str = "reference",
) -> Planted:
    """A share of the deltas' features is in the reference, beside featureless padding.

    Args:
        share: of the features that the reference holds; 0, .25, .5, .75, .9 and 1 are tried.
        dense: share of the deltas' energy in a Gaussian part of rank `dense_rank` that no atom of the
            reference holds; 0, .4, .6, .8.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        features: of the deltas; 48–128.
        active: features on each row; 4–8, and 16 where the world is weak (k of the dictionaries stays 8).
        amplitude: of a firing, uniform.
        noise: white, per coordinate; .005–.05.
        padding: atoms of the reference that are no features of the deltas; 0–512.
        base_holds: base activations are made of the reference's atoms ("reference") or of all features
            besides ("all").
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    atoms, others = units(features, d, g), units(padding, d, g)
    held = np.zeros(features, dtype=bool)
    held[torch.randperm(features, generator=g)[: round(share * features)].numpy()] = True
    reference = torch.cat([atoms[torch.from_numpy(held)], others])
    deltas = line.codes(features, active, amplitude) @ atoms + noise * torch.randn(rows, d, generator=g)
    basis = None
    if dense:
        part, basis = dense_part(
            line, d, dense_rank, float(deltas.square().sum(1).mean()) * dense / (1 - dense)
        )
        deltas = deltas + part
    known = reference if base_holds == "reference" else torch.cat([reference, atoms[torch.from_numpy(~held)]])
    base = (
        10 * line.codes(len(known), 8, amplitude) @ known
        + 10 * noise * torch.randn(rows, d, generator=g)
        + 3.0
    )
    return planted(
        line, fit, deltas, base, atoms=atoms, held=held, reference=reference, base_atoms=known, dense=basis
    )


def absorbed(
    seed: int,
    *,
    pairs: int = 24,
    parents_held: bool = True,
    d: int = 128,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    active: int = 4,
    child_rate: float = 0.4,
    amplitude: tuple[float, float] = (0.5, 1.5),
    noise: float = 0.01,
    padding: int = 64,
) -> Planted:
    """Children fire only with their parents, and the reference has an atom of parent + child in the child's
    place.

    With the parents held, the reference holds all: a child is parent + child less the parent. Without them
    it holds one direction of the two of each pair, no feature whole and none not at all, so that there is no
    true share of features; what must hold is that the label is never NOT VISIBLE.

    Args:
        pairs: parents, each with one child; 16–48.
        parents_held: the reference holds the parents too; otherwise only parent + child.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        active: parents on each row; 4–8.
        child_rate: of a parent's firings that its child joins; .2–.6.
        amplitude: of a firing, uniform; the child's is its parent's.
        noise: white, per coordinate; .005–.05.
        padding: atoms of the reference that are no features of the deltas; 0–256.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    parents, children = units(pairs, d, g), units(pairs, d, g)
    codes = line.codes(pairs, active, amplitude)
    joined = codes * (torch.rand(codes.shape, generator=g) < child_rate)
    deltas = codes @ parents + joined @ children + noise * torch.randn(rows, d, generator=g)
    both = F.normalize(parents + children, dim=1)
    reference = torch.cat([*([parents] if parents_held else []), both, units(padding, d, g)])
    base = 10 * line.codes(len(reference), 8, amplitude) @ reference + 10 * noise * torch.randn(
        rows, d, generator=g
    )
    atoms = torch.cat([parents, children])
    held = np.ones(2 * pairs if parents_held else 0, dtype=bool)
    return planted(
        line, fit, deltas, base + 3.0, atoms=atoms, held=held, reference=reference, base_atoms=reference
    )


def featureless(
    seed: int,
    *,
    texts: int = 3,
    d: int = 128,
    rank: int = 24,
    fit: int = 8000,
    rows: int = 11000,
    per_document: int = 40,
    base_features: int = 128,
) -> Planted:
    """Deltas of several corpora, each Gaussian with a covariance of its own: second moments and nothing else.

    Args:
        texts: corpora, which alternate by document; 1–4.
        d: width; 64–256.
        rank: directions that hold most of the energy of each corpus; 8–64.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        base_features: that base activations are made of, 8 on each row; the reference holds all of them;
            96–256.
    """
    g = torch.Generator().manual_seed(seed)
    line = Rows(rows, per_document, g)
    corpora = line.doc_ids % texts
    mixing = [
        torch.randn(rank, d, generator=g) * torch.linspace(1.5, 0.3, rank)[:, None] for _ in range(texts)
    ]
    drawn = torch.randn(rows, rank, generator=g)
    deltas = torch.zeros(rows, d)
    for text in range(texts):
        here = torch.from_numpy(corpora == text)
        deltas[here] = drawn[here] @ mixing[text] / d**0.5
    deltas = deltas + 0.05 * torch.randn(rows, d, generator=g)
    known = units(base_features, d, g)
    base = (
        10 * line.codes(base_features, 8, (0.5, 1.5)) @ known + 0.1 * torch.randn(rows, d, generator=g) + 3.0
    )
    return planted(
        line,
        fit,
        deltas,
        base,
        atoms=known[:0],
        held=np.zeros(0, bool),
        reference=known,
        base_atoms=known,
        corpora=corpora.astype(str),
    )
