"""The controls, an entry each: which dictionaries it fits beside those of the grid, and its figures.

Configuration, plan, fits, leaves and figures read this table; nothing else names a control.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.sae.identity import BASE, RANDOM
from deltasae_ray.sae.names import Documents, Featureless

if TYPE_CHECKING:  # torch is not needed to read a configuration
    from deltasae_ray.metrics.context import Context
    from deltasae_ray.metrics.inputs import LeafInputs

REFERENCE_SEED, CONTROL_SEED = 1000, 1001
"""Apart from every seed of the grid: dictionaries of one seed start from the same rows, and would match for
that alone (decoders before training at a mean max-cosine of .79, where chance is .39)."""
SIBLING_SEEDS = (1004, 1005)
"""Of two more base dictionaries, so that there are three beside the reference: they share the base control's
documents, of which the reference saw none."""
HALF_SEEDS = (1002, 1003)
"""Seeds of the dictionaries of two halves of the documents, which are matched with each other: likewise
apart."""
SIBLINGS, RANDOMS = ("sibling_a", "sibling_b"), ("random_first", "random_second")
FOR_VISIBILITY = frozenset({*SIBLINGS, *RANDOMS})
"""Roles that only visibility reads: they are in no key of other figures."""


@dataclass(frozen=True)
class Beside:
    """A dictionary that stands beside one of the grid: of its layer and shape, and else as said here."""

    seed: int
    source: str | None = None
    """Whose rows it is fitted to; None: the same as the dictionary of the grid."""
    documents: Documents = "all"
    control: Featureless = "none"


@dataclass(frozen=True)
class Control:
    """What the figures of a dictionary are held against, beside nulls that need no training."""

    name: str
    """A word of `diverge.controls`."""
    fits: Mapping[str, Beside] = field(default_factory=dict)
    """Role → the dictionary that is fitted for it; empty where a control needs none."""
    figures: Callable[["Context", "LeafInputs"], dict[str, Measure]] | None = None
    """Measures one dictionary, beside which those of `fits` stand in `LeafInputs.beside`. None where other
    figures read them: as a ceiling, as the base control of a layer, or for visibility."""
    fast: bool = False
    """Whether `controls=fast` has it."""

    @property
    def is_shared(self) -> bool:
        """Whether all adapters share what is fitted, so that it costs dictionaries per shape alone."""
        return all(one.source is not None for one in self.fits.values())


def _gaussian(context: "Context", leaf: "LeafInputs") -> dict[str, Measure]:
    from deltasae_ray.analyses.divergence.featureless_figures import of_gaussian

    return of_gaussian(context, leaf)


def _frozen_decoder(context: "Context", leaf: "LeafInputs") -> dict[str, Measure]:
    from deltasae_ray.analyses.divergence.featureless_figures import of_frozen_decoder

    return of_frozen_decoder(context, leaf)


def _halves(context: "Context", leaf: "LeafInputs") -> dict[str, Measure]:
    from deltasae_ray.analyses.divergence.halves_figures import of_halves

    return of_halves(context, leaf)


REFERENCE = Control("reference", {"reference": Beside(REFERENCE_SEED, BASE, "A")})
"""The toy that stands for a reference where none is given: no control that one chooses, but fitted as one."""
BASE_CONTROL = Control(
    "base",
    {
        role: Beside(seed, BASE, "B")
        for role, seed in zip(("base_control", *SIBLINGS), (CONTROL_SEED, *SIBLING_SEEDS), strict=True)
    },
    fast=True,
)
RANDOM_LORA = Control(
    "random_lora", {role: Beside(seed, RANDOM) for seed, role in enumerate(RANDOMS)}, fast=True
)
"""Of every random adapter of a study: `study/controls.py` puts their names in."""
SECOND_SEED = Control("seeds", {"second": Beside(1)})
"""Fitted where the grid has one seed; where it has several, each is read beside the next."""
CONTROLS = (
    BASE_CONTROL,
    RANDOM_LORA,
    SECOND_SEED,
    Control("gaussian", {"gaussian": Beside(0, control="gaussian")}, _gaussian),
    Control("frozen_decoder", {"frozen_decoder": Beside(0, control="frozen_decoder")}, _frozen_decoder),
    Control(
        "split_half",
        {"half_a": Beside(HALF_SEEDS[0], documents="A"), "half_b": Beside(HALF_SEEDS[1], documents="B")},
        _halves,
    ),
    Control("loss_recovered"),
    Control("causal"),
)
"""In the order in which they are fitted."""


def budget(word: str) -> frozenset[str]:
    """The controls that a word of `diverge.controls` stands for: `fast`, `full`, or the name of one."""
    if word in ("fast", "full"):
        return frozenset(c.name for c in CONTROLS if c.fast or word == "full")
    return frozenset({word} & {c.name for c in CONTROLS})


def figures_beside(context: "Context", leaf: "LeafInputs") -> dict[str, Measure]:
    """The figures of every control whose dictionaries stand beside a leaf's."""
    figures: dict[str, Measure] = {}
    for control in CONTROLS:
        if control.figures and control.fits.keys() - FOR_VISIBILITY <= leaf.beside.keys():
            figures |= control.figures(context, leaf)
    return figures
