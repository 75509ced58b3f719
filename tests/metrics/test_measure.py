"""A measure is finite or undefined, survives JSON, and is listed in the catalogue."""

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

import deltasae_ray
from deltasae_ray.metrics.catalogue import (
    METRICS,
    SECTIONS,
    FigureName,
    directions,
    metric,
    parse_name,
    split_variant,
)
from deltasae_ray.metrics.coding.variants import Variant
from deltasae_ray.metrics.documentation import metrics_page
from deltasae_ray.metrics.measure import Measure, undefined


@pytest.mark.parametrize(
    "bad",
    [
        {"value": float("nan")},
        {"value": 1.0, "null": float("inf")},
        {"value": 1.0, "ci": (0.0, float("nan"))},
    ],
)
def test_nan_and_infinity_are_no_measures(bad: dict) -> None:
    with pytest.raises(AssertionError, match="finite"):
        Measure(**bad)


def test_an_undefined_measure_says_why() -> None:
    with pytest.raises(AssertionError, match="why"):
        Measure(None)
    assert undefined("no energy").reason == "no energy"


def test_an_interval_ascends_and_p_is_a_probability() -> None:
    with pytest.raises(AssertionError):
        Measure(1.0, ci=(2.0, 1.0))
    with pytest.raises(AssertionError):
        Measure(1.0, p=1.5)
    with pytest.raises(AssertionError):
        Measure(1.0, kappa=0.5, kappa_ci=(0.6, 0.4))
    with pytest.raises(AssertionError, match="kappa that is undefined"):
        Measure(1.0, kappa_ci=(0.4, 0.6))


def test_a_measure_survives_json() -> None:
    for m in (
        Measure(0.5, 1.0, 0.1, (0.4, 0.6), 0.01, 0.5, 30, (0.4, 0.6), (("note", "why"),)),
        undefined("why"),
    ):
        assert msgspec.convert(json.loads(json.dumps(m.to_dict())), Measure) == m


def test_a_measure_prints_its_interval_or_its_reason() -> None:
    assert f"{Measure(0.551, ci=(0.42, 0.684)):.2f}" == "0.55 [0.42, 0.68]"
    assert f"{undefined('no energy'):.2f}" == "undefined (no energy)"


def test_reasons_add_up() -> None:
    assert Measure(1.0).because("ci", "a").because("note", "b").because("p", "").reason == "a; b"


def test_every_metric_says_what_it_is_held_against_or_only_describes() -> None:
    for m in METRICS.values():
        assert m.title and m.formula and m.unit
        assert m.null or m.tail is None, f"{m.name} has a p but no null"


def test_variants_and_curves_resolve_to_their_entry() -> None:
    assert metric("missing_share_no_top3_token_mean") is METRICS["missing_share"]
    assert metric("angle_pca_k16") is METRICS["angle_pca_k{k}"]
    assert metric("missing_share_no_top3_seeds") is METRICS["missing_share"]
    assert split_variant("fvu_delta_no_top3_token_mean")[1].startswith("without the three")
    with pytest.raises(KeyError):
        metric("no_such_metric")


def test_the_documentation_is_what_the_catalogue_says() -> None:
    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert written == metrics_page(), "run `make docs`"


def test_the_documentation_has_a_row_of_whole_cells_per_metric() -> None:
    rows = [line for line in metrics_page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(METRICS) == sum(map(len, SECTIONS.values())), "a name stands twice"
    assert all(row.replace("\\|", "").count("|") == 10 for row in rows)


def test_names_are_their_parts_again_and_no_metric_ends_like_a_variant() -> None:
    for plain in METRICS:
        for variant in get_args(Variant):
            for over_seeds in (False, True):
                parts = FigureName(plain.replace("{k}", "16"), variant, over_seeds)
                assert parse_name(parts.name) == parts
    assert parse_name("missing_share_no_top3_token_mean_seeds") == (
        "missing_share",
        "no_top3_token_mean",
        True,
    )
    assert [directions(name) for name in ("angle_pca_k16", "missing_share", "angle_pca_k{k}")] == [
        16,
        None,
        None,
    ]


def test_names_are_taken_apart_in_one_place_only() -> None:
    endings = (
        "_seeds",
        *(f"_{variant}" for variant in get_args(Variant) if variant),
        "SEEDS",
        "BETWEEN",
        "_adapters",
    )
    ways = re.compile(rf"""(endswith|removesuffix|split|rsplit|partition)\(\(?["']?({"|".join(endings)})\b""")
    found = [
        p.name
        for p in Path(deltasae_ray.__file__).parent.rglob("*.*")
        if p.suffix in (".py", ".j2") and ways.search(p.read_text())
    ]
    assert found == ["__init__.py"], "the catalogue's parse_name"
