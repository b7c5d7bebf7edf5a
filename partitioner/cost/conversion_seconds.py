"""Seconds of turning one layout of a value into another, and what ops of ours send by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import fx

from partitioner.cost.materialized import readers
from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.op_work import Setting
from partitioner.hardware.link import Route
from partitioner.kernel_seconds.collective import collective_seconds
from partitioner.ops.collective_kinds import ALL_GATHER
from partitioner.ops.conversions import Hop, conversion
from partitioner.ops.payloads import RANK_OPS
from partitioner.ops.rank_form import rank_forms
from partitioner.precision import RECIPES
from partitioner.sharding.equations import Strategies
from partitioner.sharding.layout import REPLICATE, Layout

Sendings = list[tuple[str, float]]
WAYS = ("forward", "backward")


def convert_seconds(
    setting: Setting, node: fx.Node, source: Layout, target: Layout, routes: Mapping[str, Route]
) -> Seconds | None:
    """Time to turn one layout of a value into another, both phases; None where no collectives do that the program can
    be told."""
    if source == target:
        return ZERO
    differentiable, found = node in setting.folded.differentiable, ZERO
    hops, told = conversion(source, target, setting.axes, differentiable), setting.software.plans
    if told is not None and any(hop.sent(way) not in ("", *told.collectives) for hop in hops or () for way in WAYS):
        return None
    for hop in hops or ():
        route = routes[hop.axis]
        forward, backward = (
            collective_seconds(hop.sent(way), sent_bytes(setting, node, hop, way), route) if hop.sent(way) else 0.0
            for way in WAYS
        )
        found += Seconds(forward, backward if differentiable else 0.0)
    return None if hops is None else found


def sent_bytes(setting: Setting, node: fx.Node, hop: Hop, way: str) -> float:
    """What a collective of a value's conversion sends; operands of products in few bits may be quantized before they
    are gathered: in forward an activation, in backward the gradient of a product's result."""
    size = setting.bytes(node, hop.whole)
    if hop.sent(way) == ALL_GATHER and setting.software.sends_quantized:
        recipes = {setting.recipe(reader) for reader in (readers(node) if way == "forward" else {node})} or {""}
        size *= max(RECIPES[r].bytes / node.meta["val"].element_size() if r else 1.0 for r in recipes)
    return hop.payload(size, way)


class Inside(NamedTuple):
    """(kind, bytes) of what an op of ours sends over an axis, in forward, and in backward where it has one."""

    axis: str
    forward: Sendings
    backward: Sendings


def sent_inside(setting: Setting, node: fx.Node, strategies: Strategies) -> Iterator[Inside]:
    """What the op of ours sends that stands on a rank in the place of ``node``, of all tokens of the rank."""
    for form in rank_forms(setting.op(node), node.args, strategies, setting.axes):
        if row := RANK_OPS.get(str(form.op)):
            args: tuple[Any, ...] = fx.map_arg(form.arguments, lambda n: n.meta["val"])
            ways = row.forward(0, *args), row.backward(0, *args) if node in setting.folded.differentiable else ()
            others = [p if n not in form.slots else REPLICATE for n, p in enumerate(strategies.result)]
            share = setting.share(node, tuple(others))
            forward, backward = ([(kind, size * share) for kind, size in way] for way in ways)
            yield Inside(form.axis, forward, backward)
