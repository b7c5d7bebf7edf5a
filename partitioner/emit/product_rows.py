"""The products of an emitted block as rows of a plan, with the kernels that were measured fastest for them.

One block, looked at with the parts of fused weights split: what ``kernelize`` would write is what the rows say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import fx

from cutlass_ops.linear import layer
from cutlass_ops.spec import notation
from cutlass_ops.spec.spec import Gemm
from cutlass_ops.tuning import database
from cutlass_ops.tuning.database import Database, Measured
from partitioner.cluster import Cluster
from partitioner.emit.epilogue_words import local, source
from partitioner.emit.find_fusions import Fusion, find
from partitioner.emit.write_fusions import Keys, rewrite, split
from partitioner.errors import InputError
from partitioner.graph.nodes import arguments
from partitioner.plan.derived_rows import ProductRow
from partitioner.sharding.mesh_axes import Axes

UNMEASURED = "no kernel measured"
NO_KEYS = ("", "", "")
ROLES = ("forward", "dgrad", "wgrad")
Sizes = tuple[int, int, int]  # m, n, k


@dataclass(frozen=True)
class Found:
    """A product's row, what was measured of its forward, dgrad and wgrad, and the traced nodes in its kernel.

    ``members`` join the forward, ``inner`` are those whose gradient rides on the dgrad; ``whole`` is the product that
    it is a part of, its own name where it is whole.
    """

    row: ProductRow
    measured: tuple[Measured | None, ...]
    members: tuple[str, ...]
    inner: tuple[str, ...]
    whole: str


def products(module: fx.GraphModule, axes: Axes, cluster: Cluster) -> list[Found]:
    """The block's products, in order. Raises InputError where the cluster's database can't be read."""
    found = find(_split(module), axes)
    of = {fusion.product: fusion for fusion in found}
    kernels = _database(cluster)
    return [_found(fusion, of[fusion.inner] if fusion.inner else None, axes, kernels) for fusion in found]


def gemms(row: ProductRow, dtype: str) -> tuple[tuple[Gemm, Sizes], ...]:
    """What a product is made of in a dtype, in the order of ROLES, and how large it is."""
    op = layer.layer(row.line, row.inner, row.transposed, dtype, NO_KEYS)
    m, n, k = row.m, row.n, row.k
    weight = (k, n, m) if row.transposed else (n, k, m)
    return (op.forward, (m, n, k)), (layer.dgrad(op), (m, k, n)), (layer.wgrad(op), weight)


def with_kernels(module: fx.GraphModule, chosen: tuple[ProductRow, ...], axes: Axes) -> fx.GraphModule:
    """The block with the products replaced for which a kernel was chosen; itself where there are none."""
    keys = {row.name: row.kernels for row in chosen if any(row.kernels)}
    if not keys:
        return module
    graph = _split(module)
    found = find(graph, axes)
    wanted: dict[fx.Node, Keys] = {f.product: keys[_name(f.product)] for f in found if _name(f.product) in keys}
    rewrite(graph, found, wanted, axes)
    return fx.GraphModule(module, graph, class_name=module.__class__.__name__)


def _split(module: fx.GraphModule) -> fx.Graph:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    split(graph)
    return graph


def _database(cluster: Cluster) -> Database | None:
    try:
        return database.load(cluster.kernels) if cluster.kernels else None
    except (OSError, ValueError) as error:
        raise InputError(f"the kernels of {cluster.name}: {error}") from error


def _found(fusion: Fusion, inner: Fusion | None, axes: Axes, kernels: Database | None) -> Found:
    row = _row(fusion, notation.written(inner.gemm) if inner else "", axes)
    measured: tuple[Measured | None, ...] = (None, None, None)
    if kernels is not None:
        measured = tuple(kernels.look(gemm, *sizes) for gemm, sizes in gemms(row, row.dtype))
        keys = tuple(found.key if found else "" for found in measured)
        row = replace(row, kernels=keys, reason="" if all(keys) else _reason(measured))
    whole = fusion.product.meta.get("part_of", row.name)
    return Found(row, measured, _members(fusion), _members(inner) if inner else (), whole)


def _reason(measured: tuple[Measured | None, ...]) -> str:
    """Why torch runs those that have no kernel."""
    rows = zip(ROLES, measured, strict=True)
    return "; ".join(f"{word} {m.reason if m else 'not measured'}" for word, m in rows if m is None or not m.key)


def _row(fusion: Fusion, inner: str, axes: Axes) -> ProductRow:
    product = fusion.product
    x = local(arguments(product)[0], axes)
    return ProductRow(
        name=_name(product),
        module=("", *product.meta.get("modules", ()))[-1],
        m=math.prod(x[:-1]),
        n=local(product, axes)[-1],
        k=x[-1],
        dtype=fusion.gemm.dtype,
        transposed=fusion.transposed,
        line=notation.written(fusion.gemm),
        inner=inner,
        fused=len(_members(fusion)),
        kernels=NO_KEYS,
        reason=UNMEASURED,
    )


def _members(fusion: Fusion) -> tuple[str, ...]:
    return tuple(_name(node) for node in fusion.members if source(node) is node)


def _name(node: fx.Node) -> str:
    """The node of the traced graph that an emitted one stands for."""
    return node.meta["stands_for"]
