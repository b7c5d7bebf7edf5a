"""Names with a * for a block's number: what holds for all blocks is written once."""

from __future__ import annotations

import re
from typing import Any


def patterns(name: str) -> list[str]:
    """A parameter's name with all its numbers as ``*``, with the first alone, and as it is."""
    number = r"(?<=\.)\d+(?=\.)|^\d+(?=\.)"
    return [re.sub(number, "*", name), re.sub(number, "*", name, count=1), name]


def by_pattern(layouts: dict[str, Any]) -> dict[str, Any]:
    """Layouts by the widest name pattern whose names all agree."""
    rows: dict[str, list[Any]] = {}
    for name, layout in layouts.items():
        for pattern in dict.fromkeys(patterns(name)):
            rows.setdefault(pattern, []).append(layout)
    agreed = {p for p, found in rows.items() if all(layout == found[0] for layout in found)}
    chosen = {next(p for p in patterns(name) if p in agreed): layout for name, layout in layouts.items()}
    return dict(sorted(chosen.items()))
