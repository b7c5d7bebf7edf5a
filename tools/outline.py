"""What show and its drawing tell of a plan: runs of identical blocks, and of a block the ops that multiply or move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from partitioner import Plan
from partitioner.derived import BlockRow, CollectiveRow, OpRow
from partitioner.layout import parse_placement
from tools.screen import seconds, size

_WEIGHTY = ("linear", "matmul", "attention", "embedding", "cross_entropy", "conv")


@dataclass(frozen=True)
class Run:
    """Neighbouring identical units of one stage; ``is_first`` where the plan has not shown their like before."""

    names: tuple[str, ...]
    row: BlockRow
    is_first: bool

    @property
    def title(self) -> str:
        """The unit's name, or those of a run with their number."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} .. {self.names[-1]} (x {len(self.names)})"

    @property
    def times(self) -> str:
        """Of one unit and one micro-batch."""
        return f"{seconds(self.row.forward_seconds)} forward, {seconds(self.row.backward_seconds)} backward"


def outline(plan: Plan) -> Iterator[list[Run]]:
    """The runs of each stage, in order."""
    rows = {name: row for row in plan.blocks for name in row.units}
    seen: set[str] = set()
    for units in plan.decisions.stages:
        grouped: list[list[str]] = []
        for name in units:
            if grouped and rows[grouped[-1][0]] is rows[name]:
                grouped[-1].append(name)
            else:
                grouped.append([name])
        runs: list[Run] = []
        for names in grouped:
            row = rows[names[0]]
            runs.append(Run(tuple(names), row, row.units[0] not in seen))
            seen.add(row.units[0])
        yield runs


def is_weighty(op: OpRow) -> bool:
    """Whether an op multiplies matrices, reads a table, or ends in the loss."""
    return any(kind in op.op.split(".")[1] for kind in _WEIGHTY)


def sentence(op: OpRow, run: Run) -> str:
    """``attn.qkv: linear(R, S(0)) -> S(2)``: the module inside its block, the op, how operands and result lie."""
    operands = ", ".join(word(p) for p in op.operands)
    place = op.module.removeprefix(run.row.units[0]).removeprefix(".") or op.name
    return f"{place}: {op.op.split('.')[1]}({operands}) -> {word(op.result)}"


def arrival(row: CollectiveRow) -> str:
    """``x: S(1) -> R by all_gather of 67.1 MB, back by reduce_scatter``."""
    words = f"{row.value}: {row.source} -> {row.target}"
    if row.forward:
        words += f" by {row.forward} of {size(row.forward_bytes)}"
    return words + (f", back by {row.backward} of {size(row.backward_bytes)}" if row.backward else "")


def word(placement: object) -> str:
    """A placement as R, W, P or S(dim)."""
    return str(parse_placement(placement))  # type: ignore[arg-type]
