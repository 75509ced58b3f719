"""Everything that is said of one leaf: complete, finite, scale-free, and undefined where there is nothing to
say."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.divergence.figures import compare, compare_layer
from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.absent_parts import UNKNOWN, lacking
from deltasae_ray.metrics.catalogue import (
    AUDITED,
    BETWEEN,
    CLAIMED,
    METRICS,
    PATCHED,
    SEEN,
    WATCHED,
    metric,
    split_variant,
)
from deltasae_ray.metrics.inputs import LayerInputs, LeafInputs, Settings
from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.moments import Moments, matched_rows
from tests.metrics.worlds import (
    ACTIVE,
    EVAL_TOKENS,
    FIT_TOKENS,
    TOKENS_PER_DOCUMENT,
    dictionary_of,
    half,
    inputs_of,
    units,
)

SETTINGS = Settings(k=4, code_tokens=512, bootstrap=200)


@pytest.fixture(scope="module")
def inputs() -> LayerInputs:
    g = torch.Generator().manual_seed(0)
    world = half(g)
    made = inputs_of(world, g)
    base = torch.from_numpy(made.base_fit)
    control = dictionary_of(torch.nn.functional.normalize(world.reference + 0.02, dim=1), base)
    return replace(made, base_control=control)


@pytest.fixture(scope="module")
def leaf(inputs: LayerInputs) -> LeafInputs:
    rows, g = torch.from_numpy(inputs.delta_fit), torch.Generator().manual_seed(0)
    atoms = units(64, g)  # the first 64 units of this seed are the world's atoms
    near = torch.nn.functional.normalize(atoms + 0.02 * units(64, g), dim=1)
    nearby = torch.nn.functional.normalize(atoms + 0.02 * units(64, g), dim=1)
    halves = dictionary_of(atoms, rows[::2]), dictionary_of(nearby, rows[1::2])
    frozen = dictionary_of(units(64, g), rows)
    gaussian = dictionary_of(matched_rows(Moments.of(rows).spectrum, 64, g), rows)
    beside = {
        "second": dictionary_of(near, rows),
        "half_a": halves[0],
        "half_b": halves[1],
        "gaussian": gaussian,
        "frozen_decoder": frozen,
    }
    return LeafInputs(dictionary_of(atoms, rows), beside, units(64, g))


@pytest.fixture(scope="module")
def measures(inputs: LayerInputs, leaf: LeafInputs) -> dict[str, Measure]:
    return compare(inputs, leaf, SETTINGS)


def test_every_catalogued_metric_is_measured_and_every_measure_is_catalogued(
    measures: dict[str, Measure],
) -> None:
    found = {metric(name).name for name in measures}
    elsewhere = {
        m for m in METRICS if m.endswith(BETWEEN) or m.startswith((*PATCHED, AUDITED, WATCHED, CLAIMED))
    }  # between adapters; in the model; of single latents; of monitors
    elsewhere |= {"density", *SEEN}  # where the architecture leaves it free; of the decision on latents
    assert found == set(METRICS) - elsewhere


def test_what_the_catalogue_promises_is_there(measures: dict[str, Measure]) -> None:
    for name, m in measures.items():
        entry = metric(name)
        if m.value is None:
            continue
        assert m.null is not None or not entry.null, name
        assert (
            m.p is not None
            or entry.tail is None
            or entry.no_p
            or name.startswith(("missing_share_base", "max_cosine_base"))
        ), name


def test_what_a_figure_lacks_of_null_ceiling_kappa_and_p_is_said_with_its_reason(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict[str, Measure]
) -> None:
    """Of a table with all controls, and of one with none."""
    bare = compare(replace(inputs, base_control=None), LeafInputs(leaf.dictionary), SETTINGS)
    for table in (measures, bare):
        for name, m in table.items():
            told = dict(part.split(": ", 1) for part in lacking(name, m).split("; ") if part)
            missing = {part for part in ("null", "ceiling", "kappa", "p") if getattr(m, part) is None}
            assert set(told) == (missing if m.value is not None else set()), name
            assert all(why and why != UNKNOWN for why in told.values()), (name, told)
    assert "second seed" in lacking("missing_share", bare["missing_share"])
    assert lacking("max_cosine", measures["max_cosine"]) == ""


def test_every_figure_has_an_interval_or_says_why_it_has_none(measures: dict[str, Measure]) -> None:
    """κ as well. What has none is a fact of one dictionary, not an estimate."""
    for name, m in measures.items():
        assert m.value is None or m.ci is not None or "interval undefined" in m.reason, name
        assert m.kappa is None or m.kappa_ci is not None or "interval undefined" in m.reason, name
        assert m.kappa_ci is None or m.kappa is not None and m.kappa_ci[0] <= m.kappa <= m.kappa_ci[1], name
        assert m.ci is None or m.value is not None and m.ci[0] <= m.value <= m.ci[1], name
    bare = {metric(name).name for name, m in measures.items() if m.value is not None and m.ci is None}
    assert bare == {"alive_share", "firings_per_latent", "angle_decoder_k{k}", "paper_angle_k{k}"}
    assert {metric(name).name for name, m in measures.items() if m.kappa_ci} >= {
        "missing_share",
        "max_cosine_weighted",
        "angle_pca_k{k}",
    }


def test_with_few_documents_nothing_has_an_interval_over_them_and_all_say_so(
    inputs: LayerInputs, leaf: LeafInputs
) -> None:
    fit, few = slice(0, 20 * TOKENS_PER_DOCUMENT), slice(0, 20 * TOKENS_PER_DOCUMENT)
    small = replace(
        inputs,
        delta_fit=inputs.delta_fit[fit],
        base_fit=inputs.base_fit[fit],
        fit_docs=inputs.fit_docs[fit],
        delta_eval=inputs.delta_eval[few],
        base_eval=inputs.base_eval[few],
        eval_docs=inputs.eval_docs[few],
    )
    found = compare(small, leaf, SETTINGS)
    for name, m in found.items():
        assert m.value is None or m.ci is not None or "interval undefined" in m.reason, name
    over_latents = ("max_", "novel_share", "repeat_share", "paper_max_cosine", "paper_median", "paper_novel")
    assert all(name.startswith(over_latents) for name, m in found.items() if m.ci is not None)


def test_the_places_of_the_figures_are_sure_of_themselves_as_far_as_latents_and_documents_go(
    measures: dict[str, Measure],
) -> None:
    """Half of the atoms are the reference's: κ of matching is the share of those, .5, but for what chance
    reaches by itself."""
    place = measures["max_cosine"]
    assert (
        place.kappa is not None and place.kappa_ci is not None and place.kappa_ci[0] < 0.5 < place.kappa_ci[1]
    )
    assert place.kappa_ci[1] - place.kappa_ci[0] < 0.4
    missing = measures["missing_share"]
    assert missing.kappa is not None and missing.value is not None and missing.ceiling is not None
    assert missing.kappa == pytest.approx((missing.value - 1) / (missing.ceiling - 1))


def test_novel_latents_are_judged_against_dictionaries(measures: dict[str, Measure]) -> None:
    assert measures["novel_share"].p is not None and measures["novel_share"].p < 0.01


def test_the_figures_are_those_of_the_planted_world(measures: dict[str, Measure]) -> None:
    assert measures["missing_share"].value == pytest.approx(0.68, abs=0.08)
    assert measures["missing_share_base_control"].value == pytest.approx(
        measures["missing_share"].value, abs=0.1
    )
    over = measures["missing_share_over_base"]
    assert over.value == pytest.approx(
        measures["missing_share"].value - measures["missing_share_base_control"].value
    )
    assert (
        over.ci is not None
        and over.ci[0] <= 0.05
        and over.ci[1] - over.ci[0] < measures["missing_share"].ci[1]
    ), "paired"
    assert (
        measures["missing_share_base_control_no_top3"].value is not None
        and measures["missing_share_over_base_token_mean"].ci
    )
    assert measures["gain_over_pca"].ci[0] > 0.3
    assert measures["repeat_share"].value == 1
    assert measures["missing_share_halves"].value == pytest.approx(0, abs=0.05)
    assert measures["novel_share"].value == pytest.approx(0.5, abs=0.05)
    assert measures["max_cosine"].kappa is not None and 0.3 < measures["max_cosine"].kappa < 0.7
    assert measures["max_cosine_base_control"].value > 0.9
    assert (
        measures["fvu_delta"].value
        < measures["fvu_reference"].value
        < measures["fvu_random_atoms"].value + 0.05
    )


def test_several_dictionaries_share_a_layer_and_agree_with_one_at_a_time(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict
) -> None:
    alone = LeafInputs(leaf.dictionary)
    together = compare_layer(inputs, [alone, leaf], SETTINGS)
    assert together[1] == measures
    assert "repeat_share" not in together[0]
    assert together[0]["missing_share"].value == measures["missing_share"].value


def test_the_same_input_gives_the_same_figures_and_another_seed_does_not(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict
) -> None:
    assert compare(inputs, leaf, SETTINGS) == measures
    assert (
        compare(inputs, leaf, replace(SETTINGS, seed=1))["missing_share"].ci != measures["missing_share"].ci
    )


def test_rescaling_deltas_leaves_scale_free_metrics_alone(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict[str, Measure]
) -> None:
    """The monitor's view and what is measured against base activations do change: the adapter is ten times as
    strong."""
    loud = replace(inputs, delta_fit=10 * inputs.delta_fit, delta_eval=10 * inputs.delta_eval)
    rows = torch.from_numpy(loud.delta_fit)
    part = {"half_a": rows[::2], "half_b": rows[1::2]}
    beside = {role: dictionary_of(d.W_dec, part.get(role, rows)) for role, d in leaf.beside.items()}
    scaled = LeafInputs(dictionary_of(leaf.dictionary.W_dec, rows), beside, leaf.untrained)
    found = compare(loud, scaled, SETTINGS)
    changes = (
        "monitor_",
        "reference_fvu",
        "paper_relative_error",
        "delta_relative",
        "delta_norm",
        "cka_adapted",
    )
    for name, m in measures.items():
        if not name.startswith(changes) and m.value is not None:
            assert found[name].value == pytest.approx(m.value, rel=2e-2, abs=2e-3), name
    assert found["delta_norm"].value == pytest.approx(10 * measures["delta_norm"].value, rel=1e-4)
    assert found["delta_relative_energy"].value == pytest.approx(
        100 * measures["delta_relative_energy"].value, rel=1e-4
    )


def test_a_fixed_l1_dictionary_fires_more_on_louder_deltas(inputs: LayerInputs, leaf: LeafInputs) -> None:
    """Density in the published protocol is a fact about scale."""
    sparse = replace(leaf.dictionary, architecture="standard", k=0, b_enc=torch.full((64,), -0.6))
    density = [
        compare(replace(inputs, delta_eval=s * inputs.delta_eval), LeafInputs(sparse), SETTINGS)[
            "density"
        ].value
        for s in (1.0, 10.0)
    ]
    assert density[0] is not None and density[1] is not None
    assert density[1] > 1.5 * density[0]


@pytest.mark.parametrize("kind", ["zero", "constant"])
def test_an_adapter_that_changes_nothing_has_undefined_ratios_and_no_nan(
    kind: str, inputs: LayerInputs, leaf: LeafInputs
) -> None:
    fill = 0.0 if kind == "zero" else 1.0
    silent = replace(
        inputs,
        delta_fit=np.full_like(inputs.delta_fit, fill),
        delta_eval=np.full_like(inputs.delta_eval, fill),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = compare(silent, leaf, SETTINGS)  # a NaN would be an assertion error
    for name in ("missing_share", "missing_share_no_top3", "fvu_delta", "fvu_reference", "monitor_r2"):
        assert found[name].value is None and found[name].reason, name
    if kind == "zero":
        sizes = ("delta_relative_energy", "delta_norm")
        assert all(found[name].value == 0 for name in sizes)
        assert all(m.value is None for name, m in found.items() if name not in sizes)
    else:
        assert found["mean_share"].value == pytest.approx(1)


def test_few_documents_leave_figures_without_intervals(inputs: LayerInputs, leaf: LeafInputs) -> None:
    few = replace(
        inputs,
        delta_eval=inputs.delta_eval[:800],
        base_eval=inputs.base_eval[:800],
        eval_docs=inputs.eval_docs[:800],
    )
    found = compare(few, leaf, SETTINGS)
    m = found["missing_share"]
    assert m.value is not None and m.ci is None and "20 evaluation documents" in m.reason


def test_a_dictionary_of_too_few_training_tokens_is_not_believed(
    inputs: LayerInputs, leaf: LeafInputs
) -> None:
    barely = replace(leaf.dictionary, meta={"rows": 300})
    m = compare(inputs, replace(leaf, dictionary=barely), SETTINGS)["missing_share"]
    assert m.value is None and "firings per latent (300 training tokens)" in m.reason


def test_a_dictionary_of_a_stream_counts_the_tokens_of_all_windows_and_not_of_the_one_that_stayed(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict[str, Measure]
) -> None:
    first = slice(0, 300)
    window = replace(
        inputs,
        delta_fit=inputs.delta_fit[first],
        base_fit=inputs.base_fit[first],
        fit_docs=inputs.fit_docs[first],
    )
    streamed = replace(leaf, dictionary=replace(leaf.dictionary, meta={"rows": len(inputs.delta_fit)}))
    found = compare(window, streamed, SETTINGS)
    assert found["firings_per_latent"] == measures["firings_per_latent"] and found[
        "firings_per_latent"
    ].n == len(inputs.delta_fit)
    assert "firings per latent" not in found["missing_share"].reason
    unknown = compare(window, replace(leaf, dictionary=replace(leaf.dictionary, meta={})), SETTINGS)[
        "firings_per_latent"
    ]
    assert unknown.n == 300, "a dictionary from elsewhere has no account"


def test_dead_latents_are_in_no_geometry_but_the_published_one(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict[str, Measure]
) -> None:
    d = leaf.dictionary
    dead = torch.nn.functional.normalize(
        torch.randn(64, 64, generator=torch.Generator().manual_seed(9)), dim=1
    )
    pad = replace(
        d,
        W_enc=torch.cat([d.W_enc, dead.T], 1),
        W_dec=torch.cat([d.W_dec, dead]),
        b_enc=torch.cat([d.b_enc, torch.full((64,), -1e6)]),
        firing=torch.cat([d.firing, torch.zeros(64)]),
        energy=torch.cat([d.energy, torch.zeros(64)]),
    )
    found = compare(inputs, replace(leaf, dictionary=pad), SETTINGS)
    for name in ("max_cosine", "novel_share", "missing_share", "fvu_delta", "angle_decoder_k4"):
        assert found[name].value == pytest.approx(measures[name].value, abs=1e-4), name
    assert found["alive_share"].value == 0.5
    assert found["paper_max_cosine"].value < measures["paper_max_cosine"].value - 0.05


def test_three_loud_coordinates_do_not_decide_where_they_are_left_out(
    inputs: LayerInputs, leaf: LeafInputs, measures: dict
) -> None:
    g = torch.Generator().manual_seed(3)
    noise = (torch.randn(FIT_TOKENS + EVAL_TOKENS, 3, generator=g) * torch.tensor([20.0, 8, 3])).numpy()
    loud = {"delta_fit": inputs.delta_fit.copy(), "delta_eval": inputs.delta_eval.copy()}
    loud["delta_fit"][:, :3] += noise[:FIT_TOKENS]
    loud["delta_eval"][:, :3] += noise[FIT_TOKENS:]
    found = compare(replace(inputs, **loud), leaf, SETTINGS)
    assert found["missing_share"].value is None
    assert found["missing_share_no_top3"].value == pytest.approx(measures["missing_share"].value, abs=0.06)


def test_rows_that_do_not_belong_together_are_refused(inputs: LayerInputs) -> None:
    with pytest.raises(GeometryError, match="same tokens"):
        replace(inputs, base_eval=inputs.base_eval[:-1])
    with pytest.raises(GeometryError, match="one per row"):
        replace(inputs, eval_docs=inputs.eval_docs[:-1])


def test_variants_differ_only_by_their_ending(measures: dict[str, Measure]) -> None:
    plain = {split_variant(n)[0] for n in measures if split_variant(n)[1]}
    assert {"missing_share", "fvu_delta", "fvu_reference", "structure_delta", "gain_over_pca"} <= plain
    assert SETTINGS.k == ACTIVE
