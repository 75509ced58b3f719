"""The links that a study prints open MLflow's page on its runs, with their charts drawn; in a fresh profile,
against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.storage import Storage
from deltasae_ray.tracking import Tracker, TrackingConfig, TrialPoint
from deltasae_ray.tracking.views import SERVE
from tests.browser.chromium import Page, browser
from tests.browser.servers import mlflow_server

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GRID = [(rank, d_sae, layer) for rank in (4, 16) for d_sae in (256, 512) for layer in (9, 12)]
PLOTS = "[...document.querySelectorAll('.js-plotly-plot')]"


def share(rank: int, d_sae: int, layer: int) -> float:
    return round(0.3 + rank / 50 + layer / 100 - d_sae / 5000, 4)


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """First word of a view's name → its link to a server that has eight leaf runs and two adapters; a folder."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(TrackingConfig(), Storage(str(root / "study")))
    with tracker.sweep("demo", "study") as sweep:
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
        yield {name.split()[0]: link.replace(SERVE, uri) for name, link in views.items()}, root


@pytest.fixture(scope="module")
def page(links: tuple[dict[str, str], Path]) -> Iterator[Page]:
    with browser(links[1] / "profile") as page:
        yield page


def test_the_link_to_the_charts_draws_every_leaf(links: tuple[dict[str, str], Path], page: Page) -> None:
    page.open(links[0]["Charts"], 1500, 2400)
    page.wait_for(f"{PLOTS}.filter(p => p.data[0].x?.length == {len(GRID)}).length == 3", 120)
    drawn = page.ask(f"{PLOTS}.map(p => [p.data[0].type, p.data[0].x, p.data[0].y, p.data[0].z || []])")
    axes = page.ask(f"{PLOTS}.map(p => [p.layout.xaxis.title.text, p.layout.yaxis.title.text])")
    assert axes == [["rank", "missing_share"], ["layer", "missing_share"], ["rank", "d_sae"]]
    by_rank = sorted((int(x), y) for x, y in zip(drawn[0][1], drawn[0][2], strict=True))
    assert by_rank == sorted((rank, share(rank, d_sae, layer)) for rank, d_sae, layer in GRID)
    contour = sorted(zip(map(int, drawn[2][1]), map(int, drawn[2][2]), drawn[2][3], strict=True))
    assert drawn[2][0] == "contour"
    assert contour == sorted((rank, d_sae, share(rank, d_sae, layer)) for rank, d_sae, layer in GRID)
    names = "[...document.querySelectorAll('.parcoords .dimension .label')].map(e => e.textContent)"
    assert set(page.wait_for(f"(n => n.length && n)({names})")) >= {"rank", "layer", "d_sae", "missing_share"}


def test_the_link_to_the_table_lists_leaves_in_the_chosen_columns(
    links: tuple[dict[str, str], Path], page: Page
) -> None:
    page.open(links[0]["Dictionaries"], 2400, 1000)
    rows = "[...document.querySelectorAll('.ag-center-cols-container .ag-row')].length"
    page.wait_for(f"{rows} == {len(GRID)}", 60)
    heads = page.ask("[...document.querySelectorAll('.ag-header-cell')].map(e => e.innerText.trim())")
    assert {"adapter", "rank", "layer", "d_sae", "k", "seed", "missing_share", "fvu"} <= set(heads)
    assert "Dictionaries · demo" in page.ask("document.body.innerText"), "the view has its name in the menu"


def test_the_link_to_the_behaviours_draws_a_bar_for_each_adapter(
    links: tuple[dict[str, str], Path], page: Page
) -> None:
    page.open(links[0]["Behaviours"], 1500, 1000)
    page.wait_for(f"{PLOTS}.length == 1", 120)
    assert sorted(page.ask(f"{PLOTS}[0].data.flatMap(d => d.x)")) == [0.04, 0.16]
