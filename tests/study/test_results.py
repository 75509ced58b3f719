"""What the report is given of the fits."""

from dataclasses import replace

from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.study.results import learning_curves

ONE = FittedDictionary(
    FitPoint("r4", 1, 32, 4, "topk", 0),
    "dictionaries/a",
    "a",
    {},
    ((10, 0.5), (20, 0.4)),
    ((10, 3.0), (20, 1.0)),
    640,
)


def test_every_dictionary_has_a_curve_of_fvu_and_one_of_dead_latents() -> None:
    fvu, dead = learning_curves([ONE])
    assert (fvu.figure, [(p.x, p.y) for p in fvu.points]) == ("learning", [(10, 0.5), (20, 0.4)])
    assert (dead.figure, [(p.x, p.y) for p in dead.points]) == ("dead_latents", [(10, 3.0), (20, 1.0)])
    assert not learning_curves([replace(ONE, curve=(), dead=())])


def test_a_curve_is_labelled_by_what_differs_between_the_dictionaries() -> None:
    points = [
        replace(ONE.point, d_sae=48),
        replace(ONE.point, k=8),
        replace(ONE.point, architecture="batchtopk"),
        replace(ONE.point, seed=1),
    ]

    def labels(*others: FitPoint) -> list[str]:
        return [
            c.label
            for c in learning_curves([ONE, *(replace(ONE, point=p) for p in others)])
            if c.figure == "learning"
        ]

    assert labels() == ["d_sae 32"]
    assert labels(points[0]) == ["d_sae 32", "d_sae 48"]
    assert labels(points[1]) == ["d_sae 32, k 4", "d_sae 32, k 8"]
    assert labels(points[2]) == ["d_sae 32, topk", "d_sae 32, batchtopk"]
    assert (
        labels(points[3]) == ["d_sae 32", "d_sae 32"]
        and learning_curves([replace(ONE, point=points[3])])[0].seed == 1
    )
