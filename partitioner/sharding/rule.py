"""What is known of an op, all of it: one row of the table in ``op_rules``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from partitioner.sharding.equations import Strategy
from partitioner.sharding.op_equations import Complete, Op
from partitioner.sharding.products import Gemm, Gemms

RankForm = tuple[str, tuple[Any, ...]]  # the name of an op of ours, and its arguments


@dataclass(frozen=True)
class Literals:
    """The argument (by name) that holds sizes of the result: its ``shape``, a ``grown`` one, of which an operand's
    dimension of 1 becomes more, the ``parts`` of dimension ``dim``, or the number of ``groups`` of channels."""

    argument: str
    kind: Literal["shape", "grown", "parts", "groups"]


@dataclass(frozen=True)
class Rule:
    """How an op divides, and what it does to memory and time.

    complete       if one operand (or the result) lies as this shard, how must the others lie?
    linear         sets of operands that may be Partial together and leave the result Partial; with ``arity`` only in a
                   call of so many operands; ``joint``: in all operands together
    saves          what backward keeps: operand indices, and "out" for the result; where it is ``bilinear`` an operand
                   is kept only where another one has a gradient
    hidden         bytes of what only backward sees (masks, statistics), given the result's element size;
                   ``fused_hidden`` instead where kernels are fused
    scratch        of ``hidden``, what the gradient makes once more (1), or turns into the gradient in place (-1)
    writes         its first operand is memory that it writes to: it takes it as it lies
    view           the result lies in the operand's memory; ``reorders``: in another order
    gemm           the product it is, of the sizes that a rank has of the first two operands and of the result;
                   ``weight``: how a weight of it lies that a GEMM kernel takes, "n k" or "k n"
    attention      FLOPs of the forward, by a kernel that writes no scores
    lookup         it reads the rows that are asked for, and its gradient is as large as the table
    sum            its gradient is that of each operand; ``bias``: one of n elements joins the product it is added to
    fuses          beside torch's pointwise ops and views: it runs in one kernel with such ("chain"), or reads what
                   they make in its own and writes its result ("sink")
    literals       sizes among its arguments
    on_rank        what stands in its place on a rank of a named axis under a strategy, of a call and its arguments
                   there; None where it does itself
    """

    complete: Complete
    linear: tuple[tuple[int, ...], ...] = ()
    saves: tuple[int | str, ...] = ()
    arity: int | None = None
    joint: bool = False
    bilinear: bool = False
    hidden: Callable[[Op, int], float] | None = None
    fused_hidden: Callable[[Op, int], float] | None = None
    scratch: Callable[[Strategy], int] = lambda strategy: 0
    writes: bool = False
    view: bool = False
    reorders: bool = False
    gemm: Gemms | None = None
    weight: Literal["", "n k", "k n"] = ""
    attention: Callable[[Op], float] | None = None
    lookup: bool = False
    sum: bool = False
    bias: bool = False
    fuses: Literal["", "chain", "sink"] = ""
    literals: Literals | None = None
    on_rank: Callable[[Op, Sequence[Any], Strategy, str], RankForm | None] = lambda op, args, strategy, axis: None

    @property
    def computes(self) -> bool:
        """Whether it is a product or attention."""
        return self.gemm is not None or self.attention is not None

    def product(self, op: Op) -> Gemm | None:
        """The product of the whole operands; None of one alone (``einsum`` that only permutes)."""
        return self.gemm(op, *op.operands[:2], op.result) if self.gemm and len(op.operands) > 1 else None

    def flops(self, op: Op) -> float:
        """Multiplications and additions of the forward, unsharded; 0 where it is no product."""
        product = self.product(op)
        return product.flops if product else self.attention(op) if self.attention else 0.0
