"""The edits of a plan file as pins: what ``partitioner plan --edit PLAN`` solves again around."""

from __future__ import annotations

from typing import Any

from partitioner import Plan
from partitioner.errors import InputError
from partitioner.searching.pins import matches
from partitioner.sharding.layout import Shard, parse_layout

Pins = dict[str, str | int]


def edits(plan: Plan) -> Pins:
    """Of each decision that was edited since the plan was priced, the pin that keeps it; raises InputError for one that
    no pin can keep."""
    found: Pins = {}
    for name in plan.edited:
        found |= _KEPT[name](plan) if name in _KEPT else _refused(name)
    return found


def _refused(name: str) -> Pins:
    raise InputError(f"decisions.{name} was edited, and no pin keeps that: set it back, or pin what it follows from")


def _mesh(plan: Plan) -> Pins:
    """The axes whose degree is another than the one that was priced."""
    priced = plan.candidates[0].parallelism.mesh if plan.candidates else {}
    return {axis: size for axis, size in plan.parallelism.mesh.items() if priced.get(axis) != size}


def _parameters(plan: Plan) -> Pins:
    """The patterns whose layout is another than that of a parameter that they name."""
    found: Pins = {}
    for pattern, layout in plan.decisions.parameters.items():
        own = [priced for name, priced in plan.parameters.items() if matches(pattern, name)]
        if not own:
            raise InputError(f"decisions.parameters names no parameter of the model: {pattern}")
        if any(priced != layout for priced in own):
            found[pattern] = _layout(pattern, layout)
    return found


def _layout(pattern: str, layout: Any) -> str:
    try:
        words = {f"shard:{p.dim}" if isinstance(p, Shard) else "replicate" for p in parse_layout(layout)}
    except ValueError as error:
        raise InputError(f"decisions.parameters.{pattern}: {error}") from error
    if len(words) != 1:
        raise InputError(f"decisions.parameters.{pattern}: a pin is of all axes: write the same for each")
    return words.pop()


def _recomputed(plan: Plan) -> Pins:
    """How many blocks follows from how the stages are cut and from whether there is recompute at all."""
    return {} if {"stages", "recompute"} & set(plan.edited) else _refused("recomputed")


def _boundaries(plan: Plan) -> Pins:
    """Whole or sharded, where all blocks agree."""
    layouts = []
    for name, ports in plan.decisions.boundaries.items():
        try:
            layouts += [parse_layout(words) for words in ports]
        except ValueError as error:
            raise InputError(f"decisions.boundaries.{name}: {error}") from error
    if any(len({isinstance(placement, Shard) for placement in layout}) > 1 for layout in layouts):
        raise InputError("decisions.boundaries: a pin is of all axes: write the same for each")
    sharded = {isinstance(placement, Shard) for layout in layouts for placement in layout}
    if len(sharded) != 1:
        raise InputError("decisions.boundaries differ from block to block: make them alike, or pin boundary=whole")
    return {"boundary": "sharded" if sharded.pop() else "whole"}


_KEPT = {
    "mesh": _mesh,
    "refined": lambda plan: dict(plan.parallelism.refined),
    "micro_batch": lambda plan: {"micro_batch": plan.parallelism.micro_batch},
    "schedule": lambda plan: {"schedule": plan.parallelism.schedule},
    "virtual": lambda plan: {"virtual": plan.parallelism.virtual},
    "recompute": lambda plan: {"recompute": plan.parallelism.recompute},
    "recomputed": _recomputed,
    "zero": lambda plan: {"zero": plan.parallelism.zero},
    "zero_group": lambda plan: {"zero_group": plan.parallelism.shards},
    "stages": lambda plan: {"stages": ",".join(str(len(units)) for units in plan.decisions.stages)},
    "parameters": _parameters,
    "boundaries": _boundaries,
    **dict.fromkeys(("seed", "cluster", "global_batch", "precision"), lambda plan: {}),  # taken as they are
}


def read_pins(words: list[str]) -> dict[str, str | int]:
    """``["tp=8"]`` as a dict; raises InputError for a word without ``=``."""
    pins: dict[str, str | int] = {}
    for word in words:
        key, equals, value = word.rpartition("=")
        if not equals or not key or not value:
            raise InputError(f"--pin takes name=value, not {word!r}")
        pins[key] = value
    return pins
