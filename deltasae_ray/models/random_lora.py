"""The random-LoRA control (science: nulls, 4): what an adapter of the same shape and strength does that
learnt nothing."""

import re
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Weights = dict[str, Tensor]
"""PEFT state: `….lora_A.weight` [rank, in] and `….lora_B.weight` [out, rank]; `….lora_embedding_A` and `_B`
of embeddings."""
_A, _B = re.compile(r"\.lora_(embedding_|)A(\.weight|$)"), re.compile(r"\.lora_(embedding_|)B(\.weight|$)")


def haar_rotated(weights: Weights, seed: int) -> Weights:
    """Replaces the singular vectors of every B·A by Haar-random ones and keeps its singular values.

    Args:
        weights: an adapter's tensors, by PEFT's names.
        seed: of the rotations; each module draws from a generator of its own, in sorted order of names.

    Returns:
        Tensors of the same names, shapes and dtypes.
    """
    rotated: Weights = {}
    for index, name in enumerate(sorted(n for n in weights if _A.search(n))):
        partner = _A.sub(r".lora_\1B\2", name)
        a, b = weights[name].double(), weights[partner].double()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        values = singular_values(a, b)
        left, right = (
            _orthonormal(b.shape[0], len(values), generator),
            _orthonormal(a.shape[1], len(values), generator),
        )
        rotated[partner] = (left * values.sqrt()).to(weights[partner].dtype).contiguous()
        rotated[name] = (right * values.sqrt()).T.to(weights[name].dtype).contiguous()
    return rotated


def singular_values(a: Float[Tensor, "rank in"], b: Float[Tensor, "out rank"]) -> Float[Tensor, " rank"]:
    """Singular values of b·a, from the small cores of two QR factorisations; never forms the [out, in]
    product."""
    return torch.linalg.svdvals(torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T)


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()  # the signs make QR of a Gaussian matrix Haar


def scaled(weights: Weights, factor: float) -> Weights:
    """Every B times `factor`: the change to every module's output scales alike."""
    return {name: t * factor if _B.search(name) else t for name, t in weights.items()}


def match_norm(measure: Callable[[float], float], target: float, *, rounds: int = 4) -> float:
    """The factor at which `measure(factor)` meets `target`, by fixed-point steps in the logarithm.

    Args:
        measure: mean delta norm of the random adapter scaled by a factor; grows about linearly.
        target: mean delta norm of the trained adapter.

    Returns:
        A factor; deterministic, and within a few per cent of the target where the response is smooth.
    """
    factor = 1.0
    for _ in range(rounds):
        factor *= target / max(measure(factor), 1e-30)
    return factor
