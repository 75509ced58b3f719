"""The links that a study prints open MLflow's page on its runs, with their charts drawn, and the report opens
among its artifacts; in a fresh profile, against a real server."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.report.page import render
from deltasae_ray.storage import Storage
from deltasae_ray.tracking import Tracker, TrackingConfig, TrialPoint
from deltasae_ray.tracking.views import SERVE
from tests.browser.servers import mlflow_server
from tests.report.made import make

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GRID = [(rank, d_sae, layer) for rank in (4, 16) for d_sae in (256, 512) for layer in (9, 12)]
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"
AXES = ["rank", "layer", "d_sae", "missing_share"]
PATIENCE = 120_000
"""Milliseconds that a page of MLflow may take on a busy machine."""


def share(rank: int, d_sae: int, layer: int) -> float:
    return round(0.3 + rank / 50 + layer / 100 - d_sae / 5000, 4)


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """First word of a view's name → its link to a server that has eight leaf runs and two adapters; "Report" →
    that to the page among the artifacts of the sweep."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(TrackingConfig(), Storage(str(root / "study")))
    artifacts = root / "files"
    artifacts.mkdir()
    (artifacts / "report.html").write_text(render(make()))
    with tracker.sweep("demo", "study") as sweep:
        sweep.log_artifacts(artifacts)
        for rank in (4, 16):
            with tracker.adapter(f"r{rank}", rank, sweep.run_id) as adapter:
                adapter.log_measures({"kl.domain": Measure(rank / 100)})
        for rank, d_sae, layer in GRID:
            point = TrialPoint(f"r{rank}", d_sae, 8, "topk", rank)
            with (
                tracker.trial(point, sweep.run_id) as trial,
                tracker.leaf(point.leaf(layer, 0, "toy reference"), trial.run_id) as leaf,
            ):
                leaf.log_measures(
                    {"missing_share": Measure(share(rank, d_sae, layer), null=1.0), "fvu": Measure(0.3)}
                )
    views = tracker.save_views("demo", "missing_share", ["kl.domain"])
    with mlflow_server(root, backend=tracker.uri) as uri:
        found = {name.split()[0]: link.replace(SERVE, uri) for name, link in views.items()}
        experiment = found["Charts"].split("/experiments/")[1].split("/")[0].split("?")[0]
        run = f"{uri}/#/experiments/{experiment}/runs/{sweep.run_id}/artifacts/report.html"
        yield found | {"Report": run}


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page()
    page.set_default_timeout(PATIENCE)
    yield page
    page.close()


def open_link(page: Page, link: str, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.goto(link)


def test_the_link_to_the_charts_draws_every_leaf(links: dict[str, str], page: Page) -> None:
    open_link(page, links["Charts"], 1500, 2400)
    page.wait_for_function(f"{PLOTS}.filter(p => p.data[0].x?.length == {len(GRID)}).length == 3")
    drawn = page.evaluate(f"{PLOTS}.map(p => [p.data[0].type, p.data[0].x, p.data[0].y, p.data[0].z || []])")
    axes = page.evaluate(f"{PLOTS}.map(p => [p.layout.xaxis.title.text, p.layout.yaxis.title.text])")
    assert axes == [["rank", "missing_share"], ["layer", "missing_share"], ["rank", "d_sae"]]
    by_rank = sorted((int(x), y) for x, y in zip(drawn[0][1], drawn[0][2], strict=True))
    assert by_rank == sorted((rank, share(rank, d_sae, layer)) for rank, d_sae, layer in GRID)
    contour = sorted(zip(map(int, drawn[2][1]), map(int, drawn[2][2]), drawn[2][3], strict=True))
    assert drawn[2][0] == "contour"
    assert contour == sorted((rank, d_sae, share(rank, d_sae, layer)) for rank, d_sae, layer in GRID)
    labels = "[...document.querySelectorAll('.parcoords .dimension .label')].map(e => e.textContent)"
    page.wait_for_function(
        f"() => {{const found = {labels}; return {AXES}.every(axis => found.includes(axis))}}"
    )


def test_the_link_to_the_table_lists_leaves_in_the_chosen_columns(links: dict[str, str], page: Page) -> None:
    open_link(page, links["Dictionaries"], 2400, 1000)
    rows = "document.querySelectorAll('.ag-center-cols-container .ag-row').length"
    page.wait_for_function(f"{rows} == {len(GRID)}")
    heads = {text.strip() for text in page.locator(".ag-header-cell").all_inner_texts()}
    assert {"adapter", "rank", "layer", "d_sae", "k", "seed", "missing_share", "fvu"} <= heads
    assert "Dictionaries · demo" in page.inner_text("body"), "the view has its name in the menu"


def test_the_link_to_the_behaviours_draws_a_bar_for_each_adapter(links: dict[str, str], page: Page) -> None:
    open_link(page, links["Behaviours"], 1500, 1000)
    page.wait_for_function(f"{PLOTS}.length == 1")
    assert sorted(page.evaluate(f"{PLOTS}[0].data.flatMap(d => d.x)")) == [0.04, 0.16]


def test_the_report_works_among_the_artifacts_of_a_run(links: dict[str, str], page: Page) -> None:
    errors: list[str] = []
    page.on(
        "console",
        lambda m: m.type == "error" and "Failed to load resource" not in m.text and errors.append(m.text),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_link(page, links["Report"], 1500, 1000)
    report = page.frame_locator("iframe")
    report.locator("#study-panels svg").first.wait_for()
    report.locator("#tab-latents").click()
    report.locator("#latent-table tbody tr").first.click()
    assert report.locator("#latent h3").inner_text().startswith("latent 30 of")
    assert report.locator("#latent .context").count() == 10
    assert errors == []
