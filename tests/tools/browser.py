"""A headless browser, and when a page in it is ready."""

from __future__ import annotations

import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
READY = "window.Bokeh && Bokeh.documents.length && Bokeh.documents.every((d) => d.is_idle)"
