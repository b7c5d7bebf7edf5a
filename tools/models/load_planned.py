"""The model that a plan names, loaded; says on standard error which entry point it imports."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from partitioner import Plan
from partitioner.errors import InputError
from tools.models.load import Source, load


def load_plan(plan: Plan, meta: bool = False) -> Source:
    """The model that a plan was made for, with a batch of its size unless it lies on ``meta``; raises InputError where
    the plan names none."""
    return load_model(plan.model, None if meta else plan.global_batch, meta)


def load_model(model: Mapping[str, Any], batch: int | None = None, meta: bool = False) -> Source:
    """What a plan says of its model, loaded."""
    if not model.get("entry"):
        raise InputError("the plan names no model to load: make it with partitioner plan MODEL")
    sys.stderr.write(f"importing {model['entry']}\n")
    with of_the_plan():
        return load(model["entry"], model["settings"], seq=model.get("seq"), batch=batch, meta=meta)


@contextmanager
def of_the_plan() -> Generator[None]:
    """What is wrong with a model is said to be of what the plan names."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the plan's asked.model: {error}") from error
