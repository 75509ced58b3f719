"""Where in the network an activation is read. The off-by-one against `hidden_states` lives here and nowhere else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import HookpointError

Site = Literal["attn_out", "lora", "mlp_out", "resid_post"]
SITES: tuple[Site, ...] = ("attn_out", "mlp_out", "resid_post")
"""Those of the residual stream, of every source; `lora` is read at each module that an adapter adapts."""
_NAME = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(SITES)})")
_LORA = re.compile(r"blocks\.(\d+)\.(\w+(?:\.\w+)*)\.hook_lora")


@dataclass(frozen=True, order=True)
class Hookpoint:
    """A place at block `layer` (0-based), named as TransformerLens and SAELens name it.

    `str(Hookpoint(12)) == "blocks.12.hook_resid_post"`, the residual stream after block 12; Gemma Scope's "layer 12" is the same place.
    `attn_out` and `mlp_out` are what attention and MLP add to the residual stream, after the norm that Gemma 2 and 3 put there.
    `str(Hookpoint(12, "lora", "self_attn.q_proj")) == "blocks.12.self_attn.q_proj.hook_lora"` is the change that an adapter makes to the
    output of that linear module, in low-rank coordinates.
    """

    layer: int
    site: Site = "resid_post"
    module: str = ""
    """At the site `lora`, the path of the linear module in its block."""

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise HookpointError(f"layer {self.layer} is negative: layers count from 0")
        if self.site not in (*SITES, "lora"):
            raise HookpointError(f"{self.site!r} is no site: choose from {', '.join(SITES)}, lora")
        if (self.site == "lora") != bool(self.module):
            raise HookpointError(f"site {self.site!r} with module {self.module!r}: a module is named at the site lora, and only there")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.module}.hook_lora" if self.module else f"blocks.{self.layer}.hook_{self.site}"

    @property
    def hidden_states_index(self) -> int:
        """Index into transformers' `output_hidden_states`: entry 0 is the embedding, so block L ends at L + 1.

        The last entry is taken after the final norm, so for the deepest block the two differ by that norm.
        """
        assert self.site == "resid_post", "hidden_states holds the residual stream only"
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
        if match := _NAME.fullmatch(value):
            return cls(int(match.group(1)), match.group(2))  # type: ignore[arg-type]
        if match := _LORA.fullmatch(value):
            return cls(int(match.group(1)), "lora", match.group(2))
        if value.isdecimal():
            return cls(int(value))
        raise HookpointError(
            f"{value!r} is no hookpoint: use a layer number, blocks.<layer>.hook_<site>, a site of {', '.join(SITES)}, or "
            "blocks.<layer>.<module>.hook_lora"
        )


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


def at_sites(hookpoints: Sequence[Hookpoint], sites: Sequence[Site]) -> tuple[Hookpoint, ...]:
    """The hookpoints and, at their layers, the other sites of the residual stream; ascending."""
    return tuple(sorted({*hookpoints, *(Hookpoint(h.layer, site) for h in hookpoints for site in sites if site != "lora")}))
