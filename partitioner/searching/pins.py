"""Pins: decisions that the user fixes, `tp=4`, `recompute=on`, or a layout, `blocks.*.mlp.fc=replicate`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx

from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.tied_blocks import Folded, Port
from partitioner.plan.executed import EXECUTED
from partitioner.plan.recompute_ways import FULL_RECOMPUTE, NO_RECOMPUTE
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.layout import REPLICATE, WHOLE, Placement, Shard
from partitioner.sharding.mesh_axes import DP, named, refining

_NUMBERS = ("micro_batch", "virtual", "zero", "zero_group", "recomputed")  # beside the axes of a mesh
_LAYOUTS = ("replicate", "shard", "shard:0", "shard:1")  # of a parameter; "shard" is along any dimension
_WAYS = EXECUTED["recompute"].searched(plan_only=True)
_WORDS: dict[str, dict[str, object]] = {
    "schedule": {kind: kind for kind in sorted(SCHEDULES)},
    "recompute": {"on": FULL_RECOMPUTE, "off": NO_RECOMPUTE, **{way: way for way in _WAYS}},
    "boundary": {"whole": "whole", "sharded": "sharded"},
}


@dataclass(frozen=True)
class Pins:
    """``decided``: values of decisions by name, ``layouts`` by parameter-name pattern."""

    decided: Mapping[str, object]
    layouts: Mapping[str, str]

    def admits(self, name: str, value: object) -> bool:
        """Whether a decision may have this value."""
        return name not in self.decided or self.decided[name] == value

    def number(self, name: str) -> int | None:
        """The pinned number or None."""
        found = self.decided.get(name)
        return found if isinstance(found, int) else None

    def with_whole_batch(self, global_batch: int, why: str) -> Pins:
        """Also pinned to one micro-batch that holds the whole batch; raises InputError where another is pinned."""
        whole = {DP: 1, "micro_batch": global_batch}
        for name, value in whole.items():
            if not self.admits(name, value):
                raise InputError(
                    f"pin {name}={self.decided[name]}: {why}, so that one micro-batch must hold the whole batch of "
                    f"{global_batch} (dp 1): drop the pin"
                )
        return Pins({**self.decided, **whole}, self.layouts)

    @property
    def stages(self) -> tuple[int, ...] | None:
        """The pinned number of units of each stage or None."""
        found = self.decided.get("stages")
        return found if isinstance(found, tuple) else None

    def allows(self, folded: Folded) -> Callable[[fx.Node | Port, Placement], bool]:
        """Whether a representative parameter, or what enters a block, may lie so under every pin that names it."""
        wanted: dict[fx.Node, list[str]] = {}
        for node, representative in folded.parameter.items():
            for name in folded.graph.parameters[node.meta["source"]].names:
                wanted.setdefault(representative, []).extend(w for p, w in self.layouts.items() if matches(p, name))
        boundary = self.decided.get("boundary")

        def allowed(value: fx.Node | Port, placement: Placement) -> bool:
            if isinstance(value, Port):
                return boundary is None or isinstance(placement, Shard) == (boundary == "sharded")
            return all(_fits(word, placement) for word in wanted.get(value, ()))

        return allowed


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter or a module around it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _fits(word: str, placement: Placement) -> bool:
    if word == "shard":
        return isinstance(placement, Shard)
    if word.startswith("shard:"):
        return isinstance(placement, Shard) and placement.dim == int(word.removeprefix("shard:"))
    return placement in (WHOLE, REPLICATE)


def read_pins(pins: Mapping[str, str | int], graph: Graph) -> Pins:
    """Check pins against the model; raises InputError naming the nearest known name."""
    fixed: dict[str, object] = {}
    layouts: dict[str, str] = {}
    numbers = (*named(), *refining(), *_NUMBERS)
    names = [name for info in graph.parameters.values() for name in info.names]
    for key, value in pins.items():
        word = str(value)
        if key in numbers:
            if not _is_number(word) or int(word) < (key != "zero"):
                raise InputError(f"pin {key}={word}: give a positive number")
            fixed[key] = int(word)
        elif key == "stages":
            fixed[key] = _counts(word)
        elif key in _WORDS:
            if word not in _WORDS[key]:
                raise InputError(f"pin {key}={word}: choose one of {', '.join(_WORDS[key])}")
            fixed[key] = _WORDS[key][word]
        elif any(matches(key, name) for name in names):
            if word not in _LAYOUTS:
                raise InputError(f"pin {key}={word}: choose {', '.join(_LAYOUTS[:-1])} or {_LAYOUTS[-1]}")
            layouts[key] = word
        else:
            near = difflib.get_close_matches(key, [*numbers, *_WORDS, "stages", *names], 1, 0.0)
            raise InputError(f"pin {key} names no decision and no parameter; the nearest name is {near[0]}")
    return Pins(fixed, layouts)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def _counts(word: str) -> tuple[int, ...]:
    """``9,8,8,7``: units of each stage, in order."""
    parts = word.split(",")
    if not all(_is_number(part.strip()) and int(part) > 0 for part in parts):
        raise InputError(f"pin stages={word}: give the number of units of each stage, as in 9,8,8,7")
    return tuple(int(part) for part in parts)
