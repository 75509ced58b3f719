"""What a trainer is stopped and resumed from."""

from typing import TYPE_CHECKING, Any

import torch

from deltasae_ray.errors import DictionaryError

if TYPE_CHECKING:
    from deltasae_ray.sae.trainer import Trainer


def trainer_state(trainer: "Trainer") -> dict[str, Any]:
    """Copies what training continues from: tensors and JSON-like values, so that nothing needs pickle."""
    moments = {
        f"{kind}.{name}": trainer.optimizer.state[weight].get(kind, torch.zeros(()))
        for name, weight in trainer.weights._asdict().items()
        for kind in ("exp_avg", "exp_avg_sq", "step")
    }
    tensors = (
        trainer.weights._asdict()
        | moments
        | {"idle": trainer.idle, "sums": trainer.sums, "pressure": trainer.pressure}
    )
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "steps_done": trainer.steps_done,
        "curve": [dict(point) for point in trainer.curve],
        "made_for": trainer.made_for,
    }


def restore(trainer: "Trainer", state: dict[str, Any]) -> None:
    """Sets a trainer to where `state` was taken.

    Raises:
        DictionaryError: it was taken with another recipe, seed or shape of data.
    """
    if state.get("made_for") != trainer.made_for:
        raise DictionaryError(
            f"this checkpoint is of {state.get('made_for')}, not of {trainer.made_for}: delete it to start"
            " afresh"
        )
    tensors = state["tensors"]
    with torch.no_grad():
        for name, weight in trainer.weights._asdict().items():
            weight.copy_(tensors[name])
            if state["steps_done"] and len(weight):
                kept = {kind: tensors[f"{kind}.{name}"].clone() for kind in ("exp_avg", "exp_avg_sq", "step")}
                trainer.optimizer.state[weight] = {
                    kind: tensor.to(trainer.device) for kind, tensor in kept.items()
                }
        trainer.idle.copy_(tensors["idle"])
        trainer.sums.copy_(tensors["sums"])
        trainer.pressure.copy_(tensors["pressure"])
    trainer.steps_done = state["steps_done"]
    trainer.curve = [dict(point) for point in state["curve"]]
