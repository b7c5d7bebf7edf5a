"""``partitioner to``: a plan as another framework's configuration, and all that it decides and the file can't say."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from partitioner import Plan
from tools.configs.from_command import field_words
from tools.configs.of_plan import configuration_of, stage_blocks, unsaid
from tools.configs.tp_plan import styles
from tools.dialects.configuration import SIZES, TRAITS, Configuration
from tools.dialects.dialect import Dialect
from tools.dialects.known import DIALECTS
from tools.screen import written

_CHANGES = ("pipeline", "data", "context", "tensor", "schedule", "virtual", "stages", "zero", "recompute", "precision",
            "micro_batch", "sequence_parallel")  # fmt: skip


def to_command(options: argparse.Namespace) -> int:
    """Write the file, or print it; what it does not say stands on standard error, and in the file as comments."""
    plan = Plan.load(options.plan)
    if options.framework not in DIALECTS:
        text, said = _tp_plan(plan)
    else:
        text, said = configuration(plan, DIALECTS[options.framework])
    for line in said:
        sys.stderr.write(f"not said: {line}\n")
    if options.output:
        written(options.output, text)
        sys.stdout.write(f"written to {options.output}\n")
    else:
        sys.stdout.write(text)
    return 0


def configuration(plan: Plan, dialect: Dialect) -> tuple[str, list[str]]:
    """A plan as a file of a framework, and what it decides that the file does not say, one line each."""
    asked = configuration_of(plan, dialect.software)
    said_of = {field for row in dialect.rows for field in row.fields}
    asked = replace(asked, **{name: None for name in TRAITS if name not in said_of})
    said = [*_other_software(plan, dialect.software), *unsaid(plan), *_untold(asked, dialect, plan)]
    said += [*_sizes(asked, dialect)]
    return dialect.form.dump(dialect.written(asked), [f"not said here: {line}" for line in said]), said


def _untold(asked: Configuration, dialect: Dialect, plan: Plan) -> Iterator[str]:
    """What is read back otherwise."""
    elsewhere = dict(dialect.elsewhere)
    for field, again in dialect.untold(asked, sum(stage_blocks(plan))).items():
        if field in SIZES:
            continue
        value = getattr(asked, field)
        if field in elsewhere:
            yield f"{field_words(field)} {_word(value)}: set it in {elsewhere[field]}"
        elif again is None:
            yield f"{field_words(field)} {_word(value)}: {dialect.name} has no key of it"
        else:
            step = ", which changes the step" if field in _CHANGES else ""
            yield f"{field_words(field)} {_word(value)}: {dialect.name} does {_word(again)}{step}"


def _sizes(asked: Configuration, dialect: Dialect) -> Iterator[str]:
    told = any("hidden" in row.fields for row in dialect.rows)
    if asked.hidden is None or not told:
        yield f"the model: {dialect.name} {'needs its sizes' if told else 'has it in code'}"


def _other_software(plan: Plan, software: str) -> Iterator[str]:
    own = plan.machine.software
    if own.name != software:
        yield f"the plan was priced for {own.title}: plan --for {software} prices what this runs"


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "that of the model"


def _tp_plan(plan: Plan) -> tuple[str, list[str]]:
    found, said = styles(plan)
    return json.dumps(found, indent=2) + "\n", said
