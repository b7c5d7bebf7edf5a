"""A plan's products: what each one's kernel does as it stores, which kernel runs it, or why torch does."""

from __future__ import annotations

import re

from partitioner import Plan
from partitioner.plan.derived_rows import ProductRow
from tools.screen import table

_OP = re.compile(r"= (\w+)\(([^)]*)\)")


def kernel_words(plan: Plan) -> str:
    """``20 ops fuse into 12 of 40 products, 8 products run on CUTLASS kernels``, all blocks counted."""
    rows = [(row, len(block.units)) for block in plan.blocks for row in block.products]
    every = sum(count for _, count in rows)
    fused = sum(count for row, count in rows if row.fused)
    ops = sum(row.fused * count for row, count in rows)
    chosen = sum(count for row, count in rows if any(row.kernels))
    return f"{ops:,} ops fuse into {fused:,} of {every:,} products; CUTLASS kernels chosen for {chosen or 'none'}"


def products(plan: Plan) -> object:
    """A row for each product of the representative blocks."""
    columns = ("product", "m x n x k on a rank", "as it stores", "runs on")
    rows = [
        [row.module or row.name, f"{row.m} x {row.n} x {row.k}", epilogue(row), _kernel(row)]
        for block in plan.blocks
        for row in block.products
    ]
    return table("products of each kind of block", columns, rows, words=columns[2:])


def epilogue(row: ProductRow) -> str:
    """What the forward does as it stores, and the gradient that rides on the dgrad."""
    words = [_ops(row.line)] + ([f"dgrad: gradient of {_ops(row.inner)}"] if row.inner else [])
    return "; ".join(filter(None, words))


def _ops(line: str) -> str:
    found = _OP.findall(line)
    return ", ".join("bias" if op == "add" and args.endswith("bias") else op for op, args in found)


def _kernel(row: ProductRow) -> str:
    names = ("forward", "dgrad", "wgrad")
    chosen = [f"{name} {key[:8]}" for name, key in zip(names, row.kernels, strict=True) if key]
    return ", ".join(chosen) or f"torch: {row.reason}"
