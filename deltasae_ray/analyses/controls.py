"""The controls that fit dictionaries, one entry each: what is fitted, what a leaf reads it as, what it costs.

A control is an entry here and its figure in `analyses/divergence/figures.py`; plan, fits and leaves read
this table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from deltasae_ray.fit.points import FitPoint
from deltasae_ray.harvest.random_draws import RANDOM
from deltasae_ray.models.capture import BASE
from deltasae_ray.sae.identity import DictionaryId

REFERENCE_SEED, CONTROL_SEED = 1000, 1001
"""Apart from every seed of the grid: dictionaries of one seed start from the same rows, and would match for
that alone (decoders before training at a mean max-cosine of .79, where chance is .39)."""
SIBLING_SEEDS = (1004, 1005)
"""Of two more base dictionaries, so that there are three beside the reference: they share the base control's
documents, of which the reference saw none."""
SIBLINGS, RANDOMS = ("sibling_a", "sibling_b"), ("random_first", "random_second")
"""Roles that only visibility reads: they are in no key of other figures."""
HALF_SEEDS: dict[Literal["A", "B"], int] = {"A": 1002, "B": 1003}
"""Likewise of the dictionaries of two halves of the documents, which are matched with each other."""


@dataclass(frozen=True)
class Control:
    """Dictionaries that are fitted beside those of the grid, so that their figures can be read."""

    name: str
    """As in diverge.controls."""
    compares: tuple[str, ...]
    """The roles in which a leaf reads what is fitted: fields of `LeafInputs`, but for `base_control`, which
    belongs to the layer, the halves, which are one field, and what only visibility reads."""
    fits: Callable[[DictionaryId], tuple[FitPoint, ...]]
    """A dictionary of the grid, whatever its seed → what is fitted beside it, a point per role."""
    costs: Literal["per shape", "per dictionary"] = "per dictionary"
    """Whether all adapters share what is fitted."""

    def beside(self, one: DictionaryId) -> dict[str, FitPoint]:
        """Role → the point of the dictionary that stands beside `one` in it."""
        return dict(zip(self.compares, self.fits(one), strict=True))


def _base(one: DictionaryId, seed: int, documents: Literal["A", "B"]) -> FitPoint:
    # each shape has its own, so that a size which is added later moves no figure of the others
    return FitPoint(BASE, one.layer, *one.shape, seed=seed, documents=documents)


def _alike(one: DictionaryId, seed: int, **others: str) -> FitPoint:
    """The recipe of a dictionary of the grid on the same deltas."""
    return FitPoint(**vars(replace(one.identity, seed=seed)), **others)  # type: ignore[arg-type]


REFERENCE = Control("reference", ("reference",), lambda one: (_base(one, REFERENCE_SEED, "A"),), "per shape")
"""The toy that stands for a reference where none is given: no control that one chooses, but fitted as one."""
BASE_CONTROL = Control(
    "base",
    ("base_control", *SIBLINGS),
    lambda one: tuple(_base(one, seed, "B") for seed in (CONTROL_SEED, *SIBLING_SEEDS)),
    "per shape",
)
RANDOM_LORA = Control(
    "random_lora",
    RANDOMS,
    lambda one: tuple(FitPoint(RANDOM, one.layer, *one.shape, seed=seed) for seed in (0, 1)),
    "per shape",
)
"""Of the first random adapter; `of_random` has those of each."""
SECOND_SEED = Control("seeds", ("second",), lambda one: (_alike(one, 1),))
"""Fitted where the grid has one seed; where it has several, each is read beside the next."""
CONTROLS = (
    BASE_CONTROL,
    RANDOM_LORA,
    SECOND_SEED,
    Control("gaussian", ("gaussian",), lambda one: (_alike(one, 0, control="gaussian"),)),
    Control("frozen_decoder", ("frozen_decoder",), lambda one: (_alike(one, 0, control="frozen_decoder"),)),
    Control(
        "split_half",
        ("half_a", "half_b"),
        lambda one: tuple(_alike(one, seed, documents=half) for half, seed in HALF_SEEDS.items()),
    ),
)
"""In the order in which they are fitted."""


def of_random(name: str, one: DictionaryId) -> tuple[FitPoint, ...]:
    """What is fitted of the random adapter of a name, beside a dictionary of the grid."""
    return tuple(replace(point, adapter=name) for point in RANDOM_LORA.fits(one))
