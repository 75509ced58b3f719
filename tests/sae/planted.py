"""Worlds whose dictionary is known."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class World:
    x: Tensor
    """Training rows."""
    held_out: Tensor
    atoms: Tensor
    """Unit rows: the truth."""


def planted(
    seed: int,
    rows: int = 8192,
    *,
    d_model: int = 256,
    subspace: int = 32,
    atoms: int = 64,
    active: int = 4,
    noise: float = 0.01,
) -> World:
    """Each row is `active` of `atoms` unit atoms, all inside a subspace, with coefficients in [0.5, 1.5] and
    white noise."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_model, subspace, generator=g)).Q
    truth = F.normalize(torch.randn(atoms, subspace, generator=g), dim=1) @ basis.T
    total = rows + 2048
    chosen = torch.rand(total, atoms, generator=g).topk(active, dim=1).indices
    codes = torch.zeros(total, atoms).scatter_(1, chosen, 0.5 + torch.rand(total, active, generator=g))
    x = codes @ truth + noise * torch.randn(total, d_model, generator=g)
    return World(x[:rows], x[rows:], truth)


def rank_one(seed: int, rows: int = 4096, d_model: int = 64) -> tuple[Tensor, Tensor]:
    """(x, v): what a rank-one writer adds, a signed heavy-tailed coefficient times the unit vector v, with a
    little noise."""
    g = torch.Generator().manual_seed(seed)
    v = F.normalize(torch.randn(d_model, generator=g), dim=0)
    return torch.randn(rows, 1, generator=g).exp() * v + 0.001 * torch.randn(rows, d_model, generator=g), v
