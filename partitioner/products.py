"""The products of an emitted block as rows of a plan, and the kernels that a plan chose as keys for the block.

One block, looked at with the parts of fused weights split: what ``kernelize`` would write is what the rows say.
"""

from __future__ import annotations

import math

from torch import fx

from cutlass_ops import notation
from partitioner.derived import ProductRow
from partitioner.fuse import Fusion, find
from partitioner.kernelize import Keys, rewrite, split
from partitioner.pointwise import local, source

UNMEASURED = "no kernel measured"


def rows(module: fx.GraphModule, ranks: int) -> tuple[ProductRow, ...]:
    """The block's products, in order."""
    found = find(_split(module), ranks)
    lines = {fusion.product: notation.written(fusion.gemm) for fusion in found}
    return tuple(_row(fusion, lines.get(fusion.inner, "") if fusion.inner else "", ranks) for fusion in found)


def with_kernels(module: fx.GraphModule, chosen: tuple[ProductRow, ...], ranks: int) -> fx.GraphModule:
    """The block with the products replaced for which a kernel was chosen; itself where there are none."""
    keys = {row.name: row.kernels for row in chosen if any(row.kernels)}
    if not keys:
        return module
    graph = _split(module)
    found = find(graph, ranks)
    wanted: dict[fx.Node, Keys] = {f.product: keys[_name(f.product)] for f in found if _name(f.product) in keys}
    rewrite(graph, found, wanted, ranks)
    return fx.GraphModule(module, graph, class_name=module.__class__.__name__)


def _split(module: fx.GraphModule) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))  # type: ignore[arg-type]
    split(graph)
    return graph


def _row(fusion: Fusion, inner: str, ranks: int) -> ProductRow:
    product = fusion.product
    x = local(product.args[0], ranks)  # type: ignore[arg-type]
    return ProductRow(
        name=_name(product),
        module=("", *product.meta.get("modules", ()))[-1],
        m=math.prod(x[:-1]),
        n=local(product, ranks)[-1],
        k=x[-1],
        dtype=fusion.gemm.dtype,
        transposed=fusion.transposed,
        line=notation.written(fusion.gemm),
        inner=inner,
        fused=sum(source(node) is node for node in fusion.members),
        kernels=("", "", ""),
        reason=UNMEASURED,
    )


def _name(product: fx.Node) -> str:
    """The node of the traced graph that a product stands for."""
    return product.meta["stands_for"]
