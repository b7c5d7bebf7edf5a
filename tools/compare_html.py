"""Plans and runs side by side as one page that needs no network."""

from __future__ import annotations

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment

from tools import charts
from tools.columns import WORDS, Column, shown_rows, winners
from tools.html import FOLDER


def compare_page(columns: list[Column], told: list[str]) -> str:
    """The document."""
    feasible = [column for column in columns if column.values]
    made, legends = charts.compared(feasible)
    script, divisions = components(made)
    template = Environment(autoescape=True).from_string((FOLDER / "compare.html").read_text())
    rows = [(name, [(c.words.get(name, ""), False) for c in columns]) for name in WORDS]
    for row in shown_rows(columns):
        best = winners(columns, row)
        values = [(c, c.values.get(row.name)) for c in columns]
        rows.append((row.name, [("" if v is None else row.words(v), c.name in best) for c, v in values]))
    return template.render(
        columns=columns, rows=rows, told=[(line.startswith(" "), line.strip()) for line in told],
        charts=divisions, legends=legends, script=script, css=(FOLDER / "page.css").read_text(),
        library=Resources(mode="inline", components=["bokeh"]).render_js(),
    )  # fmt: skip
