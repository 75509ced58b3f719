"""Signed orthogonal matching pursuit, batched: the ideal coder that every dictionary is given, so that none
suffers from its encoder."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.arrays import Matrix, matrix, unit_rows

_BLOCK_NUMBERS = 1 << 20
"""Correlations per block of tokens (4 MB in fp32): they stay in the processor's cache between the product and
its maximum."""

_BLOCK_TOKENS = 256
"""But never fewer tokens than this: the product repacks all atoms for every block."""

_GROUP = 128
"""Correlations whose extremes are taken at once."""

GRAM_ATOMS = 4096
"""Up to this many atoms their Gram matrix is kept (64 MB in fp32); above, each token's chosen atoms are
kept."""

_ANEW = 8
"""Steps after which correlations are a product of all atoms again. Between, each step takes from them what
the Gram matrix says of its change (Rubinstein, Zibulevsky & Elad 2008): `step` rows of it instead of d_model,
at the price of one more rounding."""


@dataclass(frozen=True)
class Pursuit:
    """What k steps of pursuit left of each token."""

    residual_energy: Float[Tensor, "token step"]
    """‖x - x̂_j‖² after j = 0..k atoms; the first column is the token's own energy."""
    support: Int[Tensor, "token k"]
    """Atoms in the order of choice; -1 where nothing was left to explain."""
    residual: Float[Tensor, "token d_model"]
    """x - x̂ after k atoms."""

    def fvu(self, k: int) -> float:
        """Residual energy after k atoms (-1: after all) as a share of all energy; 1 where there is none to
        explain."""
        if not bool(self.residual_energy[:, 0].any()):
            return 1.0
        return float(self.residual_energy[:, k].double().sum() / self.residual_energy[:, 0].double().sum())


def pursue(x: Matrix, atoms: Matrix, k: int, gram: Float[Tensor, "atom column"] | None = None) -> Pursuit:
    """Codes each row of `x` [token, d_model] with k rows of `atoms` [atom, d_model], any sign: the atom most
    correlated with what is left, then all chosen atoms' coefficients by least squares.

    Atoms are scaled to unit rows and need not be independent. The work is that of k / 8 products of tokens by
    atoms, and as much again for the rest; above 4096 atoms, k products. Computed in the type of `x`.

    Args:
        gram: products of the atoms, of norm 1, where they are known, with `gram_columns` columns.

    Raises:
        GeometryError: another d_model, or k outside 1..number of atoms.
    """
    x = matrix(x, "x", dtype=None)
    atoms = unit_rows(matrix(atoms, "atoms", dtype=x.dtype)).to(x.device)
    if x.shape[1] != atoms.shape[1]:
        raise GeometryError(
            f"x lives in d_model={x.shape[1]}, the atoms in d_model={atoms.shape[1]}: another model's"
            " dictionary?"
        )
    if not 1 <= k <= len(atoms):
        raise GeometryError(
            f"k={k} atoms per token asked of a dictionary of {len(atoms)}: choose 1 to {len(atoms)}"
        )
    if gram is not None:
        gram = gram.to(atoms)
    elif len(atoms) <= GRAM_ATOMS:
        gram = _gram(atoms)
    blocks = x.split(max(_BLOCK_TOKENS, _BLOCK_NUMBERS // len(atoms)))
    energy, support, residual = (
        torch.cat(p) for p in zip(*(_pursue_block(b, atoms, gram, k) for b in blocks), strict=True)
    )
    return Pursuit(energy, support, residual)


def _pursue_block(x: Tensor, atoms: Tensor, gram: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens = len(x)
    tolerance = (
        1e-5 if x.dtype == torch.float32 else 1e-12
    )  # an atom this close (sine squared) to those chosen adds nothing
    residual = x.clone()
    energy = x.new_empty(tokens, k + 1)
    energy[:, 0] = (x * x).sum(1)
    support = torch.zeros(tokens, k, dtype=torch.int64, device=x.device)
    used = torch.zeros(tokens, k, dtype=torch.bool, device=x.device)
    # row j: the coefficients, over the chosen atoms, of the j-th of an orthonormal basis of their span (an
    # inverse Cholesky factor)
    basis = torch.zeros(tokens, k, k, dtype=torch.float64, device=x.device)
    picked = x.new_empty(tokens, k if gram is None else 0, x.shape[1])
    correlation = x.new_zeros(tokens, gram_columns(len(atoms)))
    change = x.new_empty(tokens, 0)
    for step in range(k):
        if gram is None or step % _ANEW == 0:
            torch.mm(residual, atoms.T, out=correlation[:, : len(atoms)])
        else:
            correlation -= embedding_bag(support[:, :step], gram, per_sample_weights=change, mode="sum")
        chosen, along = _most_correlated(correlation)
        support[:, step] = chosen
        past = basis[:, :step, :step]
        if gram is None:
            picked[:, step] = atoms[chosen]
            products = torch.bmm(picked[:, :step], picked[:, step, :, None])[:, :, 0]
        else:
            products = gram[chosen[:, None], support[:, :step]]
        inside = (past * products[:, None]).sum(2)
        squared_sine = 1 - (inside * inside).sum(1)
        usable = (squared_sine > tolerance) & (energy[:, step] > tolerance**2 * energy[:, 0])
        scale = torch.where(usable, squared_sine.clamp_min(tolerance).rsqrt(), 0)
        basis[:, step, :step] = -(inside[:, :, None] * past).sum(1) * scale[:, None]
        basis[:, step, step] = scale
        weight = along * scale  # the residual is orthogonal to all atoms chosen before
        change = (basis[:, step, : step + 1] * weight[:, None]).to(x.dtype)
        residual -= embedding_bag(support[:, : step + 1], atoms, per_sample_weights=change, mode="sum")
        used[:, step] = usable
        energy[:, step + 1] = torch.linalg.vector_norm(residual, dim=1).square()
    return energy, support.where(used, -1), residual


def gram_columns(atoms: int) -> int:
    """Columns of a Gram matrix: a whole number of groups, those without an atom are zeros."""
    return -(-atoms // _GROUP) * _GROUP


def _gram(atoms: Float[Tensor, "atom d_model"]) -> Float[Tensor, "atom column"]:
    """Products of all atoms, with columns of zeros up to a whole number of groups."""
    gram = atoms.new_zeros(len(atoms), gram_columns(len(atoms)))
    torch.mm(atoms, atoms.T, out=gram[:, : len(atoms)])
    return gram


def _most_correlated(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Column of the largest magnitude in each row, and the entry there. Extremes of groups are vectorised;
    argmax is 7 times slower."""
    groups = correlation.view(len(correlation), -1, _GROUP)
    best = torch.maximum(groups.amax(2), -groups.amin(2)).argmax(1)
    within = groups[torch.arange(len(groups), device=groups.device), best]
    column = within.abs().argmax(1)
    return best * _GROUP + column, within.gather(1, column[:, None])[:, 0]
