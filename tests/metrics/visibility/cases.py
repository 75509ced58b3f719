"""What must hold of the decision over many seeds: planted worlds, and what is asked of all outcomes of one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F

from deltasae_ray.metrics.visibility.answer import Visibility
from tests.metrics.visibility.worlds import (
    Fitted,
    Planted,
    absorbed,
    changed,
    featureless,
    mixture,
    module,
    scaled,
    units,
)


@dataclass(frozen=True)
class Outcome:
    """What one seed of one case gave."""

    label: str
    f: float | None
    features: tuple[float, float]
    covered: bool
    """The interval of features holds the share that the reference holds."""
    named: int
    judged: int
    novel: bool
    """A named latent leans to the last feature of the world (|cos| above .5)."""
    right: int
    """Scaling classes that are right, of the `asked` features that some judged latent is near to."""
    asked: int

    @classmethod
    def of(cls, world: Planted, found: Visibility, made: Fitted) -> "Outcome":
        judged = [x for x in found.latents if x.label != "cannot be judged"]
        names = F.normalize(made.dictionary.W_dec[[x.index for x in found.named]], dim=1)
        novel = len(names) > 0 and len(world.atoms) > 0 and float((names @ world.atoms[-1]).abs().max()) > 0.5
        right = asked = 0
        if judged and world.kinds:
            best = (world.atoms @ F.normalize(made.dictionary.W_dec[[x.index for x in judged]], dim=1).T).max(
                1
            )
            for kind, cosine, at in zip(
                world.kinds, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                asked += cosine > 0.7 and kind is not None
                right += cosine > 0.7 and kind is not None and judged[at].scaling == kind
        covered = len(world.held) > 0 and found.features[0] <= world.share <= found.features[1]
        return cls(
            found.label,
            found.share.value,
            found.features,
            covered,
            len(found.named),
            len(judged),
            novel,
            int(right),
            int(asked),
        )


SMALL = {"d": 96, "fit": 5000, "rows": 7500}
"""Within the worlds' ranges, at a third of the defaults' cost."""
Holds = Callable[[Sequence[Outcome]], bool]


def rate(found: Sequence[Outcome], of: Callable[[Outcome], bool]) -> float:
    return sum(of(x) for x in found) / len(found)


def labels(found: Sequence[Outcome]) -> Counter:
    return Counter(x.label for x in found)


POWERFUL = 24
"""Judged latents from which power is clear: with fewer, none of which is missing, no label fits."""


def covered(found: Sequence[Outcome], *never: str) -> bool:
    """The share of features in nine of ten seeds, some label in nine of ten of those with clear power, and
    never a wrong one."""
    counts, clear = labels(found), labels([x for x in found if x.judged >= POWERFUL])
    answered = clear["INCONCLUSIVE"] <= 0.1 * clear.total()
    return rate(found, lambda x: x.covered) >= 0.9 and answered and not any(counts[x] for x in never)


def named_at_most(found: Sequence[Outcome], share: float) -> bool:
    return sum(x.named for x in found) <= share * max(1, sum(x.judged for x in found))


def answered(found: Sequence[Outcome], right: str) -> bool:
    """An answer in four of five seeds, and never another."""
    counts = labels(found)
    return counts["INCONCLUSIVE"] <= 0.2 * len(found) and set(counts) <= {"INCONCLUSIVE", right}


@dataclass(frozen=True)
class Case:
    """One world, and what must hold of all its seeds."""

    name: str
    world: Callable[[int], Planted]
    asked: str
    """What must hold, in words."""
    holds: Holds = field(repr=False)
    made: tuple[str, ...] = ("known", "fitted")
    steps: int = 250
    """Of fitted dictionaries; under a dense part a short training leaves too few latents that repeat."""


def padded(seed: int, *, by: int, **how: object) -> Planted:
    """The same deltas against a reference with featureless atoms besides."""
    world = mixture(seed, **how)
    more = units(by, world.reference.shape[1], torch.Generator().manual_seed(900_000 + seed))
    return replace(world, reference=torch.cat([world.reference, more]))


def in_texts(seed: int, **how: object) -> Planted:
    """Real features, with documents dealt to three corpora."""
    world = mixture(seed, **how)
    return replace(world, corpora=(world.doc_ids % 3).astype(str))


def _mixtures() -> list[Case]:
    wrong = {
        0.0: ("VISIBLE", "PARTLY VISIBLE"),
        0.25: ("VISIBLE",),
        0.5: ("VISIBLE", "NOT VISIBLE"),
        0.75: ("VISIBLE", "NOT VISIBLE"),
        1.0: ("NOT VISIBLE", "PARTLY VISIBLE"),
    }
    cases = []
    for dense in (0.0, 0.4, 0.6):
        for share, never in wrong.items():
            told = f"features covered >= .9, INCONCLUSIVE <= .1, never {' or '.join(never)}"
            make = partial(mixture, share=share, dense=dense, active=4, **SMALL)
            cases.append(
                Case(
                    f"mixture dense {dense:g} share {share:g}",
                    make,
                    told,
                    lambda x, never=never: covered(x, *never),
                    steps=500 if dense else 250,
                )
            )
    return cases


def _modules() -> list[Case]:
    cases = []
    for rank in (1, 2, 4, 8, 16):
        for share, right in ((1.0, "VISIBLE"), (0.5, "PARTLY VISIBLE"), (0.0, "NOT VISIBLE")):
            if rank > 1 or share != 0.5:
                make = partial(module, rank=rank, share=share, **SMALL)
                told = f"an answer >= .8, always {right}"
                cases.append(
                    Case(
                        f"module rank {rank} share {share:g}",
                        make,
                        told,
                        lambda x, right=right: answered(x, right),
                    )
                )
    return cases


def _dominant() -> list[Case]:
    cases = []
    for energy in (0.5, 0.6, 0.8):
        make = partial(mixture, dense=energy, dense_rank=1, active=4, **SMALL)
        name = f"dominant direction {energy:g}"
        cases.append(
            Case(
                f"{name} share 1",
                partial(make, share=1.0),
                "f <= .05 in every seed",
                lambda x: all(y.f is not None and y.f <= 0.05 for y in x),
                steps=500,
            )
        )
        cases.append(
            Case(
                f"{name} share 0",
                partial(make, share=0.0),
                "f >= .95 in every seed",
                lambda x: all(y.f is not None and y.f >= 0.95 for y in x),
                steps=500,
            )
        )
    return cases


def _changes() -> list[Case]:
    cases = [
        Case(
            f"novel on {novel:g} of rows",
            partial(changed, novel_rate=novel),
            "named in >= .9, others named <= .05",
            lambda x: rate(x, lambda y: y.novel) >= 0.9 and named_at_most(x, 0.05),
        )
        for novel in (0.0025, 0.0056, 0.018)
    ]
    for tied in (True, False):
        cases.append(
            Case(
                f"base features alone, tied {tied}",
                partial(changed, novel_rate=0, tied=tied),
                "named <= .05, VISIBLE >= .9",
                lambda x: named_at_most(x, 0.05) and labels(x)["VISIBLE"] >= 0.9 * len(x),
            )
        )
    cases.append(
        Case(
            "scaling classes",
            scaled,
            "right >= .95",
            lambda x: sum(y.right for y in x) >= 0.95 * max(1, sum(y.asked for y in x)),
        )
    )
    return cases


def _never() -> list[Case]:
    weak = Case(
        "16 active, half the truth",
        partial(mixture, share=0.5, active=16),
        "never VISIBLE",
        lambda x: not labels(x)["VISIBLE"],
    )
    absorption = [
        Case(
            f"absorption, parents held {held}",
            partial(absorbed, parents_held=held, **SMALL),
            "never NOT VISIBLE",
            lambda x: not labels(x)["NOT VISIBLE"],
        )
        for held in (True, False)
    ]
    dense = Case(
        "dense .8, all features",
        partial(mixture, share=1.0, dense=0.8, active=4, **SMALL),
        "f <= .1 or INCONCLUSIVE",
        lambda x: all(y.label == "INCONCLUSIVE" or (y.f or 0) <= 0.1 for y in x),
        steps=500,
    )
    gaussian = Case(
        "featureless corpora",
        featureless,
        "always INCONCLUSIVE",
        lambda x: set(labels(x)) == {"INCONCLUSIVE"},
    )
    return [weak, *absorption, dense, gaussian]


HALF = {"share": 0.5, "dense": 0.0, "active": 4, **SMALL}
CASES = (
    *_never(),
    *_changes(),
    *_mixtures(),
    *_modules(),
    *_dominant(),
    Case(
        "padded by 192 atoms",
        partial(padded, by=192, **HALF),
        "features covered >= .9",
        lambda x: covered(x, "VISIBLE", "NOT VISIBLE"),
    ),
    Case(
        "dealt to three corpora",
        partial(in_texts, **HALF),
        "features covered >= .9",
        lambda x: covered(x, "VISIBLE", "NOT VISIBLE"),
    ),
)
BESIDE = {
    "padded by 192 atoms": ("mixture dense 0 share 0.5", 0.05),
    "dealt to three corpora": ("mixture dense 0 share 0.5", 0.02),
}
"""Case, the case of the same deltas that it is held against, and how far f may move in any seed."""
