"""``partitioner compare``: plans and runs side by side, the best of each row marked, the differences in words."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterator

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from partitioner.errors import InputError
from tools.compare import baselines, sensitivity, why_not
from tools.compare.explain import explain, off
from tools.compare.html_page import compare_page
from tools.figures.card import stale_words
from tools.figures.columns import WORDS, Column, as_json, load_all, shown_rows, winners
from tools.screen import error_line, output, size, table, written


def compare_command(options: argparse.Namespace) -> int:
    """Set the columns side by side in the form that was asked for."""
    if options.json + options.markdown + options.csv > 1:
        raise InputError("--json, --markdown and --csv each print a whole document: give one of them")
    columns = load_all(options.files)
    columns += baselines.columns(columns[0], options.baseline)
    columns += [why_not.column(columns[0], pin) for pin in options.why_not]
    if len(columns) < 2 and not (options.sensitivity or columns[0].report):
        raise InputError("compare takes two files, or one and --baseline, --why-not or --sensitivity")
    for column in columns:
        if column.plan and column.plan.stale:
            error_line(f"{column.name}: {stale_words(column.plan)}")
    told = [*baselines.assumptions(options.baseline), *explanations(columns)]
    if options.sensitivity:
        told += sensitivity.lines([column for column in columns if column.plan])
    if options.html:
        page = compare_page(columns, told)
        output().print(f"{written(options.html, page)}: {size(len(page.encode()))}", markup=False)
    elif options.json:
        options.document(as_json(columns, told))
    elif options.markdown:
        sys.stdout.write(markdown(columns, told))
    elif options.csv:
        sys.stdout.write(comma_separated(columns))
    else:
        output().print(side_by_side(columns))
        for line in told:
            output().print(Padding(Text(line.strip()), (0, 0, 0, len(line) - len(line.lstrip()))))
        if not options.baseline and columns[0].plan:
            names = " ".join(baselines.RULES)
            output().print(f"--baseline {names} sets plans by rules of thumb beside these", style="dim")
    return 0


def explanations(columns: list[Column]) -> Iterator[str]:
    """From the fastest plan to each other column; of each run what was off."""
    ranked = [column for column in columns if column.kind != "infeasible"]
    plans = [column for column in ranked if column.plan] or ranked
    best = min(plans, key=lambda column: column.values["step"] or 0.0)
    for column in columns:
        if column is not best:
            yield from explain(best, column)
    for column in columns:
        if column.report:
            yield f"{column.name}, predicted against measured:"
            yield from off(column.report)


def cells(columns: list[Column]) -> Iterator[tuple[str, list[str], set[str]]]:
    """Each row's name, its words by column, and the columns that win it."""
    for name in WORDS:
        yield name, [column.words.get(name, "") for column in columns], set()
    for row in shown_rows(columns):
        values = [column.values.get(row.name) for column in columns]
        yield row.name, ["" if v is None else row.words(v) for v in values], winners(columns, row)


def side_by_side(columns: list[Column]) -> Table:
    """The rich table; the best of a row in bold and starred."""
    made = table("predicted, but for runs" if any(c.report for c in columns) else "predicted", ("",), [])
    for column in columns:
        made.add_column(Text(f"{column.name}{' (run)' if column.report else ''}"), justify="right", overflow="fold")
    for name, words, best in cells(columns):
        pairs = zip(columns, words, strict=True)
        marked = [Text(f"{word} *", "bold green") if c.name in best else Text(word) for c, word in pairs]
        made.add_row(name, *marked)
    return made


def markdown(columns: list[Column], told: list[str]) -> str:
    """A Markdown table, the best of a row in bold, and the explanations as a list."""
    lines = [f"| | {' | '.join(_piped(c.name) for c in columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, words, best in cells(columns):
        marked = [f"**{_piped(w)}**" if c.name in best else _piped(w) for c, w in zip(columns, words, strict=True)]
        lines.append(f"| {name} | {' | '.join(marked)} |")
    lines += ["", *(f"{'  ' if line.startswith(' ') else ''}* {line.strip()}" for line in told)]
    return "\n".join(lines) + "\n"


def _piped(text: str) -> str:
    return text.replace("|", "\\|")


def comma_separated(columns: list[Column]) -> str:
    """A row a figure, a column each; figures as numbers."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["", *(column.name for column in columns)])
    for name in WORDS:
        writer.writerow([name, *(column.words.get(name, "") for column in columns)])
    for row in shown_rows(columns):
        values = [column.values.get(row.name) for column in columns]
        writer.writerow([f"{row.name} ({row.unit})", *("" if v is None else repr(float(v)) for v in values)])
    return out.getvalue()
