"""What goes to the terminal: rich tables on standard output, progress and errors on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from partitioner.whole_files import write_whole

SHORT = 12


def output() -> Console:
    """Standard output; outside a terminal plain and 120 columns wide."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def errors() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def error_line(text: str) -> None:
    """One line that names what is wrong."""
    sys.stderr.write(f"partitioner: {' '.join(text.split())}\n")


@contextmanager
def status(first: str) -> Generator[Callable[[str], None]]:
    """A spinner on standard error when it is a terminal; yields a function that changes its text."""
    console = errors()
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(escape(first)) as spinner:
        yield lambda text: spinner.update(escape(text))


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], words: Iterable[str] = ()) -> Table:
    """A table whose first column is words and the others figures, except ``words``; in a narrow terminal only long
    cells are folded."""
    cells, words = [list(row) for row in rows], set(words)
    made = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for n, column in enumerate(columns):
        short = all(len(row[n]) <= SHORT for row in cells)
        justify = "left" if n == 0 or column in words else "right"
        made.add_column(escape(column), justify=justify, overflow="fold", no_wrap=short)
    for row in cells:
        made.add_row(*map(escape, row))
    return made


def written(path: str, text: str) -> str:
    """``path``, with ``text`` in it; raises InputError when it can't be written."""
    write_whole(path, text)
    return path


def seconds(value: float) -> str:
    """Seconds in the unit that reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return "0" if not value else f"{value / 1e-6:.3g} us"


def number(value: float) -> str:
    """Four digits that count, thousands apart: ``1,899,000``, ``21.54``."""
    return f"{float(f'{value:.4g}'):,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """``4.7 %``."""
    return f"{100 * share:.1f} %"


def size(value: float) -> str:
    """Bytes in decimal units."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= one:
            return f"{value / one:.3g} {unit}"
    return f"{value:.0f} B"
