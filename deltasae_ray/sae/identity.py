"""The identity of a dictionary: the adapter and layer whose rows it is of, its shape, and its seed."""

from dataclasses import dataclass
from typing import NamedTuple

from deltasae_ray.sae.names import Architecture

BASE = "base"
"""Name and digest of the source that holds the base model's own activations; every other source holds
deltas."""
RANDOM = "random"
"""Name of the source that holds the deltas of the first random adapter (harvest/random_draws.py)."""


class Shape(NamedTuple):
    """What decides the size and the kind of a dictionary."""

    d_sae: int
    k: int
    architecture: Architecture


class Place(NamedTuple):
    """Where the rows of a dictionary come from."""

    adapter: str
    """Name of the source: "base", an adapter, or the random control."""
    layer: int


@dataclass(frozen=True, order=True)
class Trial:
    """One adapter and one shape of dictionary, over all layers and seeds."""

    adapter: str
    d_sae: int
    k: int
    architecture: Architecture

    @property
    def name(self) -> str:
        return f"{self.adapter}-d{self.d_sae}-k{self.k}-{self.architecture}"

    @property
    def shape(self) -> Shape:
        return Shape(self.d_sae, self.k, self.architecture)


@dataclass(frozen=True, order=True)
class DictionaryId:
    """One dictionary of a study; whatever is said or made of one dictionary begins with these fields."""

    adapter: str
    """Name of the source: "base", an adapter, or the random control."""
    layer: int
    d_sae: int
    k: int
    architecture: Architecture
    seed: int
    """Of the training."""

    @property
    def identity(self) -> "DictionaryId":
        """The identity alone, for a value that holds more beside it."""
        return DictionaryId(self.adapter, self.layer, self.d_sae, self.k, self.architecture, self.seed)

    @property
    def shape(self) -> Shape:
        """Size and kind, which dictionaries of other adapters and layers may share."""
        return Shape(self.d_sae, self.k, self.architecture)

    @property
    def trial(self) -> Trial:
        """The point of the grid that the dictionary belongs to."""
        return Trial(self.adapter, self.d_sae, self.k, self.architecture)

    @property
    def place(self) -> Place:
        """The source and layer whose rows the dictionary is of."""
        return Place(self.adapter, self.layer)

    @property
    def cell(self) -> tuple[Place, Shape]:
        """What dictionaries agree in that differ in nothing but their seed."""
        return self.place, self.shape

    def __str__(self) -> str:
        size = f"d_sae {self.d_sae} k {self.k} {self.architecture}"
        return f"{self.adapter} layer {self.layer} {size} seed {self.seed}"
