"""Pictures of a report page: `python -m tests.browser.pictures runs/demo/report.html docs` makes those of the
documentation."""

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

OPENED = "#latent-table tr.opens"
PICTURES: dict[str, tuple[int, int, Literal["light", "dark"], str]] = {
    "report": (1280, 800, "light", ""),
    "report-dark": (1280, 800, "dark", ""),
    "report-narrow": (390, 844, "light", ""),
    "report-latent": (1280, 900, "light", OPENED),
}
"""Name → width, height, colour scheme, and what is opened first."""


def pictures(browser: Browser, page_file: Path, folder: Path) -> list[Path]:
    """Writes a PNG of each, as the window shows it."""
    made = []
    for name, (width, height, scheme, opened) in PICTURES.items():
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.goto(page_file.resolve().as_uri())
        page.wait_for_selector("#study-panels svg")
        if opened:
            open_first_latent(page)
        made.append(folder / f"{name}.png")
        page.screenshot(path=made[-1])
        page.close()
    return made


def open_first_latent(page: Page) -> None:
    """Opens the most worrying latent of the table."""
    page.click("#tab-latents")
    page.click(f"{OPENED} td:nth-child(2)")
    page.wait_for_selector("#latent .context")


if __name__ == "__main__":
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for picture in pictures(chromium, Path(sys.argv[1]), Path(sys.argv[2])):
            sys.stdout.write(f"{picture}\n")
        chromium.close()
