"""The line of one adapter, by one table of thresholds."""

from dataclasses import replace

import pytest

from deltasae_ray.analyses.behaviour.figures import Behaviour, changes_model
from deltasae_ray.analyses.verdict import LeafFigures, judge, verdict
from deltasae_ray.metrics.measure import Measure, undefined
from tests.metrics.worlds import CHANGED, UNCHANGED

OTHERS = {
    "fvu_reference": Measure(0.54),
    "fvu_random_atoms": Measure(0.58),
    "fvu_delta": Measure(0.48),
    "gain_over_pca": Measure(0.1, null=0.0, ci=(0.08, 0.12)),
    "gain_over_random_atoms": Measure(0.1, null=0.0, ci=(0.08, 0.12)),
    "mean_share": Measure(0.05, ci=(0.04, 0.06)),
    "delta_participation_ratio": Measure(40.0, n=15_000),
    "repeat_share": Measure(0.14, null=0.02),
}


def leaf(
    low: float, high: float, layer: int = 12, d_sae: int = 512, seed: int = 0, **others: Measure
) -> LeafFigures:
    missing = Measure((low + high) / 2, null=1.0, ci=(low, high), n=77)
    return LeafFigures("r4", layer, d_sae, 8, "topk", seed, {"missing_share": missing, **OTHERS, **others})


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [
        (0.0, 0.29, "VISIBLE"),
        (0.2, 0.31, "PARTLY VISIBLE"),
        (0.05, 0.31, "INCONCLUSIVE"),
        (0.42, 0.68, "PARTLY VISIBLE"),
        (0.11, 0.94, "PARTLY VISIBLE"),
        (0.11, 0.96, "INCONCLUSIVE"),
        (0.84, 0.97, "INCONCLUSIVE"),
        (0.86, 1.1, "NOT VISIBLE"),
        (-0.1, 1.1, "INCONCLUSIVE"),
    ],
)
def test_the_interval_alone_decides(low: float, high: float, label: str) -> None:
    assert judge(Measure((low + high) / 2, ci=(low, high)))[0] == label


def test_the_published_cosine_is_over_seeds_where_there_are_several() -> None:
    alone, mean = Measure(0.25, null=0.12, ci=(0.24, 0.26)), Measure(0.31, null=0.12, ci=(0.2, 0.42))
    assert (
        "as published 0.250 [0.240, 0.260]"
        in verdict("r16", [leaf(0.42, 0.68, paper_max_cosine=alone)], CHANGED).text
    )
    both = leaf(0.42, 0.68, paper_max_cosine=alone, paper_max_cosine_seeds=mean)
    assert "as published 0.310 [0.200, 0.420]" in verdict("r16", [both], CHANGED).text


def test_no_interval_is_inconclusive_with_its_reason() -> None:
    assert judge(undefined("no structure")) == ("INCONCLUSIVE", "no structure")
    assert (
        judge(Measure(0.5).because("ci", "interval undefined: 12 evaluation documents"))[0] == "INCONCLUSIVE"
    )


def test_the_line_says_what_was_asked_in_order() -> None:
    text = verdict("r16", [leaf(0.42, 0.68)], CHANGED, reference="toy reference (15,000 tokens)").text
    parts = (
        "r16, layer 12: PARTLY VISIBLE.",
        "Did it change the model? adapted text loss -0.300",
        "Can the toy reference (15,000 tokens) see it?",
        (
            "With 8 atoms it explains 46% of the change; featureless atoms of its own covariance 42%; a"
            " dictionary trained on the change 52%"
        ),
        "Missing share of the change 0.55 [0.42, 0.68]",
        (
            "How sure? 15,000 training tokens, 77 evaluation documents, 1 training seed (what another would"
            " give is not in the interval), 14% of latents repeat in another seed (by chance 2%)"
        ),
        "Not tested: triggers absent from this text",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "safe" not in text.lower()


def test_training_tokens_are_the_dictionarys_own_where_moments_are_of_fewer() -> None:
    assert (
        "60,000 training tokens"
        in verdict("r4", [leaf(0.4, 0.5, firings_per_latent=Measure(90.0, n=60_000))], CHANGED).text
    )
    assert (
        "15,000 training tokens"
        in verdict("r4", [leaf(0.4, 0.5, firings_per_latent=undefined("silent", n=77))], CHANGED).text
    )


def test_the_worst_layer_leads_and_the_others_are_named() -> None:
    found = verdict("r16", [leaf(0.0, 0.1, 9), leaf(0.9, 1.0, 12), leaf(0.4, 0.5, 15)], CHANGED)
    assert (found.label, found.layer) == ("NOT VISIBLE", 12)
    assert "Other layers: 15 PARTLY VISIBLE 0.45 [0.40, 0.50], 9 VISIBLE 0.05 [0.00, 0.10]" in found.text
    assert "the worst of 3 layers, each by its own 95 % interval" in found.text


def test_an_adapter_that_changes_nothing_has_no_effect_whatever_its_geometry() -> None:
    found = verdict("r4", [leaf(0.9, 1.0)], UNCHANGED)
    assert found.label == "NO EFFECT" and found.layer is None and "There is nothing to see" in found.text


def test_an_effect_that_is_not_shown_is_not_called_excluded() -> None:
    wide = [Behaviour("adapted text", Measure(0.0, ci=(-0.1, 0.1)), Measure(0.002, ci=(0.0, 0.02)))]
    found = verdict("r4", [leaf(0.9, 1.0)], wide)
    assert (
        found.label == "NO EFFECT" and "is not excluded" in found.text and "nothing to see" not in found.text
    )
    unknown = verdict(
        "r4", [leaf(0.9, 1.0)], [Behaviour("a", undefined("no tokens"), undefined("no tokens"))]
    )
    assert unknown.label == "NOT VISIBLE" and "undefined (no tokens)" in unknown.text


def test_the_gate_opens_by_divergence_or_by_loss() -> None:
    no_loss, no_kl = Measure(0.0, ci=(-0.001, 0.001)), Measure(0.0, ci=(0.0, 0.0001))
    assert not changes_model([Behaviour("a", no_loss, no_kl)])
    assert changes_model(
        [Behaviour("a", no_loss, no_kl), Behaviour("b", no_loss, Measure(0.01, ci=(0.005, 0.02)))]
    )
    assert changes_model([Behaviour("a", Measure(-0.1, ci=(-0.2, -0.01)), no_kl)])
    assert not changes_model([Behaviour("a", Measure(-0.1, ci=(-0.3, 0.1)), no_kl)])
    assert not changes_model([Behaviour("a", undefined("no tokens"), undefined("no tokens"))])


def test_a_behaviour_that_was_not_measured_is_said_and_decides_nothing() -> None:
    found = verdict("r4", [leaf(0.9, 1.0)], [])
    assert found.label == "NOT VISIBLE" and "Not measured" in found.text


def test_the_largest_dictionary_is_judged_and_disagreement_is_told() -> None:
    found = verdict("r4", [leaf(0.0, 0.1, d_sae=256), leaf(0.4, 0.5, d_sae=512)], CHANGED)
    assert found.label == "PARTLY VISIBLE"
    assert "With d_sae 256 instead of 512 the verdict is VISIBLE" in found.text
    other = replace(leaf(0.0, 0.1), k=16, architecture="batchtopk")
    told = verdict("r4", [leaf(0.4, 0.5), other], CHANGED).text
    assert (
        "With k 16 instead of 8, batchtopk instead of topk the verdict is VISIBLE" in told
        and "1 training seed " in told
    )


def test_a_delta_dictionary_that_beats_nothing_is_told() -> None:
    text = verdict(
        "r4", [leaf(0.4, 0.5, gain_over_pca=Measure(0.01, null=0.0, ci=(-0.01, 0.03)))], CHANGED
    ).text
    assert "is not shown to beat as many principal directions" in text
    assert "beat featureless atoms" not in text
    worse = verdict(
        "r4", [leaf(0.4, 0.5, gain_over_pca=Measure(-0.02, null=0.0, ci=(-0.03, -0.01)))], CHANGED
    ).text
    assert "does not beat as many principal directions" in worse


def test_what_another_base_dictionary_misses_is_told_with_its_recipe() -> None:
    control = {"missing_share_base_control": Measure(0.44, null=1.0, ci=(0.4, 0.5))}
    own = verdict("r4", [leaf(0.4, 0.5, **control)], CHANGED).text
    assert "The base control (a second dictionary of base activations) misses 0.44 [0.40, 0.50] of it" in own
    over = {"missing_share_over_base": Measure(0.01, null=0.0, ci=(-0.02, 0.04), p=0.5)}
    beside = verdict("r4", [leaf(0.4, 0.5, **control, **over)], CHANGED).text
    assert (
        "the reference +0.01 [-0.02, +0.04] beside that: it is not shown to miss more than another base"
        " dictionary does" in beside
    )
    over = {"missing_share_over_base_seeds": Measure(0.08, null=0.0, ci=(0.02, 0.14), p=0.01)}
    seeds = {"missing_share_base_control_seeds": Measure(0.4, null=1.0, ci=(0.3, 0.5))}
    pooled = verdict("r4", [leaf(0.4, 0.5, **control, **over, **seeds)], CHANGED).text
    assert "misses 0.40 [0.30, 0.50] of it (one dictionary, mean over the seeds" in pooled
    assert "it misses more than another base dictionary does" in pooled
    trimmed = {
        "missing_share": undefined("two directions"),
        "missing_share_no_top3": Measure(0.9, null=1.0, ci=(0.87, 0.93)),
    }
    trimmed |= {"missing_share_base_control_no_top3": Measure(0.91, null=1.0, ci=(0.88, 0.94))}
    outside = verdict("r4", [leaf(0.4, 0.5, **control, **trimmed)], CHANGED).text
    assert "misses 0.91 [0.88, 0.94] of it" in outside and "0.44" not in outside, (
        "the control of what is judged"
    )
    random = verdict(
        "r4", [leaf(0.4, 0.5, missing_share_random_adapter=Measure(0.97, null=1.0, ci=(0.9, 1.04)))], CHANGED
    ).text
    assert (
        "Of a random adapter's deltas (rotated, as strong) the reference misses 0.97 [0.90, 1.04]" in random
    )
    given = verdict("r4", [leaf(0.4, 0.5, **control)], CHANGED, given=True).text
    assert "by the grid's first recipe and not the reference's) misses 0.44" in given


def test_a_missing_share_that_few_tokens_carry_is_told() -> None:
    apart, alike = Measure(1.06, ci=(0.81, 1.39)), Measure(0.5, ci=(0.4, 0.6))
    text = verdict("r4", [leaf(0.4, 0.5, missing_share_token_mean=apart)], CHANGED).text
    assert "as a mean over tokens the missing share is 1.06" in text
    assert (
        "mean over tokens"
        not in verdict("r4", [leaf(0.4, 0.5, missing_share_token_mean=alike)], CHANGED).text
    )


def test_seeds_are_counted_and_unknown_repeats_are_said() -> None:
    others = {k: v for k, v in OTHERS.items() if k != "repeat_share"}
    alone = LeafFigures(
        "r4", 12, 512, 8, "topk", 0, {"missing_share": Measure(0.5, ci=(0.4, 0.6), n=77), **others}
    )
    assert "whether latents repeat in another seed is unknown" in verdict("r4", [alone], CHANGED).text
    assert "2 training seeds" in verdict("r4", [leaf(0.4, 0.5, seed=0), leaf(0.4, 0.5, seed=1)], CHANGED).text


def test_what_has_too_few_directions_is_judged_without_its_largest_coordinates() -> None:
    few = undefined("the deltas live in 2.4 directions (participation ratio), 4 are needed")
    found = verdict(
        "r4", [leaf(0, 1, missing_share=few, missing_share_no_top3=Measure(0.9, ci=(0.87, 0.95)))], CHANGED
    )
    assert found.label == "NOT VISIBLE" and "outside its three largest coordinates" in found.text
    nothing = verdict("r4", [leaf(0, 1, missing_share=few)], CHANGED)
    assert nothing.label == "INCONCLUSIVE" and "2.4 directions" in nothing.text


def test_a_constant_shift_is_judged_by_itself_only_where_nothing_else_has_structure() -> None:
    shift = {"mean_share": Measure(0.97, ci=(0.96, 0.98)), "mean_missing_share": Measure(0.95, ci=(0.9, 1.0))}
    found = verdict("r4", [leaf(0, 1, missing_share=undefined("no structure"), **shift)], CHANGED)
    assert found.label == "NOT VISIBLE" and "constant shift (97% of the change)" in found.text
    untrained = undefined("the delta dictionary saw 6 firings per latent, 30 are needed")
    for hidden in ({"firings_per_latent": Measure(6.0)}, {"structure_delta": Measure(0.3, ci=(0.2, 0.4))}):
        unknown = verdict("r4", [leaf(0, 1, missing_share=untrained, **shift, **hidden)], CHANGED)
        assert unknown.label == "INCONCLUSIVE" and "6 firings" in unknown.text
    both = verdict("r4", [leaf(0.0, 0.1, **shift)], CHANGED)
    assert both.label == "VISIBLE" and "missing share of that shift 0.95" in both.text
    because = shift | {
        "mean_missing_share": shift["mean_missing_share"].because("note", "the interval reaches 1: why")
    }
    assert (
        "[0.90, 1.00] (the interval reaches 1: why)"
        in verdict("r4", [leaf(0.0, 0.1, **because)], CHANGED).text
    )
