"""Whether the blocks of an architecture hand on one residual stream, as every figure here takes for granted;
seen on four tokens."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.models.capture import Residuals, adapter_active, reading
from deltasae_ray.models.load import backbone, base_of, blocks
from deltasae_ray.sae.identity import BASE

_IDS = (1, 2, 3, 4)


def check_width(model: nn.Module, d_model: int) -> None:
    """Checks the shape of what every block returns, for a plan: on a model without weights.

    Raises:
        ModelError: a block returns something else than one vector of `d_model` numbers per token.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode, log
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    residuals: Residuals = {}
    disabled, log.disabled = log.disabled, True  # it would print what is caught here
    try:
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            _pass(model, _ids(model), residuals)
    except ModelError:
        raise
    except Exception:  # noqa: BLE001, S110 - without weights a router cannot choose: the blocks before it were seen, the rest is later
        pass
    finally:
        log.disabled = disabled
    _check_shapes(model, residuals, d_model)


def check_stream(model: nn.Module) -> None:
    """Checks what every block returns, in two passes over four tokens: its width, that it is what
    transformers calls the hidden state there, and that no position sees a later one.

    Raises:
        ModelError: it is not, so that a delta at a layer would not mean what it says; names the block.
    """
    ids = _ids(model)
    residuals: Residuals = {}
    changed: Residuals = {}
    hidden = _pass(model, ids, residuals)
    _check_shapes(model, residuals, width_of(model))
    later = ids.clone()
    later[:, -1] += 1
    _pass(model, later, changed)
    for h, stream in residuals.items():
        if not _close(stream[:, :-1], changed[h][:, :-1]):
            raise _unsupported(
                model,
                h,
                "lets positions see later ones, so that padding and what follows would change a token's"
                " delta",
            )
        # the last entry is taken after the final norm
        if h.hidden_states_index < len(hidden) - 1 and not _close(stream, hidden[h.hidden_states_index]):
            raise _unsupported(
                model, h, "returns something else than transformers' hidden state at that layer"
            )


def width_of(model: nn.Module) -> int | None:
    """The width of the residual stream as the config tells it; None where it uses a word of its own."""
    config: Any = base_of(model).config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return getattr(text, "hidden_size", None)


def _ids(model: nn.Module) -> Tensor:
    return torch.tensor([_IDS], device=next(model.parameters()).device)


@torch.no_grad()
def _pass(model: nn.Module, ids: Tensor, residuals: Residuals) -> tuple[Tensor, ...]:
    """Puts what every block returns in `found`, also if a later one fails, and gives transformers' hidden
    states where they are shown."""
    with (
        reading(model, [Hookpoint(layer) for layer in range(len(blocks(model)))], residuals),
        adapter_active(model, BASE),
    ):
        stack: Any = backbone(model)
        # a model's own code need not know the argument
        shown = {"output_hidden_states": True} if _takes_hidden_states(stack) else {}
        output = stack(input_ids=ids, use_cache=False, **shown)
    return getattr(output, "hidden_states", None) or ()


def _takes_hidden_states(stack: nn.Module) -> bool:
    known = inspect.signature(stack.forward).parameters
    return "output_hidden_states" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())


def _check_shapes(model: nn.Module, residuals: Residuals, d_model: int | None) -> None:
    for h, stream in residuals.items():
        if stream.shape[:-1] != (1, len(_IDS)) or d_model not in (None, stream.shape[-1]):
            text = (
                f"{tuple(stream.shape)} for {len(_IDS)} tokens, where a residual stream of width {d_model} is"
                " needed"
            )
            raise _unsupported(model, h, f"returns {text}")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().mean()))


def _unsupported(model: nn.Module, h: Hookpoint, why: str) -> ModelError:
    kind = getattr(base_of(model).config, "model_type", "?")
    return ModelError(
        f"{kind}: block {h.layer} ({type(blocks(model)[h.layer]).__name__}) {why}. Layers of this"
        " architecture do not mean what they say here, so it is not supported: give a model whose blocks"
        " hand on one residual stream, such as Llama, Gemma, Qwen or GPT-2"
    )
