"""A tab of a headless browser, for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import CHROMIUM, OPTIONS
from playwright.sync_api import Page, sync_playwright


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: install it to look at pages")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser.new_page(viewport={"width": 1300, "height": 900})
        browser.close()
