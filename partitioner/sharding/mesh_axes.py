"""The axes of a mesh of ranks: their names, which stand here alone, and what each may divide.

    pp 2 x dp 4 x tp 8      rank (p, d, t) = 32 p + 8 d + t where they lie in this order

An axis that divides values is one along which ops lie by layouts: search finds a placement along it for each value,
and for each parameter where it divides those; else parameters are whole on its ranks and their gradients Partial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PP, DP, CP, TP = "pp", "dp", "cp", "tp"  # pipeline, data, context, tensor
Divided = Literal["stages", "samples", "state", "tokens", "values", "parameters"]
Axes = tuple[tuple[str, int], ...]  # names and ranks, outermost first


@dataclass(frozen=True)
class MeshAxis:
    """``divides``: of what a rank has a part. ``is_always``: a mesh names it where it divides nothing, too.
    ``in_node``: search keeps it inside a node. ``looked_at``: degrees beside 1 with which a plan can't be executed yet,
    all others where it is empty. ``parts``: what refines it, outermost first: its neighbours differ in the last."""

    divides: tuple[Divided, ...]
    is_always: bool = True
    in_node: bool = False
    looked_at: tuple[int, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def lays(self) -> bool:
        """Whether ops lie along it by layouts."""
        return "values" in self.divides

    @property
    def replicates(self) -> bool:
        """Whether its ranks hold the same parameters, of other samples or tokens, and sum their gradients."""
        return "samples" in self.divides or "tokens" in self.divides

    @property
    def is_inner(self) -> bool:
        """Whether it divides the work of one micro-batch in a stage."""
        return self.lays or "tokens" in self.divides


REPLICA, SHARD = "dp_replica", "dp_shard"  # of dp where state is divided: neighbours divide it, and hold it again
KV, REPEAT = "tp_kv", "tp_repeat"  # of tp where keys have fewer heads than it ranks: neighbours hold the same of them
AXES = {  # as they usually lie, outermost first
    PP: MeshAxis(("stages",)),
    DP: MeshAxis(("samples", "state"), parts=(REPLICA, SHARD)),
    CP: MeshAxis(("tokens",), is_always=False, looked_at=tuple(range(2, 17))),
    TP: MeshAxis(("values", "parameters"), in_node=True, parts=(KV, REPEAT)),
}


def replicating() -> tuple[str, ...]:
    """The axes whose ranks hold the same parameters."""
    return tuple(axis for axis, row in AXES.items() if row.replicates)


def inner() -> tuple[str, ...]:
    """The axes that divide the work of one micro-batch in a stage, outermost first."""
    return tuple(axis for axis, row in AXES.items() if row.is_inner)


def named() -> tuple[str, ...]:
    """All, as tables and messages name them."""
    return (*reversed(inner()), *(axis for axis in AXES if axis not in inner()))


def refining() -> tuple[str, ...]:
    """What refines axes along which ops lie."""
    return tuple(part for row in AXES.values() if row.lays for part in row.parts)


def laid_axes(degrees: Mapping[str, int], refined: Mapping[str, int]) -> Axes:
    """Along which ops lie on a mesh of these degrees, outermost first; ``refined``: of those that are, each part's."""
    found = list[tuple[str, int]]()
    for axis, row in AXES.items():
        if row.lays and (row.is_always or degrees.get(axis, 1) > 1):
            parts = [(part, refined[part]) for part in row.parts if part in refined]
            found += parts or [(axis, degrees.get(axis, 1))]
    return tuple(found)


def sharing_axes(degrees: Mapping[str, int]) -> Axes:
    """Those whose ranks share the tokens of a micro-batch."""
    rows = ((axis, degrees.get(axis, 1)) for axis, row in AXES.items() if "tokens" in row.divides)
    return tuple((axis, ranks) for axis, ranks in rows if ranks > 1)


def whole(axis: str) -> str:
    """The axis of the mesh that ``axis`` is or refines."""
    return next((name for name, row in AXES.items() if axis in row.parts), axis)


def wholes(axes: Axes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """By axis of the mesh, the places in ``axes`` of what is it, or refines it."""
    found: dict[str, tuple[int, ...]] = {}
    for n, (axis, _) in enumerate(axes):
        found[whole(axis)] = (*found.get(whole(axis), ()), n)
    return tuple(found.items())
