"""Activations at chosen hookpoints, for the base model and for each adapter, from one resident model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import SITES, Hookpoint, at_sites
from deltasae_ray.models.borrowed import borrowed
from deltasae_ray.models.load import backbone, blocks, site_module
from deltasae_ray.models.peft_names import peft_name
from deltasae_ray.models.replaced import replaced
from deltasae_ray.sae.identity import BASE

Residuals = dict[Hookpoint, Float[Tensor, "context position d_model"]]


@contextmanager
def adapter_active(model: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, the model is the base (`"base"`) or the base with one adapter, unmerged, in evaluation mode;
    afterwards it is as before.

    Raises:
        ValueError: the model holds no adapter of this name (PEFT's own message).
    """
    if adapter != BASE:
        with adapter_on(model, adapter):
            yield
        return
    with borrowed(model):
        if not hasattr(model, "peft_config"):
            yield
            return
        with model.disable_adapter(), replaced(model):  # type: ignore[operator]
            yield


@contextmanager
def adapter_on(model: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, the model has this one adapter, whatever it is called, also where all were switched off;
    otherwise as `adapter_active`."""
    assert hasattr(model, "peft_config"), f"{adapter} was never attached"
    with borrowed(model):
        model.set_adapter(peft_name(model, adapter))  # type: ignore[operator]
        for module in model.modules():  # choosing one leaves them off
            if getattr(module, "_disable_adapters", False) is True:
                module.enable_adapters(True)  # type: ignore[operator]
        with replaced(model, adapter):
            yield


@contextmanager
def reading(
    model: nn.Module, hookpoints: Sequence[Hookpoint], into: Residuals | None = None
) -> Iterator[Residuals]:
    """Inside, every forward pass leaves what stands at the hookpoints in the yielded dict, which is `into`
    where that is given."""
    taken: Residuals = {} if into is None else into

    def reader(hookpoint: Hookpoint):
        def read(_module: nn.Module, _inputs: object, output: Tensor | Sequence[Tensor]) -> None:
            site = (
                output
                if isinstance(output, Tensor)
                else output[0]
                if isinstance(output, tuple | list) and output
                else None
            )
            if not isinstance(site, Tensor):
                raise ModelError(
                    f"{hookpoint}: this architecture returns a {type(output).__name__} there and no tensor:"
                    " it is not supported"
                )
            taken[hookpoint] = site.detach()

        return read

    stack = blocks(model)
    handles = [site_module(stack[h.layer], h.site).register_forward_hook(reader(h)) for h in hookpoints]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def check_sites(model: nn.Module, hookpoints: Sequence[Hookpoint]) -> None:
    """Whether what is read at attention and MLP outputs is what they add to the residual stream; one pass
    over four tokens.

    Raises:
        ModelError: a block does more than add the two, so that its sites would not mean what they say.
    """
    layers = sorted({h.layer for h in hookpoints if h.site != "resid_post"})
    entered: dict[int, Tensor] = {}

    def keep(layer: int):
        return lambda _module, args, kwargs: entered.update(
            {layer: args[0] if args else kwargs["hidden_states"]}
        )

    stack = blocks(model)
    handles = [stack[layer].register_forward_pre_hook(keep(layer), with_kwargs=True) for layer in layers]
    try:
        ids = torch.tensor([[1, 2, 3, 4]], device=next(model.parameters()).device)
        taken = (
            residuals(model, ids, at_sites([Hookpoint(layer) for layer in layers], SITES)) if layers else {}
        )
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        whole, parts = (
            taken[Hookpoint(layer)],
            entered[layer] + taken[Hookpoint(layer, "attn_out")] + taken[Hookpoint(layer, "mlp_out")],
        )
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3 * float(whole.abs().mean())):
            raise ModelError(
                f"{type(stack[layer]).__name__}: block {layer} does more than add attention and MLP outputs"
                " to the stream, so those sites are not known for this architecture; use resid_post"
            )


@torch.no_grad()
def residuals(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    adapter: str = BASE,
) -> Residuals:
    """One forward pass up to the last block the model still has; no language-model head.

    Padding stands on the right, where a causal model never sees it, so no attention mask is needed: a
    context's residuals are the same whatever it is batched with.

    Returns:
        Hookpoint → activations there, in the precision of the model (fp32).
    """
    with reading(model, hookpoints) as taken, adapter_active(model, adapter):
        backbone(model)(input_ids=input_ids, use_cache=False)
    return taken


def unit_ids(unit: TokenBatch, device: torch.device | str = "cpu") -> Int[Tensor, "context position"]:
    """The ids of a unit on a device."""
    return torch.tensor(unit.input_ids, dtype=torch.long, device=device)


def unit_mask(unit: TokenBatch, device: torch.device | str = "cpu") -> Bool[Tensor, "context position"]:
    """The mask of a unit on a device."""
    return torch.tensor(unit.mask, device=device)


def deltas(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    adapters: Sequence[str],
) -> Iterator[tuple[str, Residuals]]:
    """Yields the base's residuals under "base", then h_adapted − h_base of every adapter, subtracted in the
    residuals' precision.

    The base runs once and every adapter once, on the same ids, one after the other;
    `together.deltas_together` runs them in one pass.
    """
    base = residuals(model, input_ids, hookpoints)
    yield BASE, base
    for adapter in adapters:
        adapted = residuals(model, input_ids, hookpoints, adapter)
        yield adapter, {h: adapted[h] - base[h] for h in hookpoints}
