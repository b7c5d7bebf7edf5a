"""What show and its drawings tell of a plan: stages, alike ones once, runs of identical blocks, ops in one line."""

from __future__ import annotations

from dataclasses import dataclass

from partitioner import Plan
from partitioner.plan.derived_rows import BlockRow, CollectiveRow, OpRow
from partitioner.sharding.layout import layout_word, parse_layout
from tools.screen import seconds, size

_WEIGHTY = ("linear", "matmul", "attention", "embedding", "cross_entropy", "conv", "mm")


@dataclass(frozen=True)
class Run:
    """Neighbouring identical units of one stage; ``is_first`` where the plan has not shown their like before."""

    names: tuple[str, ...]
    row: BlockRow
    is_first: bool

    @property
    def kind(self) -> tuple[str, int]:
        """What runs of the same blocks have in common."""
        return self.row.units[0], len(self.names)

    @property
    def title(self) -> str:
        """The unit's name, or those of a run with their number."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} .. {self.names[-1]} (x {len(self.names)})"

    @property
    def times(self) -> str:
        """Of one unit and one micro-batch."""
        return f"{seconds(self.row.forward_seconds)} forward, {seconds(self.row.backward_seconds)} backward"


@dataclass(frozen=True)
class Stages:
    """Neighbouring stages of the same blocks: the first one's number, how many, and the runs of the first."""

    first: int
    count: int
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """``stage 0``, ``stages 1 to 14 (x 14)``."""
        last = self.first + self.count - 1
        return f"stage {self.first}" if self.count == 1 else f"stages {self.first} to {last} (x {self.count})"

    @property
    def numbers(self) -> range:
        """Of all its stages."""
        return range(self.first, self.first + self.count)


def outline(plan: Plan) -> list[Stages]:
    """All stages in order, alike neighbours folded."""
    rows = {name: row for row in plan.blocks for name in row.units}
    seen: set[str] = set()
    found: list[Stages] = []
    for n, units in enumerate(plan.decisions.stages):
        runs = tuple(_runs(units, rows, seen))
        last = found[-1] if found else None
        if last and [r.kind for r in last.runs] == [r.kind for r in runs]:
            found[-1] = Stages(last.first, last.count + 1, last.runs)
        else:
            found.append(Stages(n, 1, runs))
    return found


def _runs(units: tuple[str, ...], rows: dict[str, BlockRow], seen: set[str]) -> list[Run]:
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
    return runs


def is_weighty(op: OpRow) -> bool:
    """Whether an op multiplies matrices, reads a table, or ends in the loss."""
    return is_product(kind(op))


def is_product(name: str) -> bool:
    """``is_weighty`` of an op's name."""
    return any(word in name for word in _WEIGHTY)


def place(op: OpRow, row: BlockRow) -> str:
    """The op's module inside its block, or its name where that is the block itself."""
    return op.module.removeprefix(row.units[0]).removeprefix(".") or op.name


def kind(op: OpRow) -> str:
    """``linear`` of ``aten.linear.default``."""
    return op.op.split(".")[1]


def sentence(op: OpRow, row: BlockRow) -> str:
    """``attn.qkv: linear(R, S(0)) -> S(2)``: the module inside its block, the op, how operands and result lie."""
    operands = ", ".join(word(p) for p in op.operands)
    return f"{place(op, row)}: {kind(op)}({operands}) -> {word(op.result)}"


def arrival(row: CollectiveRow) -> str:
    """``x: S(1) -> R by all_gather of 67.1 MB, back by reduce_scatter of 67.1 MB``."""
    words = f"{row.value}: {row.source} -> {row.target}"
    if row.forward:
        words += f" by {row.forward} of {size(row.forward_bytes)}"
    return words + (f", back by {row.backward} of {size(row.backward_bytes)}" if row.backward else "")


def word(layout: object) -> str:
    """A layout as R, W, P or S(dim), one for each axis."""
    return layout_word(parse_layout(layout))


def shape(op: OpRow) -> str:
    """``2 x 4096 x 1024``."""
    return " x ".join(map(str, op.shape))
