"""Where in the network an activation is read. The off-by-one against `hidden_states` lives here and nowhere else."""

import re
from dataclasses import dataclass

from deltasae_ray.errors import HookpointError

_NAME = re.compile(r"blocks\.(\d+)\.hook_(resid_post)")


@dataclass(frozen=True, order=True)
class Hookpoint:
    """The residual stream after block `layer` (0-based), named as TransformerLens and SAELens name it.

    `str(Hookpoint(12)) == "blocks.12.hook_resid_post"`. Gemma Scope's "layer 12" is the same place.
    """

    layer: int

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise HookpointError(f"layer {self.layer} is negative: layers count from 0")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.hook_resid_post"

    @property
    def hidden_states_index(self) -> int:
        """Index into transformers' `output_hidden_states`: entry 0 is the embedding, so block L ends at L + 1.

        The last entry is taken after the final norm, so for the deepest block the two differ by that norm.
        """
        return self.layer + 1

    @classmethod
    def parse(cls, value: "int | str | Hookpoint") -> "Hookpoint":
        """Accepts a layer number, its digits, a full name or a Hookpoint.

        Raises:
            HookpointError: nothing of these.
        """
        if isinstance(value, Hookpoint):
            return value
        if isinstance(value, int):
            return cls(value)
        match = _NAME.fullmatch(value)
        if match:
            return cls(int(match.group(1)))
        if value.isdigit():
            return cls(int(value))
        raise HookpointError(f"{value!r} is no hookpoint: use a layer number or blocks.<layer>.hook_resid_post")


def resolve(layers: tuple[int, ...], num_layers: int) -> tuple[Hookpoint, ...]:
    """The hookpoints of `layers`, ascending, checked against a model of `num_layers` blocks.

    Raises:
        HookpointError: no layer asked for, one twice, or one the model has not.
    """
    if not layers:
        raise HookpointError(f"no layers asked for: set layers=[…] between 0 and {num_layers - 1}")
    missing = [layer for layer in layers if not 0 <= layer < num_layers]
    if missing:
        raise HookpointError(f"layers {missing} do not exist: this model has layers 0 to {num_layers - 1}")
    if len(set(layers)) != len(layers):
        raise HookpointError(f"layers {list(layers)} names one twice")
    return tuple(Hookpoint(layer) for layer in sorted(layers))
