"""The size of a page and how soon it can be used, in Chromium: ``python -m tools.bench.page_load PLAN...``.

From the start of loading a local file to the answer to a word typed into the page's search, charts drawn; a new browser
each time.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from partitioner import Plan
from tools.screen import output, seconds, size, table
from tools.show.html_page import page

ROUNDS = 7
READY = "window.Bokeh && Bokeh.documents.length && Bokeh.documents.every((d) => d.is_idle)"


def main(paths: list[str]) -> int:
    """A row a plan, medians."""
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            began = time.perf_counter()
            text = page(Plan.load(path))
            made, file = time.perf_counter() - began, Path(folder) / "page.html"
            file.write_text(text)
            took = [opened(file) for _ in range(ROUNDS)]
            rows.append([Path(path).stem, size(len(text.encode())), seconds(made), seconds(statistics.median(took)),
                         f"{seconds(min(took))} to {seconds(max(took))}"])  # fmt: skip
    output().print(table(f"pages, {ROUNDS} browsers each", ("plan", "size", "written in", "usable in", "range"), rows))
    return 0


def opened(file: Path) -> float:
    """Seconds until the page has drawn its charts and answers a search."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        began = time.perf_counter()
        tab.goto(file.as_uri())
        tab.wait_for_function(READY)
        tab.fill("#search", "linear")
        tab.wait_for_function("document.getElementById('hits').textContent.endsWith('found')")
        took = time.perf_counter() - began
        browser.close()
    return took


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
