"""What an adapter adds to a module's weights, s·B·A, taken apart without forming the [out, in] product."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_A = re.compile(r"(?P<module>.+)\.lora_A(?P<end>\.weight)?")


@dataclass(frozen=True, eq=False)
class Product:
    """One module's change, s·B·A = left · diag(values) · rightᵀ, by falling values."""

    module: str
    left: Float[Tensor, "out rank"]
    values: Float[Tensor, " rank"]
    right: Float[Tensor, "in rank"]

    @property
    def energy(self) -> float:
        """Squared Frobenius norm."""
        return float(self.values.square().sum())

    @property
    def kind(self) -> str:
        """The module's own name, such as down_proj."""
        return self.module.rpartition(".")[2]


def products(weights: Mapping[str, Tensor], scale: float = 1.0) -> list[Product]:
    """The change of every linear module, in order of names; of embeddings A is a table of tokens, and they
    are left out.

    Args:
        weights: an adapter's factors by PEFT's names.
        scale: alpha / rank, or alpha / √rank; 1 where only directions and shares are of interest.
    """
    pairs = []
    for match in filter(None, map(_A.fullmatch, sorted(weights))):
        a = weights[match[0]]
        b = weights[f"{match['module']}.lora_B{match['end'] or ''}"]
        pairs.append(_product(match["module"], a.double(), b.double(), scale))
    return pairs


def _product(module: str, a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"], scale: float) -> Product:
    """From the small cores of two QR factorisations, so that other factors of the same product, (B·R, R⁻¹·A),
    give the same."""
    (q_b, r_b), (q_a, r_a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, values, vh = torch.linalg.svd(scale * r_b @ r_a.T)
    return Product(module, q_b @ u, values, q_a @ vh.T)
