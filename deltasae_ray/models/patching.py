"""Another residual stream put into the base model after one block, and what the model then says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.behaviour import LanguageHead
from deltasae_ray.models.capture import Residuals, adapter_active, residuals
from deltasae_ray.models.load import backbone, base_of, blocks
from deltasae_ray.sae.identity import BASE

_tuples: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
Hidden = Float[Tensor, "context position d_model"]


def whole_pass(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoints: Sequence[Hookpoint],
    source: str = BASE,
) -> tuple[Residuals, Hidden]:
    """One pass of the base or of one adapter: the residual streams, and what the language-model head reads
    (after the final norm)."""
    seen: list[Hidden] = []
    handle = backbone(model).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.last_hidden_state)
    )
    try:
        taken = residuals(model, input_ids, hookpoints, source)
    finally:
        handle.remove()
    return taken, seen[0]


@torch.no_grad()
def continued(
    model: nn.Module,
    input_ids: Int[Tensor, "context position"],
    hookpoint: Hookpoint,
    residual: Hidden,
    source: str = BASE,
) -> Hidden:
    """What the head reads when the base, or the model with one adapter, goes on from `residual` after block
    `hookpoint.layer`; earlier blocks are not run.

    `continued(model, ids, h, residuals(model, ids, [h])[h])` is the model's own pass.
    """
    with adapter_active(model, source), _skipped(model, hookpoint, residual):
        return backbone(model)(input_ids=input_ids, use_cache=False).last_hidden_state


@contextmanager
def _skipped(model: nn.Module, hookpoint: Hookpoint, residual: Hidden) -> Iterator[None]:
    """Inside, blocks up to the hookpoint hand on what they are given, and its own block gives `residual`."""
    stack, wrapped = blocks(model), _returns_tuples(model)
    replaced: list[tuple[nn.Module, Any]] = []

    def stand_in(module: nn.Module, given: Hidden | None) -> None:
        def forward(hidden_states: Hidden, *_: Any, **__: Any) -> Hidden | tuple[Hidden]:
            stream = hidden_states if given is None else given
            return (stream,) if wrapped else stream

        replaced.append((module, module.__dict__.get("forward")))
        module.forward = forward

    try:
        for block in stack[: hookpoint.layer]:
            stand_in(block, None)
        stand_in(stack[hookpoint.layer], residual)
        yield
    finally:
        for module, forward in replaced:
            del module.forward
            if forward is not None:
                module.forward = forward


@contextmanager
def steered(
    model: nn.Module, hookpoint: Hookpoint, added: Float[Tensor, " d_model"] | Float[Tensor, "row d_model"]
) -> Iterator[None]:
    """Inside, `added` is added to the residual stream after block `hookpoint.layer`, at every position of a
    pass: one direction for all rows, or one a row."""
    given = added if added.ndim == 1 else added[:, None]

    def add(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output + given
        return (output[0] + given, *output[1:])

    handle = blocks(model)[hookpoint.layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _returns_tuples(model: nn.Module) -> bool:
    """Whether blocks return the residual stream as the first of a tuple (Bloom, Falcon, OPT): seen in one
    pass, once per model."""
    inner = base_of(model)
    if inner not in _tuples:

        def see(_module: nn.Module, _inputs: object, output: object) -> None:
            _tuples[inner] = isinstance(output, tuple)

        handle = blocks(model)[0].register_forward_hook(see)
        try:
            backbone(model)(
                input_ids=torch.ones(1, 1, dtype=torch.int64, device=next(inner.parameters()).device),
                use_cache=False,
            )
        finally:
            handle.remove()
    return _tuples[inner]


@torch.no_grad()
def losses_beside(
    head: LanguageHead, hidden: Float[Tensor, "variant n d_model"], labels: Int[Tensor, " n"]
) -> tuple[Float64[Tensor, "variant n"], Float64[Tensor, "variant n"]]:
    """Cross-entropy of every variant, and KL(first variant ‖ variant), both in nats.

    One pass over the vocabulary with running sums in fp64; logits of the whole vocabulary are never held. A
    variant equal to the first has a KL of exactly 0.
    """
    label = torch.zeros(hidden.shape[:2], dtype=torch.float64, device=hidden.device)
    lse = torch.full_like(label, -torch.inf)
    gap = torch.zeros_like(label)
    """Mean, under the first variant's distribution so far, of its logits less the variant's."""
    for blocks_of in zip(*(head.blocks(h) for h in hidden), strict=True):
        start, first = blocks_of[0]
        here = ((labels >= start) & (labels < start + len(first))).nonzero()[:, 0]
        peak = torch.maximum(lse[0], first.amax(0).double())
        weight = (first - peak).exp()
        whole = peak + ((lse[0] - peak).exp() + weight.sum(0)).log()
        for i, (_, logits) in enumerate(blocks_of):
            label[i, here] = logits[labels[here] - start, here].double()
            gap[i] = (
                gap[i] * (lse[0] - whole).exp() + (weight * (first - logits)).sum(0) * (peak - whole).exp()
            )
        for i, (_, logits) in enumerate(blocks_of[1:], start=1):
            lse[i] = torch.logaddexp(lse[i], logits.double().logsumexp(0))
        lse[0] = whole
    return lse - label, torch.cat([torch.zeros_like(gap[:1]), gap[1:] - lse[:1] + lse[1:]])
