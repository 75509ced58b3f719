"""What an entry of the catalogue says, and the phrases that many share."""

from dataclasses import dataclass

from deltasae_ray.metrics.statistics import Tail

OWN = "this project"
PAPER = "arXiv 2605.28896"
HEAP = "Heap et al. 2025"

FLIPS = "the same deltas with random signs in the eigenbasis of their covariance (5 draws or more)"
MATCHED = "as many rows drawn from N(0, Σ_δ), 5 dictionaries or more"
CARRIED = MATCHED + ", weighted by what each carries of δ when coded with them"
SAME_BUDGET = (
    "δ̂ = μ + OMP_k(δ - μ) by atoms from N(0, Σ_δ), of the same number and k as δ̂ here; ideally coded, which"
    " an encoder is not"
)
SECOND_SEED = "a second seed of the delta dictionary"
TWINS = "two training seeds of one rank (adapt.seeds=2)"
ALIKE = "the base control (by the grid's recipe), measured alike"

CEILING_NEEDS = {
    SECOND_SEED: "it takes a second seed of the dictionary (diverge.controls=seeds or fit.seeds=2)",
    TWINS: (
        "it takes two trainings of one rank (adapt.seeds=2), or two seeds of the dictionaries (fit.seeds=2)"
    ),
    ALIKE: "it takes the base control (diverge.controls=base)",
}
"""How the text of a ceiling begins → what a study must have for it."""

# Why a figure never has a null, a ceiling, a κ or a p.
DESCRIBES = "it describes, and there is nothing it should be near"
CONTROL = "it is a control, which others are held against"
A_CEILING = "it is itself how alike things are that should agree"
UNBOUNDED = "nothing says how good it could be at best"
DIFFERENCE = "a difference has no best value"
AS_IT_WAS = "the published protocol has none"
BOUND = "the ceiling is a bound, not two measurements that should agree"
BESIDE = "null and ceiling are other figures beside it, and M is the place between such"
A_PLACE = "it is itself a place between null and ceiling"
OF_THE_MEAN = (
    "that of the mean cosine answers the same question, and a count's or median's jackknife is of no use"
)
ISOTROPIC = "activations are anisotropic, and no place is measured from an isotropic null"
ONE_NULL = "what it is held against is one training, and how others differ is not known"
NO_DRAWS = "principal directions are no draws from N(0, Σ_δ), so that this null is a bar and no hypothesis"


@dataclass(frozen=True)
class Metric:
    """What a reader must know of a figure before believing it."""

    name: str
    """Name in the tables; `{k}` stands for a number of directions or atoms, `{name}` for a monitor."""
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
    no_null: str = ""
    """Why it has no null."""
    no_ceiling: str = ""
    """Why it has no ceiling, and so no κ."""
    no_kappa: str = ""
    """Why it has no κ though it has a null and a ceiling."""
    no_p: str = ""
    """Why it has no p though it has a tail."""
