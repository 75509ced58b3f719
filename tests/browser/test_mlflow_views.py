"""MLflow's own comparison views plot divergence against rank, dictionary size and layer of the leaf runs."""

import json
from collections.abc import Iterator

import pytest

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.storage import Storage
from deltasae_ray.tracking import Tracker, TrackingConfig, TrialPoint
from tests.browser.chromium import Page, browser
from tests.browser.servers import mlflow_server

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GRID = [(rank, d_sae, layer) for rank in (4, 16) for d_sae in (256, 512) for layer in (9, 12)]


def share(rank: int, d_sae: int, layer: int) -> float:
    return round(0.3 + rank / 50 + layer / 100 - d_sae / 5000, 4)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The comparison page of eight leaf runs."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(TrackingConfig(), Storage(str(root / "study")))
    with tracker.sweep("demo", "study") as sweep:
        for rank, d_sae, layer in GRID:
            point = TrialPoint(f"r{rank}", d_sae, 8, "topk", rank)
            with (
                tracker.trial(point, sweep.run_id) as trial,
                tracker.leaf(point.leaf(layer, 0, "toy reference (20,000 tokens)"), trial.run_id) as leaf,
            ):
                leaf.log_measures({"missing_share": Measure(share(rank, d_sae, layer))})
    leaves = tracker.client.search_runs([tracker.experiment_id], "tags.level = 'leaf'")
    runs, experiments = json.dumps([r.info.run_id for r in leaves]), json.dumps([tracker.experiment_id])
    with mlflow_server(root, backend=tracker.uri) as uri, browser(root / "profile") as page:
        page.open(
            f"{uri}/#/compare-runs?runs={runs}&experiments={experiments}".replace(" ", "").replace(
                '"', "%22"
            ),
            1500,
            1000,
        )
        yield page


def show(page: Page, tab: str) -> None:
    found = f"[...document.querySelectorAll('[role=tab]')].find(e => e.innerText == '{tab}')"
    page.click_until(found, f"({found}).dataset.state == 'active'")


def choose(page: Page, axis: str, value: str) -> None:
    option = f"[...document.querySelectorAll('[role=option]')].find(e => e.innerText == '{value}')"
    page.click_until(
        option,
        f"document.getElementById('{axis}').innerText == '{value}'",
        opener=f"document.getElementById('{axis}')",
    )


def plotted(page: Page, what: str) -> list:
    page.wait_for("document.querySelectorAll('.js-plotly-plot').length")
    return page.ask(f"document.querySelector('.js-plotly-plot').data[0].{what}")


def test_parallel_coordinates_have_rank_size_layer_and_a_metric(comparison: Page) -> None:
    show(comparison, "Parallel Coordinates Plot")
    comparison.click_until(
        "[...document.querySelectorAll('.du-bois-light-select-item-option')].find(e => e.innerText.trim() =="
        " 'rank')",
        "document.querySelector('.js-plotly-plot').data[0].dimensions.some(d => d.label == 'rank')",
        opener="document.querySelector('[role=tabpanel][data-state=active] .du-bois-light-select-selector')",
    )
    axes = {d["label"]: d["values"] for d in plotted(comparison, "dimensions")}
    drawn = zip(*(axes[name] for name in ("rank", "d_sae", "layer", "missing_share")), strict=True)
    assert sorted(drawn) == sorted((*point, share(*point)) for point in GRID)


def test_scatter_plots_the_metric_against_rank(comparison: Page) -> None:
    show(comparison, "Scatter Plot")
    choose(comparison, "x-axis-selector", "rank")
    choose(comparison, "y-axis-selector", "missing_share")
    comparison.wait_for("JSON.stringify(document.querySelector('.js-plotly-plot').data[0].x).includes('16')")
    drawn = zip(map(int, plotted(comparison, "x")), plotted(comparison, "y"), strict=True)
    assert sorted(drawn) == sorted((rank, share(rank, d_sae, layer)) for rank, d_sae, layer in GRID)


def test_contour_plots_the_metric_over_rank_and_layer(comparison: Page) -> None:
    show(comparison, "Contour Plot")
    choose(comparison, "xaxis-selector", "rank")
    choose(comparison, "yaxis-selector", "layer")
    choose(comparison, "zaxis-selector", "missing_share")
    comparison.wait_for("document.querySelectorAll('.js-plotly-plot .contourlayer path').length")
    assert set(plotted(comparison, "x")) == {4, 16}
    assert set(plotted(comparison, "y")) == {9, 12}
