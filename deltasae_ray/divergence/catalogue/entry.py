"""What an entry of the catalogue says, and the phrases that many share."""

from dataclasses import dataclass

from deltasae_ray.divergence.statistics import Tail

OWN = "this project"
PAPER = "arXiv 2605.28896"
HEAP = "Heap et al. 2025"

FLIPS = "the same deltas with random signs in the eigenbasis of their covariance (5 draws or more)"
MATCHED = "as many rows drawn from N(0, Σ_δ), 5 dictionaries or more"
SAME_BUDGET = "δ̂ = μ + OMP_k(δ - μ) by atoms from N(0, Σ_δ), of the same number and k as δ̂ here; ideally coded, which an encoder is not"
SECOND_SEED = "a second seed of the delta dictionary"
TWINS = "two training seeds of one rank (adapt.seeds=2)"
ALIKE = "the base control (by the grid's recipe), measured alike"


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a figure before believing it."""

    name: str
    """As in the tables; `{k}` stands for a number of directions or atoms."""
    title: str
    formula: str
    null: str = ""
    """How the null is made; empty where the figure only describes."""
    ceiling: str = ""
    """How the ceiling is made; empty where there is none."""
    source: str = OWN
    """Who proposed it; empty where everybody knows it."""
    tail: Tail | None = None
    """Which values speak against the null; None where the figure has no p."""
    unit: str = "share"
