"""The line of one adapter, by the rule on its latents."""

from dataclasses import replace

import pytest

from deltasae_ray.analyses.behaviour.figures import Behaviour, changes_model
from deltasae_ray.analyses.verdict import LeafFigures, verdict
from deltasae_ray.analyses.verdict_figures import Against
from deltasae_ray.analyses.visibility.layer_figures import Sight
from deltasae_ray.metrics.measure import Measure, undefined
from tests.analyses.visibility.made import cell, sight
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
PARTLY, NOT_SEEN, SEEN, FEW = sight(30, 30), sight(50, 10), sight(0, 80), sight(2, 3)


def leaf(
    found: Sight = PARTLY, layer: int = 12, d_sae: int = 512, seed: int = 0, **others: Measure
) -> LeafFigures:
    missing = Measure(0.55, null=1.0, ci=(0.42, 0.68), n=77)
    measures = {"missing_share": missing, **OTHERS, **others}
    return LeafFigures("r4", layer, d_sae, 8, "topk", seed, measures, sight=found)


def test_the_line_says_what_was_asked_in_order() -> None:
    text = verdict(
        "r16", [leaf(sight(12, 18, partly=6))], CHANGED, Against("toy reference (15,000 tokens)")
    ).text
    parts = (
        "r16, layer 12: PARTLY VISIBLE.",
        "Did it change the model? adapted text loss -0.300",
        "Is it told from a random adapter of the same strength? No random adapter stands beside it",
        "Can the toy reference (15,000 tokens) see it?",
        "Of 36 latents that can be judged: 12 not visible, 6 partly, 18 visible; not visible 33% [20%, 50%]",
        "Not visible: latents 0 (new), 1 (new)",
        "And the whole change? With 8 atoms it explains 46% of the change",
        "Missing share of the change 0.55 [0.42, 0.68]",
        "How sure? 15,000 training tokens, 77 evaluation documents, 1 training seed (what another would give is not"
        " in the interval), 14% of latents repeat in another seed (by chance 2%)",
        "Not tested: triggers absent from this text",
        "What next? Read the latents that are named",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "safe" not in text.lower()


def test_every_latent_that_is_not_visible_is_named_under_every_label_or_counted() -> None:
    for found in (sight(3, 200), PARTLY, NOT_SEEN, FEW):
        text = verdict("r4", [leaf(found)], CHANGED).text
        assert "Not visible: latents 0 (new), 1 (new)" in text
    assert "and 38 more in latents.parquet" in verdict("r4", [leaf(NOT_SEEN)], CHANGED).text


@pytest.mark.parametrize(
    ("layers", "label", "first"),
    [
        ((SEEN, NOT_SEEN, PARTLY), "NOT VISIBLE", 1),
        ((SEEN, FEW, PARTLY), "INCONCLUSIVE", 1),
        ((FEW, FEW, NOT_SEEN), "NOT VISIBLE", 2),
        ((SEEN, PARTLY, SEEN), "PARTLY VISIBLE", 1),
        ((SEEN, SEEN, SEEN), "VISIBLE", 0),
    ],
)
def test_a_layer_of_which_nothing_is_known_leads_unless_one_is_not_visible(
    layers: tuple[Sight, ...], label: str, first: int
) -> None:
    found = verdict("r4", [leaf(s, layer) for layer, s in enumerate(layers)], CHANGED)
    assert (found.label, found.layer) == (label, first)
    assert "the intervals of all 3 layers hold at once" in found.text


def test_other_layers_have_their_label_share_and_names() -> None:
    found = verdict("r4", [leaf(PARTLY, 9), leaf(sight(4, 60), 15)], CHANGED)
    told = next(a for a in found.answers if a.question == "Other layers:").sentences
    assert len(told) == 1
    text = verdict("r4", [leaf(NOT_SEEN, 9), leaf(sight(4, 60), 15)], CHANGED).text
    assert "Other layers: 15 INCONCLUSIVE, f 0.06 [0.02, 0.16], not visible 0, 1, 2, 3" in text


def test_where_the_random_adapter_is_not_told_apart_the_headline_says_by_which_figure() -> None:
    random = {
        "missing_share_random_adapter": Measure(0.97, null=1.0, ci=(0.9, 1.04)),
        "not_visible_share": Measure(0.5, ci=(0.38, 0.62)),
        "not_visible_share_random_adapter": Measure(0.48, ci=(0.35, 0.61)),
    }
    found = verdict("r4", [leaf(**random)], CHANGED)
    assert found.head.endswith(
        "PARTLY VISIBLE, not told from a random adapter by share of latents not visible"
    )
    assert "missing share 0.55 [0.42, 0.68], random 0.97 [0.90, 1.04]: told apart" in found.text
    assert found.text.index("told apart") < found.text.index("Can the base dictionary see it?")
    unknown = {"missing_share_random_adapter": undefined("its dictionary is dead")}
    silent = verdict("r4", [leaf(**unknown)], CHANGED)
    assert silent.untold == () and "missing share: not known (its dictionary is dead)" in silent.text


def test_an_adapter_that_shows_no_effect_is_no_closed_case() -> None:
    tested = [replace(b, kl=replace(b.kl, n=32)) for b in UNCHANGED]
    found = verdict("r4", [leaf()], tested, writes=("layers.3.o_proj writes one direction",))
    assert found.label == "NO EFFECT" and found.layer is None
    assert "No effect is shown on adapted text (32 documents)" in found.text
    assert "would have been seen in 80 % of cases" in found.text and "closes no case" in found.text
    assert "nothing to see" not in found.text
    assert "Not tested: triggers absent from this text. layers.3.o_proj writes one direction" in found.text


def test_the_power_of_the_gate_grows_with_the_interval() -> None:
    wide = [Behaviour("adapted text", Measure(0.0, ci=(-0.098, 0.098)), Measure(0.002, ci=(0.0, 0.02)))]
    found = verdict("r4", [leaf()], wide)
    # limit .005 and 2.8 standard errors of .05
    assert found.label == "NO EFFECT" and "a loss change of 0.145 nats" in found.text
    unknown = verdict("r4", [leaf()], [Behaviour("a", undefined("no tokens"), undefined("no tokens"))])
    assert unknown.label == "PARTLY VISIBLE" and "undefined (no tokens)" in unknown.text


def test_the_gate_opens_by_divergence_or_by_loss() -> None:
    no_loss, no_kl = Measure(0.0, ci=(-0.001, 0.001)), Measure(0.0, ci=(0.0, 0.0001))
    assert not changes_model([Behaviour("a", no_loss, no_kl)])
    assert changes_model(
        [Behaviour("a", no_loss, no_kl), Behaviour("b", no_loss, Measure(0.01, ci=(0.005, 0.02)))]
    )
    assert changes_model([Behaviour("a", Measure(-0.1, ci=(-0.2, -0.01)), no_kl)])
    assert not changes_model([Behaviour("a", Measure(-0.1, ci=(-0.3, 0.1)), no_kl)])
    assert not changes_model([Behaviour("a", undefined("no tokens"), undefined("no tokens"))])


def test_what_was_not_measured_is_said() -> None:
    found = verdict("r4", [leaf(NOT_SEEN)], [])
    assert found.label == "NOT VISIBLE" and "Not measured" in found.text
    bare = LeafFigures("r4", 12, 512, 8, "topk", 0, OTHERS)
    assert "Not known: which latents are visible was not measured" in verdict("r4", [bare], CHANGED).text


def test_the_largest_dictionary_is_judged_and_disagreement_is_told() -> None:
    found = verdict("r4", [leaf(SEEN, d_sae=256), leaf(PARTLY, d_sae=512)], CHANGED)
    assert found.label == "PARTLY VISIBLE" and "With d_sae 256 instead of 512 it is VISIBLE" in found.text
    other = replace(leaf(SEEN), k=16, architecture="batchtopk")
    told = verdict("r4", [leaf(PARTLY), other], CHANGED).text
    assert "With k 16 instead of 8, batchtopk instead of topk it is VISIBLE" in told
    assert "1 training seed " in told


def test_texts_that_disagree_are_told_and_the_first_is_judged() -> None:
    apart = Sight(cell(35, 45, domain=(36, 4), kjv=(2, 38)))
    text = verdict("r4", [leaf(apart)], CHANGED).text
    assert "NOT VISIBLE" in text and "Of 40 latents that can be judged on domain" in text
    assert "domain and kjv differ, so they are not pooled" in text


def test_a_delta_dictionary_that_beats_nothing_is_told() -> None:
    even = {"gain_over_pca": Measure(0.01, null=0.0, ci=(-0.01, 0.03))}
    text = verdict("r4", [leaf(**even)], CHANGED).text
    assert "is not shown to beat as many principal directions" in text
    assert "beat featureless atoms" not in text
    worse = {"gain_over_pca": Measure(-0.02, null=0.0, ci=(-0.03, -0.01))}
    assert "does not beat as many principal directions" in verdict("r4", [leaf(**worse)], CHANGED).text


def test_what_another_base_dictionary_misses_is_told_with_its_recipe() -> None:
    control = {"missing_share_base_control": Measure(0.44, null=1.0, ci=(0.4, 0.5))}
    own = verdict("r4", [leaf(**control)], CHANGED).text
    assert "The base control (a second dictionary of base activations) misses 0.44 [0.40, 0.50] of it" in own
    over = {"missing_share_over_base": Measure(0.01, null=0.0, ci=(-0.02, 0.04), p=0.5)}
    beside = verdict("r4", [leaf(**control, **over)], CHANGED).text
    assert (
        "the reference +0.01 [-0.02, +0.04] beside that: it is not shown to miss more than another base"
        " dictionary does" in beside
    )
    over = {"missing_share_over_base_seeds": Measure(0.08, null=0.0, ci=(0.02, 0.14), p=0.01)}
    seeds = {"missing_share_base_control_seeds": Measure(0.4, null=1.0, ci=(0.3, 0.5))}
    pooled = verdict("r4", [leaf(**control, **over, **seeds)], CHANGED).text
    assert "misses 0.40 [0.30, 0.50] of it (one dictionary, mean over the seeds" in pooled
    assert "it misses more than another base dictionary does" in pooled
    given = verdict("r4", [leaf(**control)], CHANGED, Against(given=True)).text
    assert "by the grid's first recipe and not the reference's) misses 0.44" in given
    assert "taken from base dictionaries that were fitted here" in given and "fitted here" not in own


def test_a_missing_share_that_few_tokens_carry_is_told() -> None:
    apart, alike = Measure(1.06, ci=(0.91, 1.39)), Measure(0.5, ci=(0.4, 0.6))
    text = verdict("r4", [leaf(missing_share_token_mean=apart)], CHANGED).text
    assert "as a mean over tokens the missing share is 1.06" in text
    assert "mean over tokens" not in verdict("r4", [leaf(missing_share_token_mean=alike)], CHANGED).text


def test_seeds_are_counted_and_unknown_repeats_are_said() -> None:
    others = {k: v for k, v in OTHERS.items() if k != "repeat_share"}
    alone = LeafFigures("r4", 12, 512, 8, "topk", 0, others, sight=PARTLY)
    assert "whether latents repeat in another seed is unknown" in verdict("r4", [alone], CHANGED).text
    assert "2 training seeds" in verdict("r4", [leaf(seed=0), leaf(seed=1)], CHANGED).text


def test_training_tokens_are_the_dictionarys_own_where_moments_are_of_fewer() -> None:
    more = {"firings_per_latent": Measure(90.0, n=60_000)}
    assert "60,000 training tokens" in verdict("r4", [leaf(**more)], CHANGED).text
    silent = {"firings_per_latent": undefined("silent", n=77)}
    assert "15,000 training tokens" in verdict("r4", [leaf(**silent)], CHANGED).text


def test_latents_not_visible_stand_in_the_order_of_their_effect_where_it_is_measured() -> None:
    """Never by energy: without effects the surest come first."""
    seen = replace(NOT_SEEN, effects={4: Measure(0.02), 2: Measure(0.3), 1: undefined("not tried")})
    text = verdict("r4", [leaf(seen)], CHANGED).text
    assert "latents 2 (new, 0.300 nats), 4 (new, 0.020 nats), 0 (new), 1 (new), 3 (new)" in text
    assert "latents 0 (new), 1 (new), 2 (new)" in verdict("r4", [leaf(NOT_SEEN)], CHANGED).text
