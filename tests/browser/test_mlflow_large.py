"""A study of 500 dictionaries in MLflow's page: the views that it prints open quickly."""

import os
import time
from collections.abc import Iterator
from itertools import product

import pytest
from playwright.sync_api import Browser

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.storage import Storage
from deltasae_ray.tracking import Tracker, TrackingConfig, TrialPoint
from deltasae_ray.tracking.views import SERVE
from tests.browser.servers import mlflow_server

pytestmark = [pytest.mark.prove, pytest.mark.browser]
FIGURES = ("visible_share", "missing_share", "monitor_r2", "coactivation", "max_cosine_weighted")
CHART_RUNS, LIMIT_S = 100, 5.0
ROWS = "document.querySelectorAll('.ag-center-cols-container .ag-row').length > 10"
PLOTS = (
    "[...document.querySelectorAll('.js-plotly-plot')]"
    f".filter(p => p.data[0].x?.length == {CHART_RUNS}).length >= 2"
)


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """First word of a view's name → its link to a server with 500 leaf runs of 20 metrics each."""
    root = tmp_path_factory.mktemp("mlflow")
    tracker = Tracker(TrackingConfig(), Storage(str(root / "study")))
    with tracker.sweep("demo", "study") as sweep:
        for rank, d_sae in product((2, 4, 8, 16, 32), (256, 512, 1024, 2048, 4096)):
            point = TrialPoint(f"r{rank}", d_sae, 8, "topk", rank)
            with tracker.trial(point, sweep.run_id) as trial:
                for layer, seed in product(range(4, 20, 4), range(5)):
                    share = Measure(0.02 * layer + seed / 50, null=0.01, ci=(0.0, 0.9), n=50)
                    with tracker.leaf(point.leaf(layer, seed, "toy reference"), trial.run_id) as leaf:
                        leaf.log_measures(dict.fromkeys(FIGURES, share))
    views = tracker.save_views("demo", "visible_share", [])
    with mlflow_server(root, backend=tracker.uri) as uri:
        yield {name.split()[0]: link.replace(SERVE, uri) for name, link in views.items()}


@pytest.mark.parametrize(("view", "there"), [("Dictionaries", ROWS), ("Charts", PLOTS)])
def test_a_view_of_500_dictionaries_opens_within_5_seconds(
    chromium: Browser, links: dict[str, str], view: str, there: str
) -> None:
    seconds, work = [], []
    for _ in range(3):  # the first fills the server's caches
        page = chromium.new_page(viewport={"width": 1500, "height": 2400})
        page.set_default_timeout(120_000)
        ticks = page.context.new_cdp_session(page)
        ticks.send("Performance.enable", {"timeDomain": "threadTicks"})
        start = time.monotonic()
        page.goto(links[view])
        page.wait_for_function(there)
        seconds.append(round(time.monotonic() - start, 1))
        figures = {m["name"]: m["value"] for m in ticks.send("Performance.getMetrics")["metrics"]}
        work.append(round(figures["TaskDuration"], 1))
        page.close()
    load = os.getloadavg()[0]
    print(f"{view}: opened in {seconds} s (its page worked {work} s); load average {load:.1f}")  # noqa: T201 - evidence
    assert min(seconds) < LIMIT_S
