"""The ways in which all ranks of an axis communicate: one row a kind, all that price and memory need to know of it."""

from __future__ import annotations

from dataclasses import dataclass

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = "all_reduce", "all_gather", "reduce_scatter", "all_to_all"


@dataclass(frozen=True)
class Kind:
    """How ranks communicate, and how a value is packed for it.

    ``phases``: so often a ring passes every member. ``tree``: where it spans nodes it may go by a tree instead.
    ``own_part``: the payload is what a rank holds, of which each pair of ranks exchanges a part; else it is the whole
    tensor. ``copies`` of the payload whose parts lie one behind the other; none where it is sent from where it lies.
    ``in_place``: the result replaces the operand. ``grows``: a rank's result is larger than what it gives.
    """

    name: str
    phases: int
    tree: bool = False
    own_part: bool = False
    copies: int = 0
    in_place: bool = False
    grows: bool = False

    def payload(self, size: float, ranks: int) -> float:
        """Bytes, where the whole tensor has ``size``."""
        return size / ranks if self.own_part else size


_KINDS = (
    Kind(ALL_REDUCE, 2, tree=True, in_place=True),
    Kind(ALL_GATHER, 1, copies=1, grows=True),
    Kind(REDUCE_SCATTER, 1, copies=1),
    Kind(ALL_TO_ALL, 1, own_part=True, copies=2),
)
KINDS = {kind.name: kind for kind in _KINDS}
