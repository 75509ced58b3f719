"""Planted data of the demo's size: d 640, 30,000 training and 16,000 evaluation tokens, half of the atoms in the reference."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from deltasae_ray.divergence.context import LayerInputs
from deltasae_ray.divergence.leaf import LeafInputs
from tests.divergence.worlds import dictionary_of

D_MODEL, ATOMS, ACTIVE = 640, 512, 8
FIT, EVAL, PER_DOCUMENT = 30_000, 16_000, 200


def demo_layer() -> tuple[LayerInputs, list[LeafInputs]]:
    """One adapter at one layer, with dictionaries of 256 and 512 latents that know the truth but for a little noise."""
    g = torch.Generator().manual_seed(0)
    scales = torch.exp(0.7 * torch.randn(D_MODEL, generator=g))
    base_atoms, own = (normalize(torch.randn(ATOMS, D_MODEL, generator=g) * scales, dim=1) for _ in range(2))
    atoms = torch.cat([base_atoms[: ATOMS // 2], own[: ATOMS // 2]])
    base, deltas = 10 * _codes(base_atoms, g) + 5, _codes(atoms, g)
    documents = np.arange(FIT + EVAL) // PER_DOCUMENT

    def near(rows: Tensor, data: Tensor) -> object:
        return dictionary_of(normalize(rows + 0.01 * torch.randn(rows.shape, generator=g), dim=1), data[:FIT], ACTIVE)

    inputs = LayerInputs(
        delta_fit=deltas[:FIT].numpy(),
        delta_eval=deltas[FIT:].numpy(),
        base_fit=base[:FIT].numpy(),
        base_eval=base[FIT:].numpy(),
        fit_docs=documents[:FIT],
        eval_docs=documents[FIT:],
        reference=near(base_atoms, base),
        base_control=near(base_atoms, base),
    )
    return inputs, [LeafInputs(near(atoms[:n], deltas), None, near(own[:n], deltas)) for n in (256, 512)]


def _codes(atoms: Tensor, g: torch.Generator) -> Tensor:
    tokens = FIT + EVAL
    chosen = torch.rand(tokens, ATOMS, generator=g).topk(ACTIVE, 1).indices
    codes = torch.zeros(tokens, ATOMS).scatter_(1, chosen, 0.5 + torch.rand(tokens, ACTIVE, generator=g))
    return codes @ atoms + 0.05 * torch.randn(tokens, D_MODEL, generator=g)
