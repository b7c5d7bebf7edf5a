"""The page in a real headless Chromium: it renders, reports nothing, folds, filters, and its figures are the plan's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from browser import READY
from playwright.sync_api import Page
from shown import plan

from partitioner import Plan
from tools.figures.figures import mfu, rate
from tools.screen import number, percent, seconds, size
from tools.show.html_page import page

MOST_BYTES = 3_000_000


class Opened:
    """A plan's page in a tab, what it reported and what it asked of the network."""

    def __init__(self, tab: Page, plan: Plan, path: Path) -> None:
        self.tab, self.said, self.asked = tab, list[str](), list[str]()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda m: self.said.append(m.text) if m.type in ("warning", "error") else None)
        tab.on("pageerror", lambda e: self.said.append(str(e)))
        tab.on("request", lambda r: self.asked.append(r.url))
        path.write_text(page(plan))
        tab.goto(path.as_uri())
        tab.wait_for_function(READY)

    def count(self, selector: str) -> int:
        return self.tab.locator(selector).count()

    def text(self, selector: str) -> str:
        return self.tab.locator(selector).first.inner_text()


@pytest.fixture(scope="module")
def opened(tab: Page, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tab, plan(), tmp_path_factory.mktemp("page") / "plan.html")


def test_it_renders_without_a_word_or_a_request(opened: Opened) -> None:
    assert opened.count(".bk-Figure") == 5
    opened.tab.wait_for_timeout(300)
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "blob:", "data:"))] == []


def test_its_figures_are_the_plans(opened: Opened) -> None:
    cost = plan().cost
    for name, wanted in (
        ("step", seconds(cost.step_seconds)), ("tokens/s", number(rate(plan()))),
        ("MFU", percent(mfu(plan()))), ("bubble", percent(cost.bubble_seconds / cost.step_seconds)),
    ):  # fmt: skip
        assert opened.text(f'[data-figure="{name}"]') == wanted
    assert opened.text('[data-figure="memory"]').startswith(size(cost.peak_bytes))
    drawn = opened.tab.evaluate(
        "Bokeh.documents[0].roots().flatMap((r) => r.renderers || [])"
        ".filter((r) => ['forward', 'backward'].includes(r.name))"
        ".map((r) => r.data_source.data.rank.length).reduce((a, b) => a + b)"
    )
    assert drawn == 2 * len(plan().decisions.stages) * plan().parallelism.micro_batches
    top = opened.tab.evaluate("Math.max(...Bokeh.documents[0].get_model_by_name('memory').data.transient)")
    assert top == pytest.approx(cost.peak_bytes / 1e6, rel=1e-3)


def test_memory_is_that_of_the_rank_that_is_asked_for(opened: Opened) -> None:
    top = "Math.max(...Bokeh.documents[0].get_model_by_name('memory').data.transient)"
    before = opened.tab.evaluate(top)
    opened.tab.select_option("#rank", "1" if opened.tab.input_value("#rank") == "0" else "0")
    assert opened.tab.evaluate(top) < before
    assert opened.said == []


def test_it_folds_and_opens(opened: Opened) -> None:
    opened.tab.check("#fold")
    folded = opened.count("#canvas g.node")
    opened.tab.uncheck("#fold")
    shown = opened.count("#canvas g.node")
    assert folded < 10 < shown
    opened.tab.fill("#search", "like blocks.0")
    opened.tab.press("#search", "Enter")
    opened.tab.fill("#search", "")
    opened.tab.locator("#canvas g.node.chosen").click()
    assert "blocks.0 .. blocks.3 (x 4)" in opened.text("#details")
    opened.tab.click("text=open this block op by op")
    assert opened.count("#canvas g.node") > len(plan().blocks[1].ops)
    assert "every op" in opened.text("#crumbs")
    opened.tab.click("#crumbs a")
    assert opened.count("#canvas g.node") == shown


def test_an_op_tells_its_layouts_its_cost_and_why(opened: Opened) -> None:
    op = next(op for op in plan().blocks[1].ops if op.op == "aten.linear.default")
    opened.tab.fill("#search", "attention.qkv: linear")
    assert opened.text("#hits") == "1 found"
    opened.tab.press("#search", "Enter")
    told = opened.text("#details")
    assert op.others
    times = (seconds(op.forward_seconds), seconds(op.backward_seconds), f"+{seconds(op.others[0].seconds)}")
    assert [word for word in (*op.inputs, *times) if word not in told] == []
    opened.tab.fill("#search", "")
    assert opened.count("#canvas .dimmed") == 0


def test_the_graph_pans_and_zooms(opened: Opened) -> None:
    box = "document.querySelector('#canvas svg').getAttribute('viewBox')"
    opened.tab.click("text=fit")
    before = opened.tab.evaluate(box)
    opened.tab.click("text=+")
    near = opened.tab.evaluate(box)
    assert float(near.split()[2]) < float(before.split()[2])
    opened.tab.locator("#canvas").hover()
    opened.tab.mouse.down()
    opened.tab.mouse.move(300, 400)
    opened.tab.mouse.up()
    assert opened.tab.evaluate(box).split()[2:] == near.split()[2:]
    assert opened.tab.evaluate(box).split()[:2] != near.split()[:2]


def test_candidates_are_filtered_and_sorted(opened: Opened) -> None:
    rows = "#candidates tbody tr"
    every = {repr(c): c for c in (*plan().candidates, *plan().front)}.values()
    assert opened.count(rows) == len(every) > 2
    assert opened.text(f"{rows}.chosen").split("\t")[-2] == seconds(plan().cost.step_seconds)
    small = sum(c.parallelism.micro_batch == 1 for c in every)
    opened.tab.select_option('[data-column="micro-batch"]', "1")
    assert 0 < opened.count(rows) == small < len(every)
    opened.tab.select_option('[data-column="micro-batch"]', "")
    opened.tab.click("#candidates th >> text=memory")
    first = opened.text(rows).split("\t")
    assert size(min(c.peak_bytes for c in every)) in first


def test_it_is_dark_where_the_reader_is(opened: Opened) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.tab.evaluate(ground)
    opened.tab.emulate_media(color_scheme="dark")
    opened.tab.wait_for_function(f"{ground} !== '{light}'")
    opened.tab.click("#theme")
    assert opened.tab.evaluate(ground) == light


def test_names_from_a_hostile_file_run_nothing(tab: Page, tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    model = plan().model | {"entry": bad}
    first, *rest = plan().blocks
    op = replace(first.ops[0], module=bad, op=f"aten.{bad}.default")
    blocks = (replace(first, ops=(op, *first.ops[1:])), *rest)
    opened = Opened(tab, replace(plan(), model=model, blocks=blocks, notes=(bad,)), tmp_path / "bad.html")
    tab.wait_for_timeout(300)
    assert tab.title() == bad
    assert not any(url.endswith("/x") for url in opened.asked)
    assert tab.evaluate("document.querySelectorAll('img[src=x]').length") == 0


def test_the_page_is_small() -> None:
    assert 1_000_000 < len(page(plan()).encode()) < MOST_BYTES
