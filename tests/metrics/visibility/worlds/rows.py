"""What every planted world is made of: rows of documents, codes, and what is known of them."""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Which of them the reference holds; empty where no share of features is true."""
    reference: Tensor
    """Atoms of the reference, unit rows."""
    base_atoms: Tensor
    """What base activations are made of, unit rows."""
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
        object.__setattr__(
            self, "tokens", torch.multinomial(weights, self.total, replacement=True, generator=self.g)
        )

    @property
    def doc_ids(self) -> np.ndarray:
        return np.arange(self.total) // self.per_document

    @property
    def positions(self) -> np.ndarray:
        return np.arange(self.total) % self.per_document

    def codes(
        self,
        atoms: int,
        active: int,
        amplitude: tuple[float, float],
        liking: float = 0.5,
        by_token: float = 0.5,
    ) -> Tensor:
        """Codes [row, atom] with `active` atoms on every row; documents and tokens differ in which they
        prefer."""
        documents = -(-self.total // self.per_document)
        likes = liking * torch.randn(documents, atoms, generator=self.g)[torch.from_numpy(self.doc_ids)]
        likes = likes + by_token * torch.randn(VOCABULARY, atoms, generator=self.g)[self.tokens]
        gumbel = -torch.log(-torch.log(torch.rand(self.total, atoms, generator=self.g).clamp(1e-6, 1 - 1e-6)))
        chosen = (likes + gumbel).topk(active, 1).indices
        low, high = amplitude
        return torch.zeros(self.total, atoms).scatter_(
            1, chosen, low + (high - low) * torch.rand(self.total, active, generator=self.g)
        )

    def rare(self, rate: float, amplitude: tuple[float, float]) -> Tensor:
        """Codes [row] that fire on a share `rate` of the rows, each by itself."""
        low, high = amplitude
        fires = torch.rand(self.total, generator=self.g) < rate
        return fires * (low + (high - low) * torch.rand(self.total, generator=self.g))


def planted(rows: Rows, fit: int, deltas: Tensor, base: Tensor, **known: object) -> Planted:
    return Planted(deltas, base, fit, rows.doc_ids, rows.tokens.numpy(), rows.positions, **known)


def dense_part(rows: Rows, d: int, rank: int, energy: float) -> tuple[Tensor, Tensor]:
    """Gaussian rows of one rank and E‖x‖², and the orthonormal rows that span them; eigenvalues fall from 1
    to 1/2."""
    basis = torch.linalg.qr(torch.randn(d, rank, generator=rows.g)).Q.T
    spread = torch.linspace(1, 0.5, rank)
    return (
        torch.randn(rows.total, rank, generator=rows.g) * (energy * spread / spread.sum()).sqrt() @ basis,
        basis,
    )
