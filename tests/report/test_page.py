"""What the page must and must not say."""

import html
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.paper import NOTES, Block, Line
from deltasae_ray.analyses.verdict import Answer
from deltasae_ray.errors import ConfigError
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.report.charts import by_layer
from deltasae_ray.report.inputs import Curve, CurvePoint, ReportInputs, Timing, VerdictLines
from deltasae_ray.report.notes import against_null
from deltasae_ray.report.page import render, report_files, write_report
from deltasae_ray.report.seeds import ONE_SEED
from deltasae_ray.report.svg import LEFT, RIGHT, WIDTH
from deltasae_ray.report.wording import figure, interval
from deltasae_ray.storage import Storage
from tests.report.made import FEW_DIRECTIONS, REFERENCE, changed, make, with_seeds

BASELINES = {"max_cosine": 0.4, "max_cosine_random_adapter": 0.38}


@pytest.fixture(scope="module")
def page() -> str:
    return render(make())


def text_of(page: str) -> str:
    """What a reader sees, on one line."""
    body = re.sub(r"<(style|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def title(page: str) -> str:
    return html.unescape(re.search(r"<h1>(.*?)</h1>", page)[1])  # type: ignore[index]


def section(page: str, name: str) -> str:
    return text_of(re.search(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)[1])  # type: ignore[index]


def test_the_page_asks_for_nothing_from_the_network(page: str):
    assert not re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["'](?!#)""", page)
    assert not re.findall(r"url\(|@import|<script|<link|<iframe|<object", page)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_sections_come_in_the_order_a_reader_needs(page: str):
    found = re.findall(r'<section id="(\w+)">', page)
    assert found == [
        "verdicts",
        "headline",
        "figures",
        "audit",
        "latents",
        "planted",
        "run",
        "reading",
        "limits",
    ]


def test_text_from_the_corpus_and_the_user_is_escaped():
    failed, told = (
        {"r4 d_sae=256": "<img src=x>"},
        (VerdictLines("<u>x</u>: VISIBLE", "VISIBLE", (Answer("<u>x</u>?", ("<u>x</u>",)),)),),
    )
    page = render(make(title="<b>bold</b>", failures=failed, planted_text="<i>marker</i>", verdicts=told))
    for raw in ("<script>alert", "<b>bold", "<img src", "<i>marker", "<u>x"):
        assert raw not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_values_saved_beside_the_page_draw_the_same_page(page: str):
    again = ReportInputs.from_json(make().to_json())
    assert again == make()
    assert render(again) == page


def test_the_published_figures_stand_beside_ours_with_what_must_be_known_of_them():
    line = Line(
        "mean max-cosine", "12", "0.071", "0.07", "0.066; before training 0.067", "0.37 (max_cosine)", "0.36"
    )
    inputs = make(
        paper=(
            Block("d_sae 512, k 8, topk; r4", (line,), ("mean max-cosine: interval undefined: made up.",)),
        )
    )
    assert ReportInputs.from_json(inputs.to_json()) == inputs
    found = section(render(inputs), "figures")
    assert "d_sae 512, k 8, topk; r4" in found and "mean max-cosine: interval undefined: made up." in found
    assert "mean max-cosine 12 0.071 0.07 0.066; before training 0.067 0.37 (max_cosine) 0.36" in found
    assert all(note in found for note in NOTES)
    assert "Beside the published study" not in section(render(make()), "figures")


def test_two_adapters_stand_beside_each_other_with_the_ceiling_of_two_seeds():
    row = changed(
        make().rows[0],
        adapter="r4-s0",
        reference="r16-s0",
        metric="cka_adapters",
        layer=12,
        d_sae=512,
        value=0.61,
        null=0.01,
    )
    row = changed(
        row,
        ceiling=0.84,
        kappa=0.72,
        ci_low=None,
        ci_high=None,
        reason="the ceiling is that of two training seeds of one rank",
    )
    rows = (row, changed(row, d_sae=256, value=0.11), changed(row, seed=1, value=0.22))
    found = (
        section(render(make(rows=rows)), "figures")
        .split("Every measure")[1]
        .split("Two adapters beside each other")[1]
    )
    told = "0.61 – 0.01 0.84 0.72 the ceiling is that of two training seeds of one rank"
    assert f"r4-s0, r16-s0 12 Deltas of two adapters alike (CKA) {told}" in found
    assert "r4-s0, r16-s0 12 Deltas of two adapters alike (CKA) 0.11" not in found
    assert "Two adapters beside each other" not in section(render(make()), "figures")


def test_nan_cannot_be_saved():
    with pytest.raises(ValueError, match="not JSON compliant"):
        make(timings=(Timing("fit", float("nan"), None),)).to_json()


def test_values_of_another_version_are_a_clear_error():
    with pytest.raises(ConfigError, match="run the report stage again"):
        ReportInputs.from_json('{"titel": "x"}')


def test_an_undefined_figure_stands_with_its_reason(page: str):
    assert f"undefined – 1.00 – – {FEW_DIRECTIONS}" in section(page, "headline")
    assert f"Undefined for r4 layer 9: {FEW_DIRECTIONS}." in section(page, "figures")
    assert "nan" not in text_of(page).lower().split()
    assert "None" not in text_of(page)


def test_a_missing_ceiling_is_explained():
    rows = tuple(changed(r, ceiling=None, kappa=None) for r in make().rows)
    assert "No ceiling, and so no κ, stands beside M" in section(render(make(rows=rows)), "headline")
    assert "No ceiling" not in section(render(make()), "headline")


def test_kappa_stands_with_its_interval(page: str):
    assert re.search(
        r"<td class=\"n\" data-label=\"κ\">0\.\d\d <small class=\"sure\">\[0\.\d\d, 0\.\d\d\]</small>", page
    )
    row = next(r for r in make().rows if r.kappa_low is not None)
    assert f"{figure(row.kappa)} {interval(row.kappa_low, row.kappa_high)}" in section(page, "figures")


def test_kappas_under_ceilings_that_differ_are_called_not_comparable(page: str):
    assert "not to be compared" not in page
    first = next(i for i, r in enumerate(make().rows) if r.kappa is not None)
    rows = tuple(changed(r, ceiling=0.3) if i == first else r for i, r in enumerate(make().rows))
    told = (
        "κ is not to be compared where ceilings differ by more than a tenth of the scale, as they do between"
        " rows of missing share (0.08"
    )
    again = render(make(rows=rows))
    assert told in section(again, "headline") and told in section(again, "figures")


def test_the_mean_over_seeds_leads_its_seeds():
    found = section(render(with_seeds(make())), "headline")
    start = found.index("r16 12 256, 2 seeds Missing share M(8), over seeds")
    told = ("What a deployed monitor sees (R²)", "seed 0 alone", "seed 1 alone", "r16 12 512, 2 seeds")
    places = [found.index(t, start) for t in told]
    assert places == sorted(places)
    assert found.count("What a deployed monitor sees (R²) 0.") == 12, (
        "it does not depend on the dictionary: said once"
    )
    assert "over seeds" not in section(render(make()), "headline")


def test_figures_and_their_standing_are_over_seeds_where_there_are_several():
    inputs = with_seeds(make())
    alone = [r for r in inputs.rows if r.name == "max_cosine_weighted"]
    assert {against_null(r) for r in alone} == {"not to be told from chance"}
    drawn = by_layer(inputs, "max_cosine_weighted", guides=(0.0,))
    told = (
        "Means over the training seeds of each dictionary, where it has several; their spread is in the"
        " intervals."
    )
    assert drawn.notes == ("Every cell is beyond chance: each of the 12 can be told from its null.", told)
    assert [panel.count("</title>") for panel in drawn.panels] == [12, 12], (
        "one point and one null per adapter and layer, not per seed"
    )
    assert ONE_SEED not in render(inputs)


def test_that_there_is_one_seed_is_said(page: str):
    assert ONE_SEED in section(page, "headline")
    assert by_layer(make(), "max_cosine_weighted", guides=(0.0,)).notes[-1] == ONE_SEED
    assert by_layer(make(), "monitor_r2", guides=(0.0,)).notes[-1] != ONE_SEED, (
        "no delta dictionary enters it"
    )


def test_the_missing_share_is_named_by_its_atoms_and_not_by_the_dictionaries_k():
    rows = tuple(changed(r, k=32) for r in make().rows)
    assert "Missing share M(8)" in section(render(make(rows=rows)), "headline")
    assert "M(32)" not in render(make(rows=rows))


@pytest.mark.parametrize(
    ("key", "name"), [("learning", "Learning curves"), ("dead_latents", "Dead latents while learning")]
)
def test_unexplained_variance_and_dead_latents_are_drawn_over_steps_with_a_line_per_dictionary(
    page: str, key: str, name: str
):
    drawn = re.search(rf'<figure id="figure-{key}">.*?</figure>', page, re.DOTALL)
    assert drawn is not None and name in drawn[0]
    panels = [
        p for p in re.findall(r"<svg.*?</svg>", drawn[0], re.DOTALL) if f'aria-label="{name}, layer' in p
    ]
    assert len(panels) == 3
    for panel in panels:
        lines = re.findall(r'<path d="([^"]+)" class="curve[^"]*"><title>([^<]+)', panel)
        assert [d.count("L") + 1 for d, _ in lines] == [31] * 4
        assert {re.sub(" ends at .*", "", told) for _, told in lines} == {
            f"r{r} d_sae {d} seed 0" for r in (4, 16) for d in (256, 512)
        }


def test_what_a_deployed_monitor_sees_stands_right_under_the_missing_share(page: str):
    lines = re.findall(r'<td class="what">(.*?)</td>', page)
    assert lines[::2] == ["Missing share M(8)"] * 12
    assert lines[1::2] == ["What a deployed monitor sees (R²)"] * 12


def test_a_figure_at_chance_is_said_to_be(page: str):
    figures = section(page, "figures")
    assert "At chance in 2 of 12 cells (r16 layer 15)" in figures
    assert (
        f"the {REFERENCE} is not shown to explain more of these deltas than featureless atoms do" in figures
    )
    assert (
        "At chance in 8 of 12 cells (r4 layers 9, 12; r16 layers 9, 12)" in figures
    )  # a max-cosine within .05 of its null
    assert "Not to be told from chance in 4 of 12 cells (r4 layer 15; r16 layer 15)" in figures
    assert "Every cell is beyond chance: each of the 36 can be told from its null." in figures  # the angles
    assert section(page, "headline").count("chance") >= 8


def test_a_figure_without_interval_or_p_is_not_called_more_than_chance():
    rows = tuple(
        changed(r, ci_low=None, ci_high=None, p=None) for r in make().rows if r.name == "missing_share"
    )
    page = render(make(rows=rows))
    assert "Cannot be told from chance in 10 of 12 cells" in section(page, "figures")
    assert "below its null" not in section(page, "headline")


def test_the_delta_dictionary_not_beating_pca_is_said(page: str):
    assert "The delta dictionary is not shown to beat PCA-k in 2 of 12 cells (r4 layer 9)." in section(
        page, "figures"
    )


def test_the_reference_is_called_by_its_name_everywhere(page: str):
    for name in ("verdicts", "headline", "figures", "run", "reading"):
        assert REFERENCE in section(page, name)
    other = render(
        make(
            reference="gemma-scope-2-270m-pt-res",
            verdicts=(),
            rows=tuple(changed(r, reference="") for r in make().rows),
        )
    )
    assert "toy reference" not in text_of(other)
    assert "gemma-scope-2-270m-pt-res" in section(other, "reading")


def test_adaptation_that_was_not_demonstrated_leads_the_page():
    weak = Behaviour("domain", Measure(-0.02, ci=(-0.05, 0.01)), undefined("not measured"), 4.127)
    r4, r16, control = make().adapters
    page = render(make(adapters=(replace(r4, demonstrated=False, losses=(weak,)), r16, control)))
    assert title(page) == "Adaptation not demonstrated for r4"
    lead = text_of(page.split("<nav")[0])
    assert (
        "r4: after 22 steps on 11,264 tokens the held-out loss on domain changed by −0.02 [−0.05, 0.01] nats,"
        " which chance" in lead
    )
    assert "r16:" not in lead
    both = make(adapters=(replace(r4, demonstrated=False), replace(r16, demonstrated=False), control))
    assert title(render(both)) == "Adaptation not demonstrated"
    assert title(render(make())) == make().title


def test_no_claim_about_rank_stands_with_one_adapter_seed_per_rank(page: str):
    assert "TOST" not in page
    said = (
        "No claim about rank is made: it takes two adapter seeds per rank or more, and rank 4 has 1, rank 16"
        " has 1."
    )
    assert said in section(page, "verdicts")


def test_claims_about_rank_stand_with_two_adapter_seeds_per_rank():
    adapters = tuple(
        replace(a, name=f"{a.name}-s{seed}", seed=seed)
        for a in make().adapters
        if not a.control
        for seed in (0, 1)
    )
    verdicts = section(render(make(adapters=adapters)), "verdicts")
    assert "Missing share is equal across ranks within 0.1 (TOST)." in verdicts
    assert "No claim about rank" not in verdicts


def test_what_each_block_put_in_stands_beside_its_deltas(page: str):
    table = page[page.index("injected here</th>") :]
    assert table[: table.index("</table>")].count("44.0\u00a0%") == 2 * 3  # adapters × layers


def test_deltas_near_the_noise_floor_are_named(page: str):
    said = (
        "Less than 100 times the energy of the measured noise floor: the deltas of r4 layer 9 (61), r16 layer"
        " 9 (61)."
    )
    assert said in section(page, "verdicts")


def test_a_failed_trial_is_named():
    page = render(make(failures={"r4 d_sae=512": "worker died"}))
    assert "Trial r4 d_sae=512 failed and is missing here: worker died" in section(page, "verdicts")


def test_the_page_never_calls_anything_safe(page: str):
    assert "safe" not in page.lower()


def test_the_page_says_that_the_weights_are_dequantised(page: str):
    assert "Its weights are dequantised from Q4_K_M." in text_of(page.split("<nav")[0])


def test_random_contexts_say_what_they_were_drawn_from(page: str):
    latents = section(page, "latents")
    assert "drawn uniformly from all on which it fires" in latents
    assert "random, of the 497 tokens on which it fires" in latents


def test_ten_latents_of_five_strongest_and_five_random_contexts_are_shown(page: str):
    groups = re.findall(
        r"<details.*?</details>", re.search(r'id="latents">(.*?)</section>', page, re.DOTALL)[1], re.DOTALL
    )  # type: ignore[index]
    assert len(groups) == 6
    assert [g.count('class="latent"') for g in groups] == [10] * 6
    assert [g.count('class="context"') for g in groups] == [100] * 6


def test_the_planted_truth_is_said_to_be_found_or_not(page: str):
    planted = section(page, "planted")
    assert "r16, layer 12 (d_sae 512): found at rank 3 of the latent table" in planted
    assert "r4, layer 12 (d_sae 256): not found" in planted
    assert "not among the 10 latents shown" not in planted
    far = replace(make().planted[1], finding=replace(make().planted[1].finding, table_rank=317))
    assert "It is not among the 10 latents shown." in section(render(make(planted=(far,))), "planted")
    assert (
        "Training contexts that held it: r4 1, r16 1; of a few an adapter may have learnt nothing." in planted
    )
    assert "The random adapter, which was trained on nothing, does not find it." in planted
    anyway = replace(make().planted[1], adapter="random-r16", layer=9)
    assert "which was trained on nothing, finds it at layer 9: " in section(
        render(make(planted=(anyway,))), "planted"
    )
    assert "Nothing was planted" in section(render(make(planted_text="", planted=())), "planted")


def test_baselines_are_drawn_beside_the_delta_dictionary_and_those_that_are_not_beaten_are_named():
    cells = [r for r in make().rows if r.name == "fvu_delta"]
    rows = [
        changed(r, metric=m, value=v, ci_low=None, ci_high=None) for r in cells for m, v in BASELINES.items()
    ]
    rows += [
        changed(r, metric="gain_over_gaussian", value=-0.01, ci_low=-0.02, ci_high=0.0)
        for r in cells
        if r.layer == 15
    ]
    page = render(make(rows=(*make().rows, *rows)))
    title = "Nearest reference latent, where the answer is known"
    assert title in section(page, "figures") and title in section(page, "reading")
    assert (
        "is not shown to beat the same recipe on Gaussian deltas in 4 of 4 cells (r4 layer 15; r16 layer 15)"
        in section(page, "figures")
    )
    assert "on Gaussian deltas" not in section(render(make()), "figures")


def test_every_figure_shown_is_defined(page: str):
    terms = re.findall(r"<dt>(.*?)</dt>", page)
    for caption in re.findall(r"<figcaption>(.*?)(?: <small>|</figcaption>)", page):
        assert any(caption.replace("M(k)", "M(8)").startswith(term) for term in terms), caption


def test_limits_name_what_was_not_tested(page: str):
    limits = section(page, "limits")
    assert limits.count("Not tested:") == 4
    assert limits.count("triggers absent from this text") == 1
    assert "triggers absent from this text" in section(render(make(not_tested=())), "limits")


def test_plan_and_actual_stand_side_by_side(page: str):
    assert "harvest 4.2 min 4.8 min" in section(page, "run")
    assert "total 11.2 min 12.0 min" in section(page, "run")


def test_a_study_with_next_to_nothing_still_has_a_page():
    page = render(
        ReportInputs(
            title="empty", created="today", model="tiny", reference="toy reference (10 tokens)", layers=(1,)
        )
    )
    assert "Not measured in this study." in section(page, "figures")
    assert "No verdict was reached." in section(page, "verdicts")


def test_points_keep_to_their_lane_where_others_are_undefined(page: str):
    """Layer 9 has one defined series of several; its mark stands where that series stands at layer 12."""
    panel = next(
        p
        for p in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
        if "Missing share where the answer is known, r4, d_sae 256" in p
    )
    atoms = [float(x) for x in re.findall(r'<polygon points="([\d.]+),[^"]*" class="dot s4"', panel)]
    group = (WIDTH - LEFT - RIGHT) / 3
    assert [b - a for a, b in zip(atoms, atoms[1:], strict=False)] == pytest.approx([group, group], abs=0.2)


def test_many_adapters_are_drawn_for_the_largest_dictionary_only():
    adapters = tuple(
        replace(a, name=f"{a.name}-s{s}", seed=s) for a in make().adapters if not a.control for s in (0, 1)
    )
    rows = tuple(changed(r, adapter=f"{r.adapter}-s{s}") for r in make().rows for s in (0, 1))
    figures = section(render(make(adapters=adapters, rows=rows)), "figures")
    assert figures.count("Drawn for d_sae 512; the other sizes are among the measures below.") == 2


def test_panels_are_well_formed_and_described(page: str):
    panels = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(panels) > 20
    for panel in panels:
        root = ElementTree.fromstring(panel)
        assert root.get("aria-hidden") or root.get("aria-label")
    assert not re.search(
        r'"[^"]*\b(?:nan|inf)\b[^"]*"',
        " ".join(re.findall(r"<(?:line|circle|rect|path|polygon)[^>]*>", page)),
    )


def test_files_are_written_with_the_page_last_and_figures_that_stand_alone(tmp_path: Path):
    files = write_report(make(), Storage(str(tmp_path)))
    assert {"report.html", "report.json", "figures/missing_share_by_layer-1.svg"} <= files.keys()
    for name, text in files.items():
        assert (tmp_path / name).read_text() == text
    svg = (tmp_path / "figures" / "missing_share_by_layer-1.svg").read_text()
    assert ElementTree.fromstring(svg).find("{http://www.w3.org/2000/svg}style") is not None
    assert (tmp_path / "report.html").stat().st_mtime_ns >= max(
        (tmp_path / n).stat().st_mtime_ns for n in files
    )


def test_the_same_inputs_give_the_same_files():
    assert report_files(make()) == report_files(make())


def test_latents_not_visible_lead_the_headline_beside_random_adapters_and_their_calibration_is_drawn() -> (
    None
):
    inputs = make()
    head = next(r for r in inputs.rows if r.name == "missing_share")
    own = changed(head, metric="not_visible_share", value=0.31, ci_low=0.2, ci_high=0.45, null=0.0)
    random = changed(own, metric="not_visible_share_random_adapter", value=0.29, ci_low=0.1, ci_high=0.5)
    curve = Curve(
        **vars(head.identity),
        figure="calibration",
        points=(CurvePoint(0.0, 0.9), CurvePoint(1.0, 0.02)),
        label="d_sae 256",
    )
    page = render(make(rows=(*inputs.rows, own, random), curves=(*inputs.curves, curve)))
    table = section(page, "headline")
    assert table.index("Latents not visible, f") < table.index("Missing share M(8)")
    assert "random adapters 0.29 [0.10, 0.50]" in table
    assert "share of features in the reference" in page
    bare = render(make(rows=(*inputs.rows, own)))
    assert "no random adapter beside it" in section(bare, "headline")
