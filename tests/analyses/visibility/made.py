"""Answers made up by their counts."""

from deltasae_ray.analyses.visibility.count_figures import Counts
from deltasae_ray.analyses.visibility.figures import CellVisibility, TextFinding
from deltasae_ray.analyses.visibility.layer_figures import Sight
from deltasae_ray.metrics.measure import undefined
from deltasae_ray.metrics.visibility.answer import LatentVisibility, Visibility


def latents(not_visible: int, visible: int, partly: int = 0, unsure: int = 0) -> tuple[LatentVisibility, ...]:
    """So many of each label, those that are not visible first, all of one class."""
    labels = ["not visible"] * not_visible + ["partly"] * partly + ["visible"] * visible
    labels += ["cannot be judged"] * unsure
    return tuple(
        LatentVisibility(i, label, 0.001 * (i + 1), 0.01, "new" if label == "not visible" else None, 50)
        for i, label in enumerate(labels)
    )  # type: ignore[arg-type]


def cell(
    not_visible: int, visible: int, partly: int = 0, unsure: int = 0, **texts: tuple[int, int]
) -> CellVisibility:
    """An answer; `texts` are (not visible, visible) of each text."""
    held = latents(not_visible, visible, partly, unsure)
    share = Counts.of(held).not_visible_share()
    found = Visibility("INCONCLUSIVE", share, (0.4, 0.6), held, ("made up",))
    by_text = tuple(
        TextFinding(name, Counts(not_visible=a, visible=b), undefined("not measured"))
        for name, (a, b) in texts.items()
    )
    return CellVisibility(found, by_text)


def sight(not_visible: int, visible: int, *randoms: CellVisibility, **others: int) -> Sight:
    return Sight(cell(not_visible, visible, **others), randoms)
