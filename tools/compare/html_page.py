"""Plans and runs side by side as one page that needs no network."""

from __future__ import annotations

from bokeh.embed import components

from tools.figures.columns import WORDS, Column, shown_rows, winners
from tools.show import charts
from tools.show.html_page import filled


def compare_page(columns: list[Column], told: list[str]) -> str:
    """The document."""
    feasible = [column for column in columns if column.values]
    made, legends = charts.compared(feasible)
    script, divisions = components(made)
    rows = [(name, [(c.words.get(name, ""), False) for c in columns]) for name in WORDS]
    for row in shown_rows(columns):
        best = winners(columns, row)
        values = [(c, c.values.get(row.name)) for c in columns]
        rows.append((row.name, [("" if v is None else row.words(v), c.name in best) for c, v in values]))
    words = [(line.startswith(" "), line.strip()) for line in told]
    return filled(
        "compare.html", columns=columns, rows=rows, told=words, charts=divisions, legends=legends, script=script
    )
