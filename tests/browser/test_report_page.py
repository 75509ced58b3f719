"""The report in a real browser: no request, no overflow, nothing to complain of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasae_ray.report.page import render
from tests.browser.chromium import Page, browser
from tests.report.made import make

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    root = tmp_path_factory.mktemp("report")
    (root / "report.html").write_text(render(make()))
    with browser(root / "profile") as page:
        yield page, f"file://{root / 'report.html'}"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (320, False), (1280, True)])
def test_the_page_fits_its_window_and_asks_for_nothing_else(
    tab: tuple[Page, str], width: int, dark: bool, tmp_path: Path
):
    page, address = tab
    page.open(address, width, 900, dark=dark)
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.requests == [address]
    assert page.errors == []
    assert page.picture(tmp_path / "page.png").stat().st_size > 50_000


def test_its_style_is_applied_under_its_own_policy(tab: tuple[Page, str]):
    page, address = tab
    page.open(address, 1280)
    assert page.ask("getComputedStyle(document.querySelector('figure .legend')).display") == "flex"
    assert page.ask("getComputedStyle(document.querySelector('svg .dot.s0')).fill") == "rgb(31, 98, 173)"


@pytest.mark.parametrize("width", [1280, 400])
def test_text_in_figures_stays_legible_and_inside_its_panel(tab: tuple[Page, str], width: int):
    page, address = tab
    page.open(address, width)
    heights = page.ask(
        "[...document.querySelectorAll('.plot svg text')].map(t => t.getBoundingClientRect().height)"
    )
    assert min(heights) >= 11
    outside = page.ask(
        "[...document.querySelectorAll('.plot svg')].flatMap(s => { const f = s.getBoundingClientRect();"
        "return [...s.querySelectorAll('text')].filter(t => { const b = t.getBoundingClientRect();"
        "return b.left < f.left - 1 || b.right > f.right + 1; })"
        ".map(t => t.textContent); })"
    )
    assert outside == []


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_the_page(tab: tuple[Page, str], dark: bool):
    """WCAG AA: a contrast of at least 4.5 for words."""
    page, address = tab
    page.open(address, 1280, dark=dark)
    lowest = page.ask("""(() => {
      const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = c => { const [r, g, b] = parse(c).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      const inks = [...document.querySelectorAll('p, td, th, h1, h2, h3, dd, dt, li, small, em, cite, summary, text')]
        .map(e => light(e.tagName == 'text' ? getComputedStyle(e).fill : getComputedStyle(e).color));
      return Math.min(...inks.map(ink => (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05)));
    })()""")
    assert lowest >= 4.5
