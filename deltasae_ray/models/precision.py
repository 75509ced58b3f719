"""How exact a delta is: the same rows in a higher precision, and under another batch layout (science.md A,
precision)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import Residuals
from deltasae_ray.models.casts import widen
from deltasae_ray.sae.identity import BASE

Measurement = Callable[[Tensor], dict[str, Residuals]]
"""Token ids [context, position] → the base's activations and every adapter's deltas, by source."""


class Float64Casts(TorchDispatchMode):
    """Turns every cast to fp32 into one to fp64: models cast to fp32 inside their norms and rotary
    embeddings."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002 - the signature is torch's
        kwargs = dict(kwargs or {})
        # memory that is only set aside keeps its type: sharded parameters are gathered into such
        if kwargs.get("dtype") is torch.float32 and not func.name().startswith("aten::empty"):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def in_fp64(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes run in fp64; one module at a time is held in it, also where parameters are
    sharded."""
    end = widen(model, torch.float64)
    try:
        with Float64Casts():
            yield
    finally:
        end()


@dataclass(frozen=True)
class NoiseFloor:
    """Energies of one adapter's deltas at one hookpoint, over the sampled tokens (BOS left out)."""

    signal: float
    """E‖δ‖²."""
    rounding: float
    """E‖δ − δ in a higher precision‖²."""
    layout: float
    """E‖δ − δ with every context in a batch of its own‖²; often 0 on a CPU, so it never stands alone."""
    relative: float
    """√(E‖δ‖² / E‖h_base‖²)."""
    median_token_snr: float | None
    """Median over tokens of ‖δ‖²/‖noise‖²: a single massive token can carry nearly all error energy. None: no
    noise at all."""

    @property
    def snr(self) -> float | None:
        """E‖δ‖² over the larger noise energy; None when the noise is exactly 0."""
        noise = max(self.rounding, self.layout)
        return self.signal / noise if noise > 0 else None

    def to_dict(self) -> dict[str, float | None]:
        return {**asdict(self), "snr": self.snr}


def noise_floor(
    measure: Measurement,
    higher: Measurement,
    input_ids: Int[Tensor, "context position"],
    mask: Bool[Tensor, "context position"],
    adapters: Sequence[str],
) -> dict[str, dict[Hookpoint, NoiseFloor]]:
    """Measures the noise of every adapter's deltas on a sample of contexts.

    Args:
        measure: the deltas as the harvest takes them.
        higher: the same in a higher precision: fp64 for fp32, fp32 for bf16 products.
        mask: True on tokens that count; position 0 (BOS) is left out whatever it says.

    Returns:
        adapter → hookpoint → NoiseFloor.
    """
    mask = mask.clone()
    mask[:, 0] = False
    batched, exact = measure(input_ids), higher(input_ids)
    alone = [measure(row[None]) for row in input_ids]
    floors: dict[str, dict[Hookpoint, NoiseFloor]] = {}
    for adapter in adapters:
        floors[adapter] = {}
        for h, delta in batched[adapter].items():
            other = torch.cat([single[adapter][h] for single in alone])
            floors[adapter][h] = _floor(
                delta[mask], exact[adapter][h][mask], other[mask], batched[BASE][h][mask]
            )
    return floors


def _floor(delta: Float[Tensor, "token d"], exact: Tensor, other: Tensor, base: Tensor) -> NoiseFloor:
    rounding, layout, signal = (
        _energy(x) for x in (delta.double() - exact, delta.double() - other.double(), delta)
    )
    noise = torch.maximum(rounding, layout)
    snr = (signal / noise)[noise > 0]
    return NoiseFloor(
        signal=float(signal.mean()),
        rounding=float(rounding.mean()),
        layout=float(layout.mean()),
        relative=float((signal.mean() / _energy(base).mean()).sqrt()),
        median_token_snr=float(snr.median()) if len(snr) else None,
    )


def _energy(x: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
    return x.double().square().sum(-1)
