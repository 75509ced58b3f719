"""The figures of arXiv 2605.28896 (Gemma 2 9B), and which metrics stand in the place of each."""

from dataclasses import dataclass

LAYERS = (5, 10, 18, 22, 32, 38)
"""Where the paper looked, of 42 blocks."""
RANKS: tuple[int, ...] = (4, 8, 16, 32)
"""Ranks of its adapters."""


@dataclass(frozen=True)
class Published:
    """One figure of the paper, and what we measure in its place."""

    title: str
    values: tuple[str, ...]
    """One for all layers, or one for each of LAYERS (`by_rank`: of RANKS)."""
    as_published: tuple[str, ...] = ()
    """Metrics that follow the paper's definition; the first that was measured is shown."""
    calibrated: tuple[str, ...] = ()
    """Metrics that answer the same question with a null that means something; likewise."""
    untrained: str = ""
    """Metric of the same figure before training, told beside the null."""
    by_rank: bool = False
    """At the deepest layer, a line per rank, as the paper gives it."""
    shown_where_absent: bool = True
    """Whether there is a line of it where it was not measured."""
    of_dictionary: bool = True
    """Whether a dictionary enters it."""


_NARROW = (128, 64, 32, 16, 8, 4, 2, 1)
"""Where a model is too narrow for 256 directions, the most that it is wide enough for."""


def _angle(k: int, value: str, *others: int) -> Published:
    published, calibrated = (
        tuple(f"{name}_k{size}" for size in (k, *others)) for name in ("paper_angle", "angle_decoder")
    )
    return Published(
        f"mean principal angle, k = {k}, degrees",
        (value,),
        published,
        calibrated,
        shown_where_absent=bool(others),
    )


PUBLISHED = (
    Published(
        "mean max-cosine",
        ("0.071",),
        ("paper_max_cosine",),
        ("max_cosine",),
        untrained="paper_max_cosine_untrained",
    ),
    Published("median max-cosine", ("0.066",), ("paper_median_cosine",)),
    _angle(64, "72.4 to 75.0, ± 2"),
    _angle(128, "72.4 to 75.0, ± 2"),
    _angle(256, "72.4 to 75.0", *_NARROW),
    _angle(512, "72.4 to 75.0, ± 2"),
    Published(
        "relative error of the reference",
        ("2.46", "1.57", "1.28", "1.18", "1.26", "1.14"),
        ("paper_relative_error",),
        ("missing_share",),
    ),
    Published(
        "relative error of the delta dictionary",
        ("0.34", "0.44", "0.39", "0.39", "0.57", "0.61"),
        ("paper_relative_error_delta",),
        ("fvu_delta",),
    ),
    Published("novel latents", ("72 to 80 %",), ("paper_novel_share",), ("novel_share",)),
    Published("density at the deepest layer", ("30.3", "33.7", "35.0", "41.7"), ("density",), by_rank=True),
    Published(
        "delta norm at the deepest layer",
        ("below 345", "345, the largest", "below 345", "below 345"),
        ("delta_norm",),
        ("delta_relative_energy",),
        by_rank=True,
        of_dictionary=False,
    ),
)
