"""Planted worlds of the visibility decision: base activations, deltas and a reference whose relation is known."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.sae.recipe import Recipe
from deltasae_ray.sae.trainer import Trainer

VOCABULARY = 60


@dataclass(frozen=True, eq=False)
class Planted:
    """Rows of one world; the first `fit` of them are training rows."""

    deltas: Tensor
    base: Tensor
    fit: int
    doc_ids: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    atoms: Tensor
    """Features of the deltas, unit rows."""
    held: np.ndarray
    """Which of them the reference holds."""
    reference: Tensor
    """Atoms of the reference, unit rows."""
    kinds: tuple[str | None, ...] = ()
    """Scaling class of each feature."""
    corpora: np.ndarray | None = None
    dense: Tensor | None = field(default=None, repr=False)
    """Orthonormal rows that span what is dense."""

    @property
    def share(self) -> float:
        """Share of the features that the reference holds."""
        return float(self.held.mean())


def units(rows: int, d: int, g: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(rows, d, generator=g), dim=1)


@dataclass(frozen=True, eq=False)
class Rows:
    """Documents, tokens and positions of `total` rows, and what features they prefer."""

    total: int
    per_document: int
    g: torch.Generator

    def __post_init__(self) -> None:
        weights = 1 / torch.arange(1, VOCABULARY + 1)
        object.__setattr__(self, "tokens", torch.multinomial(weights, self.total, replacement=True, generator=self.g))

    @property
    def doc_ids(self) -> np.ndarray:
        return np.arange(self.total) // self.per_document

    @property
    def positions(self) -> np.ndarray:
        return np.arange(self.total) % self.per_document

    def codes(self, atoms: int, active: int, amplitude: tuple[float, float], liking: float = 0.5, by_token: float = 0.5) -> Tensor:
        """Codes [row, atom] with `active` atoms on every row; documents and tokens differ in which they prefer."""
        documents = -(-self.total // self.per_document)
        likes = liking * torch.randn(documents, atoms, generator=self.g)[torch.from_numpy(self.doc_ids)]
        likes = likes + by_token * torch.randn(VOCABULARY, atoms, generator=self.g)[self.tokens]
        gumbel = -torch.log(-torch.log(torch.rand(self.total, atoms, generator=self.g).clamp(1e-6, 1 - 1e-6)))
        chosen = (likes + gumbel).topk(active, 1).indices
        low, high = amplitude
        return torch.zeros(self.total, atoms).scatter_(1, chosen, low + (high - low) * torch.rand(self.total, active, generator=self.g))

    def rare(self, rate: float, amplitude: tuple[float, float]) -> Tensor:
        """Codes [row] that fire on a share `rate` of the rows, each by itself."""
        low, high = amplitude
        fires = torch.rand(self.total, generator=self.g) < rate
        return fires * (low + (high - low) * torch.rand(self.total, generator=self.g))


def _planted(rows: Rows, fit: int, deltas: Tensor, base: Tensor, **known: object) -> Planted:
    return Planted(deltas, base, fit, rows.doc_ids, rows.tokens.numpy(), rows.positions, **known)


def dense_part(rows: Rows, d: int, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """Gaussian rows of one rank and E‖x‖², and the orthonormal rows that span them; eigenvalues fall from 1 to 1/2."""
    basis = torch.linalg.qr(torch.randn(d, rank, generator=rows.g)).Q.T
    spread = torch.linspace(1, 0.5, rank)
    return torch.randn(rows.total, rank, generator=rows.g) * (energy * spread / spread.sum()).sqrt() @ basis, basis


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
    padding: int = 192,
    base_holds: str = "reference",
) -> Planted:
    """A share of the deltas' features is in the reference, beside featureless padding.

    Args:
        share: of the features that the reference holds; 0, .25, .5, .75, .9 and 1 are tried.
        dense: share of the deltas' energy in a Gaussian part of rank `dense_rank` that no atom of the reference holds; 0, .4, .6, .8.
        d: width; 64–256.
        fit: training rows; 4,000–16,000.
        rows: of both splits; evaluation rows are 2,000–4,000.
        per_document: rows of a document; 20–60.
        features: of the deltas; 48–128.
        active: features on each row; 4–8, and 16 where the world is weak (k of the dictionaries stays 8).
        amplitude: of a firing, uniform.
        noise: white, per coordinate; .005–.05.
        padding: atoms of the reference that are no features of the deltas; 0–512.
        base_holds: base activations are made of the reference's atoms ("reference") or of all features besides ("all").
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
        part, basis = dense_part(line, d, dense_rank, float(deltas.square().sum(1).mean()) * dense / (1 - dense))
        deltas = deltas + part
    known = reference if base_holds == "reference" else torch.cat([reference, atoms[torch.from_numpy(~held)]])
    base = 10 * line.codes(len(known), 8, amplitude) @ known + 10 * noise * torch.randn(rows, d, generator=g) + 3.0
    return _planted(line, fit, deltas, base, atoms=atoms, held=held, reference=reference, dense=basis)


def dictionary_of(atoms: Tensor, rows: Tensor, k: int = 8) -> Dictionary:
    """A TopK dictionary that knows these atoms, with what its latents do on `rows`."""
    ones = torch.ones(len(atoms))
    made = Dictionary(atoms.T.contiguous(), atoms.contiguous(), 0 * ones, rows.mean(0), "topk", k, ones, ones, mean=rows.mean(0))
    return replace(made.measured(rows), meta={"rows": len(rows)})


def fitted(rows: Tensor, seed: int, *, d_sae: int = 256, k: int = 8, steps: int = 500) -> Dictionary:
    """What the product's own recipe learns from rows, in few steps."""
    trainer = Trainer(rows, Recipe(d_sae, k, lr=3e-3, batch_tokens=1024, steps=steps), 10_000 + seed)
    while not trainer.done:
        trainer.step()
    return trainer.finish()


@dataclass(frozen=True, eq=False)
class Fitted:
    """Dictionaries of one world."""

    dictionary: Dictionary
    second: tuple[Dictionary, ...]
    reference: Dictionary
    base_dictionaries: tuple[Dictionary, ...]


def fit_all(world: Planted, seed: int, *, k: int = 8, d_sae: int = 256, reference: str = "atoms", seconds: int = 1, bases: int = 3) -> Fitted:
    """Delta dictionaries of several seeds, the reference (its atoms, or "fitted" to base activations) and base dictionaries."""
    deltas, base = world.deltas[: world.fit], world.base[: world.fit]
    own = [fitted(deltas, 100 * seed + i, d_sae=d_sae, k=k) for i in range(1 + seconds)]
    size = 2 * 2 ** int(np.ceil(np.log2(len(world.reference))))
    others = [fitted(base, 100 * seed + 50 + i, d_sae=size) for i in range(bases + (reference == "fitted"))]
    given = dictionary_of(world.reference, base) if reference == "atoms" else others.pop()
    return Fitted(own[0], tuple(own[1:]), given, tuple(others))
