"""``partitioner from``: a framework's configuration as a plan, and what of it was understood."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from partitioner.hardware.checked_table import cut
from tools.configs.file_model import PLAIN_MODEL, model_of, with_options
from tools.configs.make_plan import as_large, check_mesh, checked, cluster_of, plan_for
from tools.dialects.configuration import DEGREES, Reading
from tools.dialects.documents import text_of
from tools.dialects.known import DIALECTS
from tools.figures.card import summary
from tools.screen import output, status, table

_LONGEST = 40


def from_command(options: argparse.Namespace) -> int:
    """Read, search under the file's decisions, show what was understood, write the plan."""
    checked(options)
    dialect = DIALECTS[options.framework]
    cluster = cluster_of(options, dialect.software)
    reading = dialect.read(text_of(options.file), options.file)
    with status(f"loading {options.model or PLAIN_MODEL}") as say:
        found = dialect.settle(with_options(reading.configuration, options), reading.configuration.layers)
        cluster = as_large(cluster, options, found)
        check_mesh(found, cluster, dialect)
        model = model_of(options, reading, found, cluster, say)
        asked = plan_for(options, dialect, reading, cluster, model, say)
    if options.output:
        asked.plan.stamped().save(options.output)
    console = output()
    console.print(summary(asked.plan))
    console.print(understood(reading, reading.sizes if options.model else ()))
    for line in told(reading):
        console.print(line, markup=False)
    if options.output:
        console.print(f"written to {options.output}", markup=False)
    return 0


def understood(reading: Reading, without: tuple[str, ...] = ()) -> object:
    """Each key that decides something, its value, and what it decides."""
    rows = [
        [key, short(value), ", ".join(map(field_words, fields))]
        for key, value, fields in reading.taken if key not in without
    ]  # fmt: skip
    return table("understood", ("key", "value", "decides"), rows, words=("value", "decides"))


def told(reading: Reading) -> Iterable[str]:
    """What no plan hangs on, and what nobody knows."""
    if reading.unread:
        yield f"no plan hangs on {len(reading.unread)} more: {_some(reading.unread)}"
    if reading.unknown:
        yield f"not known, and not in the plan: {', '.join(reading.unknown)}"


def field_words(field: str) -> str:
    """A field of a Configuration as people say it."""
    return DEGREES.get(field, field.replace("_", "-") if field == "micro_batch" else field.replace("_", " "))


def short(value: Any) -> str:
    """A value in a cell."""
    text = "" if value is True else " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return cut(text) if len(text) <= _LONGEST else f"{cut(text)[:_LONGEST]}..."


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
