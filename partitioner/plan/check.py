"""Is this Plan legal? A plan file can be broken by hand, so what is wrong with one is an InputError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from partitioner.cluster import Cluster
from partitioner.errors import InputError
from partitioner.ops.collective_kinds import KINDS
from partitioner.plan.derived_rows import BlockRow, Cost
from partitioner.plan.executed import not_executed
from partitioner.plan.parallelism import parallelism_error
from partitioner.plan.recompute_ways import WAYS
from partitioner.precision import REAL, RECIPES
from partitioner.schedule.tables import SCHEDULES
from partitioner.sharding.layout import parse_layout
from partitioner.sharding.mesh_axes import AXES, DP, PP, named
from partitioner.software import OWN, Software

if TYPE_CHECKING:
    from partitioner.plan.plan import Asked, Decisions, Derived, Plan

_SEARCHED = ("candidates", "over_memory", "walked", "beaten_by_bound")
_OFF = 1e-3  # of the step, by which the parts may miss it
_CLUSTER = (("name",), ("nodes",), ("node_devices",), ("device", "dollars_per_hour"), ("device", "watts"))


def check_executed(plan: Plan) -> None:
    """This project's runtime can execute it; raises InputError with what it can't, or with the name of whose plan it
    is."""
    software = plan.machine.software
    if not software.is_executed:
        raise InputError(
            f"the plan is of {software.title}, which runs it: leave out --for {software.name} to plan for this "
            "project's runtime"
        )
    if refused := ", ".join(not_executed(plan.parallelism, plan.decisions.precision)):
        raise InputError(f"the plan is to look at: {refused} can't be executed yet; plan anew")


def check_trains(plan: Plan) -> None:
    """It is of a training step that can be executed; raises InputError for one of answers, too."""
    check_executed(plan)
    if plan.model.get("answers"):
        raise InputError("the plan is of answers: partitioner generate takes it; plan without --for to train or verify")


def check_plan(plan: Plan) -> None:
    """The decisions agree with one another and with the global batch; raises InputError naming those that do not."""
    own, stages = plan.parallelism, len(plan.decisions.stages)
    samples = own.mesh[DP] * own.micro_batch * own.micro_batches
    if samples != plan.global_batch:
        raise InputError(
            f"the plan's dp x micro_batch x micro_batches is {samples}, "
            f"not its global batch {plan.global_batch}: plan again"
        )
    if stages != own.stage_count:
        raise InputError(f"the plan has {stages} stages for pp {own.mesh[PP]} x virtual {own.virtual}: plan again")


def check_asked(asked: Asked, place: str) -> None:
    """What a file says of its model and cluster; raises InputError naming the field that is wrong."""
    counts: dict[str, Callable[[Any], bool]] = dict.fromkeys(("blocks", "tokens", "parameters"), _is_count)
    words: dict[str, Callable[[Any], bool]] = dict.fromkeys(("digest", "dtype", "product_dtype"), _is_word)
    others: dict[str, Callable[[Any], bool]] = {
        "entry": lambda v: v is None or _is_word(v), "settings": lambda v: v is None or isinstance(v, dict),
        "seq": lambda v: v is None or (_is_count(v) and v > 0),
    }  # fmt: skip
    for key, is_right in {**words, **counts, **others}.items():
        if not is_right(value := asked.model.get(key)):
            raise InputError(f"{place}.model.{key} has a wrong value {str(value)[:60]!r}")
    if asked.model.get("entry") and asked.model.get("settings") is None:
        raise InputError(f"the field {place}.model.settings is missing: those of its entry, {{}} for none")
    device = Cluster.from_dict(asked.cluster, f"{place}.cluster").device
    check_software(asked.software, place)
    if asked.model["product_dtype"] not in device.flops_per_second:
        word = str(asked.model["product_dtype"])[:60]
        raise InputError(f"{place}.model.product_dtype {word!r} has no peak on the device of {place}.cluster")
    for path in _CLUSTER:
        holder = asked.cluster if len(path) == 1 else asked.cluster[path[0]]
        if path[-1] not in holder:
            raise InputError(f"the field {place}.cluster.{'.'.join(path)} is missing")


def check_software(software: dict[str, Any], place: str) -> None:
    """Every trait is there, and its plans are of words and numbers that are known; raises InputError naming the one
    that is not."""
    missing = next((f.name for f in fields(Software) if f.name not in software), None)
    if missing is not None:
        raise InputError(f"the field {place}.software.{missing} is missing")
    found = Software.from_dict(software, place)
    if found.gradients not in ("", *REAL):
        raise InputError(f"{place}.software.gradients {found.gradients[:60]!r} is no type of a gradient")
    if (found.plans is None) != (found.name == OWN):
        raise InputError(f"{place}.software.plans must be those of {found.name[:60]!r}: plan again with --for")
    if found.plans is None:
        return
    known = {"axes": AXES, "schedules": SCHEDULES, "zero": range(4), "recompute": WAYS, "collectives": KINDS}
    for key, words in known.items():
        strange = next((word for word in getattr(found.plans, key) if word not in words), None)
        if strange is not None:
            raise InputError(f"{place}.software.plans.{key} has a wrong value {str(strange)[:60]!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def check_decisions(decisions: Decisions, place: str) -> None:
    """Each alone, for edited ones need not agree; raises InputError naming the one that is wrong."""
    counts = decisions.recomputed
    if wrong := parallelism_error(decisions.parallelism):
        raise InputError(f"{place}.{wrong}")
    for key in ("compute", "gradients", "state"):
        if decisions.precision.products not in ("", *RECIPES):
            raise InputError(f"{place}.precision.products must be one of {', '.join(RECIPES)}")
        if getattr(decisions.precision, key) not in ("", *REAL):
            raise InputError(f"{place}.precision.{key} must be one of {', '.join(REAL)}")
    if len(counts) != len(decisions.stages) or min(counts, default=0) < 0:
        raise InputError(f"{place}.recomputed must give a number of blocks for each of the stages")
    units = [name for stage in decisions.stages for name in stage]
    if twice := _twice(units):
        raise InputError(f"{place}.stages names {twice[:60]!r} twice")
    for name, layout in decisions.parameters.items():
        _check_layout(layout, f"{place}.parameters.{name[:60]}")
    for name, ports in decisions.boundaries.items():
        for layout in ports:
            _check_layout(layout, f"{place}.boundaries.{name[:60]}")


def check_cost(cost: Cost, place: str) -> None:
    """A step that takes time, whose parts add up to it; raises InputError naming what does not."""
    whole, parts = cost.step_seconds, cost.compute_seconds + cost.bubble_seconds + cost.optimizer_seconds
    if not whole > 0:
        raise InputError(f"{place}.step_seconds must be positive, not {whole:g}")
    if cost.bubble_seconds < -_OFF * whole:
        raise InputError(f"{place}.bubble_seconds must be at least 0, not {cost.bubble_seconds:g}")
    if strange := [axis for axis in cost.exposed_seconds if axis not in named()]:
        raise InputError(f"{place}.exposed_seconds names {strange[0][:60]!r}, which is no axis")
    exposed = sum(cost.exposed_seconds.values())
    sums = (
        (whole, parts + exposed, "compute, exposed, bubble and optimizer seconds", "step_seconds"),
        (exposed, cost.communication_seconds + cost.sync_seconds, "communication and sync seconds", "exposed_seconds"),
    )
    for wanted, found, words, name in sums:
        if not math.isclose(wanted, found, rel_tol=_OFF, abs_tol=_OFF * whole):
            raise InputError(f"{place}: the {words} add up to {found:g}, its {name} to {wanted:g}: plan again")


def check_searched(searched: dict[str, int], place: str) -> None:
    """All counts are there; raises InputError naming one that is not."""
    for key in _SEARCHED:
        if key not in searched:
            raise InputError(f"the field {place}.{key} is missing")


def check_memory(plan: Plan, place: str) -> None:
    """What the fullest rank holds is what its stages hold; raises InputError where not, but for edited plans."""
    rows = plan.cost.stages
    if plan.stale or len(rows) != plan.parallelism.stage_count:
        return
    held = max(sum(rows[n].peak_bytes for n in own) for own in plan.parallelism.rank_stages)
    if not math.isclose(held, plan.cost.peak_bytes, rel_tol=_OFF):
        found = f"its stages hold {held:g} bytes at most, its peak_bytes are {plan.cost.peak_bytes:g}"
        raise InputError(f"{place}: {found}: plan again")


def check_derived(derived: Derived, place: str, axes: int | None) -> None:
    """Blocks, what they read and how they lie, on so many axes, agree; raises InputError naming the first that does
    not."""
    rows = {name: row for row in derived.blocks for name in row.units}
    if twice := _twice([name for row in derived.blocks for name in row.units]):
        raise InputError(f"{place}.blocks names {twice[:60]!r} twice: plan again")
    if set(derived.reads) != set(rows):
        strange = sorted(set(derived.reads) ^ set(rows))[0]
        raise InputError(f"{place}.reads is not of the units of its blocks: {strange[:60]!r}; plan again")
    for name, sources in derived.reads.items():
        if len(sources) != len(rows[name].ports):
            many = len(rows[name].ports)
            raise InputError(f"{place}.reads.{name} must name the {many} values that enter: plan again")
        for maker, _ in sources:
            if maker not in rows:
                raise InputError(f"{place}.reads.{name} names {maker[:60]!r}, which no block is: plan again")
    for name, layout in derived.parameters.items():
        _check_layout(layout, f"{place}.parameters.{name[:60]}", axes)
    for n, row in enumerate(derived.blocks):
        _check_block(row, f"{place}.blocks[{n}]", axes)


def _check_block(row: BlockRow, place: str, axes: int | None) -> None:
    if not row.units:
        raise InputError(f"{place}.units is empty: plan again")
    made = set[str]()
    later = {op.name for op in row.ops}
    for n, op in enumerate(row.ops):
        own = f"{place}.ops[{n}]"
        if "." not in op.op:
            raise InputError(f"{own}.op must be as torch names it, like aten.mm.default, not {op.op[:60]!r}")
        if len(op.inputs) != len(op.operands):
            raise InputError(f"{own}.inputs names {len(op.inputs)} operands, of which {len(op.operands)} have a layout")
        early = [name for name in op.inputs if name in later and name not in made]
        if op.name in made or early:
            what = "stands there twice" if op.name in made else f"reads {early[0][:60]!r}, which comes later"
            raise InputError(f"{own}: {op.name[:60]!r} {what}: plan again")
        made.add(op.name)
    for where, layout in _layouts(row):
        _check_layout(layout, f"{place}.{where}", axes)


def _layouts(row: BlockRow) -> Iterator[tuple[str, Any]]:
    yield from ((f"ports[{n}]", layout) for n, layout in enumerate(row.ports))
    for n, op in enumerate(row.ops):
        yield from ((f"ops[{n}].operands", layout) for layout in op.operands)
        yield f"ops[{n}].result", op.result
        for other in op.others:
            yield from ((f"ops[{n}].others", layout) for layout in (*other.operands, other.result))


def _check_layout(layout: Any, place: str, axes: int | None = None) -> None:
    try:
        parse_layout(layout, axes)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error


def _twice(names: list[str]) -> str:
    """The first that stands there again, "" where none does."""
    seen = set[str]()
    return next((name for name in names if name in seen or seen.add(name)), "")
