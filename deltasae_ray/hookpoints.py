"""Where in the network an activation is read. The off-by-one against `hidden_states` lives here and nowhere
else."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import HookpointError

Site = Literal["attn_out", "lora", "mlp_out", "resid_post"]
SITES: tuple[Site, ...] = ("attn_out", "mlp_out", "resid_post")
"""Sites of the residual stream, of every source; `lora` is read at each module that an adapter adapts."""
_NAME = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(SITES)})")
_BLOCK = re.compile(
    r"(?:(?:model|transformer|gpt_neox|language_model|text_model|decoder|backbone|base_model)\.)*(?:layers|h|blocks|block)\.(\d+)"
    r"(?:\.(input|output|hook_resid_pre|hook_resid_post))?"
)
"""A whole block: as Hugging Face's models call the module, as Gemma Scope and sparsify write it, and as
TransformerLens does."""
_BY_SITE = re.compile(r"resid_(pre|post)_layer_?(\d+)")
"""Names that dictionary_learning gives the residual stream."""
_LORA = re.compile(r"blocks\.(\d+)\.(\w+(?:\.\w+)*)\.hook_lora")


@dataclass(frozen=True, order=True)
class Hookpoint:
    """A place at block `layer` (0-based), named as TransformerLens and SAELens name it.

    `str(Hookpoint(12)) == "blocks.12.hook_resid_post"`, the residual stream after block 12; Gemma Scope's
    "layer 12" is the same place. `attn_out` and `mlp_out` are what attention and MLP add to the residual
    stream, after the norm that Gemma 2 and 3 put there. `str(Hookpoint(12, "lora", "self_attn.q_proj")) ==
    "blocks.12.self_attn.q_proj.hook_lora"` is the change that an adapter makes to the output of that linear
    module, in low-rank coordinates.
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
            raise HookpointError(
                f"site {self.site!r} with module {self.module!r}: a module is named at the site lora, and"
                " only there"
            )

    def __str__(self) -> str:
        return (
            f"blocks.{self.layer}.{self.module}.hook_lora"
            if self.module
            else f"blocks.{self.layer}.hook_{self.site}"
        )

    @property
    def hidden_states_index(self) -> int:
        """Index into transformers' `output_hidden_states`: entry 0 is the embedding, so block L ends at L +
        1.

        The last entry is taken after the final norm, so for the deepest block the two differ by that norm.
        """
        assert self.site == "resid_post", "hidden_states holds the residual stream only"
        return self.layer + 1

    @classmethod
    def parse(cls, value: "int | str | Hookpoint") -> "Hookpoint":
        """Accepts a layer number, its digits, a full name in any spelling that `place_of` knows, or a
        Hookpoint.

        Raises:
            HookpointError: nothing of these.
        """
        if isinstance(value, Hookpoint):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        value = place_of(value) if isinstance(value, str) else repr(value)
        if match := _NAME.fullmatch(value):
            return cls(int(match.group(1)), match.group(2))  # type: ignore[arg-type]
        if match := _LORA.fullmatch(value):
            return cls(int(match.group(1)), "lora", match.group(2))
        if re.fullmatch(r"[0-9]{1,9}", value):
            return cls(int(value))
        raise HookpointError(
            f"{value!r} is no hookpoint: use a layer number, blocks.<layer>.hook_<site>, a site of"
            f" {', '.join(SITES)}, or blocks.<layer>.<module>.hook_lora"
        )


def place_of(name: str) -> str:
    """One spelling of a place that several libraries name differently; a name of anything but a whole block
    stays as it is.

    `model.layers.12`, `transformer.h.12`, `gpt_neox.layers.12.output`, `resid_post_layer_12` and
    `blocks.13.hook_resid_pre` are all `blocks.12.hook_resid_post`: a block's module is named for what it
    returns, and what enters a block is what left the one before.
    """
    if match := _BLOCK.fullmatch(name):
        layer, end = int(match[1]), match[2] or "output"
    elif match := _BY_SITE.fullmatch(name):
        layer, end = int(match[2]), match[1]
    else:
        return name
    if not end.endswith(("input", "pre")):
        return f"blocks.{layer}.hook_resid_post"
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


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
    return tuple(
        sorted(
            {*hookpoints, *(Hookpoint(h.layer, site) for h in hookpoints for site in sites if site != "lora")}
        )
    )
