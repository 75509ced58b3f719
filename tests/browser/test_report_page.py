"""The report in a real browser: what a reader sees, does and shares; no request, nothing to complain of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from deltasae_ray.report.inputs import ReportInputs
from deltasae_ray.report.latent_rows import CONTEXTS, FIGURES
from deltasae_ray.report.page import render
from tests.browser.pictures import pictures
from tests.report.made import four, make

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROWS = "#latent-table tbody tr"
MEGABYTE = 1 << 20


class Watched:
    """One tab, with all that it asked for and complained of."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, place: str = "", width: int = 1280, height: int = 800) -> Page:
        """Loads the page anew, at a place of it."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto("about:blank")
        self.requests.clear()
        self.page.goto(self.address + place)
        self.page.wait_for_selector("#study-panels svg")
        return self.page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def tab(chromium: Browser, folder: Path) -> Iterator[Watched]:
    """The page of the made study."""
    file = folder / "report.html"
    file.write_text(render(make()))
    page = chromium.new_page()
    yield Watched(page, file.as_uri())
    page.close()


@pytest.fixture(autouse=True)
def nothing_to_complain_of(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "tab" in request.fixturenames:
        assert request.getfixturevalue("tab").errors == []


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"{ROWS} td:nth-child({number})").all_text_contents()


def large(inputs: ReportInputs) -> ReportInputs:
    """Four adapters and three layers, with more latents in each than the page holds."""
    (audit, *_), (cards, *_) = inputs.audits, inputs.latents
    rows = tuple(
        replace(
            audit.rows[1 + i % 19], latent=i, rank=i, name=str(i), promoted=() if i > CONTEXTS else (" a",)
        )
        for i in range(1, FIGURES + 101)
    )
    card = cards.cards[0]
    places = [(f"r{i}", layer) for i in range(4) for layer in inputs.layers]
    return replace(
        inputs,
        audits=tuple(replace(audit, adapter=a, layer=n, rows=rows, alive=16384) for a, n in places),
        judged=(),
        latents=tuple(
            replace(cards, adapter=a, layer=n, cards=tuple(replace(card, latent=i) for i in range(1, 161)))
            for a, n in places
        ),
    )


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (320, False), (1280, True)])
def test_the_page_fits_its_window_and_asks_for_nothing_else(tab: Watched, width: int, dark: bool) -> None:
    tab.page.emulate_media(color_scheme="dark" if dark else "light")
    page = tab.open(width=width)
    for name in ("latents", "monitors", "measures", "run"):
        page.click(f"#tab-{name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert tab.requests == [tab.address]
    assert page.locator("#study-panels svg").count() == 3, "a panel for each layer"
    tab.page.emulate_media(color_scheme="light")


def test_the_first_screen_holds_the_answers_of_four_adapters(chromium: Browser, folder: Path) -> None:
    file = folder / "four.html"
    file.write_text(render(four(make())))
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto(file.as_uri())
    ends = page.evaluate("[...document.querySelectorAll('.card')].map(e => e.getBoundingClientRect().bottom)")
    assert len(ends) == 16 and max(ends) <= 800
    page.close()


def test_latents_are_sorted_filtered_and_searched(tab: Watched) -> None:
    page = tab.open("#tab=latents")
    assert column(page, 5)[:6] == ["✕ not visible"] * 6
    page.click("#latent-table th:nth-child(6) button")
    falling = [float(text.split()[0]) for text in column(page, 6)]
    assert falling == sorted(falling, reverse=True) and falling[0] > falling[-1]
    assert page.get_attribute("#latent-table th:nth-child(6)", "aria-sort") == "descending"
    page.select_option("#latent-controls label:nth-child(3) select", "partly")
    assert set(column(page, 5)) == {"◐ partly"}
    page.fill("#latent-controls input", "r16 layer 15")
    assert {(a, n) for a, n in zip(column(page, 2), column(page, 3), strict=True)} == {("r16", "15")}
    page.fill("#latent-controls input", "nothing says this")
    assert page.locator(ROWS).count() == 0
    assert page.text_content("#latent-table .pager [role=status]") == "nothing matches"


def test_a_latent_opens_with_its_text_and_its_address_can_be_shared(tab: Watched) -> None:
    page = tab.open("#tab=latents")
    page.fill("#latent-controls input", "r16 layer 12")
    page.click(f"{ROWS} >> nth=0")
    told = page.inner_text("#latent")
    assert told.startswith("latent 30 of r16, layer 12 ✕ not visible")
    for what in (
        "Taken out",
        "random directions 0.50",
        "The lens raises",
        "</script>",
        "On the base activations",
    ):
        assert what in told
    assert page.locator("#latent .context").count() == 10
    shaded = page.locator("#latent .context b.c").first.evaluate("e => getComputedStyle(e).backgroundColor")
    assert shaded not in ("", "rgba(0, 0, 0, 0)")
    address = page.evaluate("location.hash")
    assert address == "#latent=r16/12/30"
    again = tab.open(address)
    assert again.inner_text("#latent h3").startswith("latent 30 of r16, layer 12")
    assert again.evaluate("document.activeElement.tagName") == "H3"
    assert "No such latent" in tab.open("#latent=r16/12/9999").inner_text("#latent")


def test_the_keyboard_walks_the_tabs_and_every_dotted_word_explains_itself(tab: Watched) -> None:
    page = tab.open()
    page.focus("#tab-behaviours")
    for name in ("latents", "monitors", "measures"):
        page.keyboard.press("ArrowRight")
        assert page.is_visible(f"#panel-{name}") and not page.is_visible("#panel-behaviours")
    page.hover(".card .answer >> nth=2")
    assert "visible" in page.inner_text("#tip")
    page.focus(".card .term")
    assert "KL divergence" in page.inner_text("#tip")
    assert page.get_attribute(".card .term", "aria-describedby") == "tip"
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")
    page.hover("#measure-table td .term >> nth=0")
    assert "Ceiling:" in page.inner_text("#tip")


def test_the_figure_is_drawn_for_any_measure_size_and_seed(tab: Watched) -> None:
    page = tab.open()
    page.select_option("#study-controls label:nth-child(1) select", "monitor_r2")
    page.select_option("#study-controls label:nth-child(2) select", "256")
    points = page.locator("#study-panels [aria-roledescription='point']")
    page.wait_for_function(
        "document.querySelectorAll('#study-panels [aria-roledescription=point]').length == 6"
    )
    assert points.count() == 2 * 3, "adapters × layers"
    assert page.inner_text("#study-notes") != ""


def test_print_shows_every_tab(tab: Watched) -> None:
    page = tab.open()
    page.emulate_media(media="print")
    names = ("behaviours", "latents", "monitors", "measures", "run")
    assert all(page.is_visible(f"#panel-{name}") for name in names)
    assert not page.is_visible("[role=tablist]")
    page.emulate_media(media="screen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(tab: Watched, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page = tab.open("#latent=r16/12/30")
    page.evaluate("document.querySelectorAll('[role=tabpanel]').forEach(panel => (panel.hidden = false))")
    found = {
        v["id"]: [node["html"][:120] for node in v["nodes"][:3]]
        for v in Axe().run(page).response["violations"]
        if v["impact"] in ("serious", "critical")
    }
    tab.page.emulate_media(color_scheme="light")
    assert found == {}


def test_a_large_study_opens_at_once_and_says_what_it_leaves_out(chromium: Browser, folder: Path) -> None:
    file = folder / "large.html"
    file.write_text(render(large(make())))
    assert file.stat().st_size < 12 * MEGABYTE
    page = chromium.new_page()
    work = page.context.new_cdp_session(page)
    work.send("Performance.enable", {"timeDomain": "threadTicks"})  # its own time: others share these cores
    page.goto(file.as_uri())
    page.wait_for_selector("#study-panels svg")
    figures = {m["name"]: m["value"] for m in work.send("Performance.getMetrics")["metrics"]}
    assert 0 < figures["TaskDuration"] < 1.5
    page.goto(file.as_uri() + "#tab=latents")
    assert "figures of 24,000 of 196,608 living latents" in page.inner_text("#latent-held")
    held = page.text_content("#latent-limits li >> nth=0") or ""
    assert (
        "figures of 2,000 of 16,384 living latents, contexts of 100; 14,384 more are in audit.parquet" in held
    )
    assert page.inner_text("#latent-table .pager [role=status]") == "1 to 25 of 24,000"
    page.close()


def test_pictures_are_of_the_page(chromium: Browser, tab: Watched, folder: Path) -> None:
    tab.open()
    for picture in pictures(chromium, folder / "report.html", folder):
        assert picture.stat().st_size > 30_000
