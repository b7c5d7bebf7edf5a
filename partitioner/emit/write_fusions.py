"""A lowered block with the fused op where a product and its chain stood, for the products that have a kernel.

    %u = linear(%x, %w1, %b)      -->    %f = fused_linear(%x, %w1, [%b], [], "bias: n | ... | v1, v0", "", False, keys)
    %h = gelu(%u)                        %h = %f[0]
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx

from cutlass_ops.linear import fused, layer
from cutlass_ops.spec import notation
from partitioner.emit.epilogue_words import local, rows_of, source
from partitioner.emit.find_fusions import LINEAR, Fusion
from partitioner.graph.nodes import arguments
from partitioner.ops import own_ops
from partitioner.sharding.mesh_axes import Axes

Keys = tuple[str, str, str]  # of forward, dgrad and wgrad
FUSED = fused.ops.fused_linear.default
aten, own = torch.ops.aten, torch.ops.partitioner
_REGISTRAR = own_ops  # importing it registers ``part``


def split(graph: fx.Graph) -> None:
    """Products of which only parts of their columns are read, by pointwise ops, as products by parts of the weight.

    So a gate and what it gates, two halves of one weight, become two products; the parts of a weight are views of it.
    """
    for product in [node for node in graph.nodes if node.target == LINEAR]:
        parts = list(product.users)
        if parts and all(_is_pointwise_part(part) for part in parts):
            _split(graph, product, parts)


def rewrite(graph: fx.Graph, found: list[Fusion], keys: Mapping[fx.Node, Keys], axes: Axes) -> None:
    """Replace the products of ``keys``, as ``fuse.find`` found them; a product without keys stays as it is.

    A gradient rides on a dgrad where that has a kernel and the product that it goes on to is replaced too.
    """
    of = {fusion.product: fusion for fusion in found}
    now: dict[fx.Node, fx.Node] = {}
    made: dict[fx.Node, fx.Node] = {}
    for fusion in found:
        chosen = keys.get(fusion.product)
        if chosen is not None:
            rides = fusion.inner is not None and fusion.inner in keys and chosen[1] != ""
            _Writer(graph, fusion, of[fusion.inner] if rides else None, axes, now, made).write(chosen)  # type: ignore[index]
    graph.eliminate_dead_code()
    graph.lint()


class _Writer:
    """Writes one fused op before the last node of its chain.

    ``now``: what holds the values of replaced nodes; ``made``: the pre-activations of replaced products. Both grow.
    """

    def __init__(
        self,
        graph: fx.Graph,
        fusion: Fusion,
        inner: Fusion | None,
        axes: Axes,
        now: dict[fx.Node, fx.Node],
        made: dict[fx.Node, fx.Node],
    ) -> None:
        self.graph, self.fusion, self.inner, self.axes, self.now, self.made = graph, fusion, inner, axes, now, made

    def write(self, keys: Keys) -> None:
        fusion, product = self.fusion, self.fusion.product
        x, weight, bias, transposed = product.args
        with self.graph.inserting_before((product, *fusion.members)[-1]):
            loads = [self.shaped(self.now.get(n, n), n, local(product, self.axes)) for n in fusion.loads]
            biases = [] if bias is None else [bias]
            lines = notation.written(fusion.gemm), notation.written(self.inner.gemm) if self.inner else ""
            arguments = (x, weight, [*biases, *loads], self.tensors(), *lines, transposed, list(keys))
            op = self.graph.call_function(FUSED, arguments)
            op.meta = {k: v for k, v in product.meta.items() if k != "val"}
            results = [self.graph.call_function(operator.getitem, (op, n)) for n in range(len(fusion.gemm.stores))]
            for result in results:
                result.meta = product.meta
            for n, store in enumerate(fusion.gemm.stores):
                if store.value == layer.pre_activation(fusion.gemm):
                    self.made[product] = results[n]
            self.replace(dict(zip(fusion.stores, results, strict=False)))

    def tensors(self) -> list[fx.Node]:
        """What the gradient goes on to: the inner product's pre-activation and the loads of its chain."""
        if self.inner is None:
            return []
        product, gemm = self.inner.product, self.inner.gemm
        names = [load.name for load in gemm.loads if load.over == "m n"]
        loads = [self.now.get(node, node) for node in self.inner.loads]
        known = dict(zip(names, loads, strict=True)) | {layer.pre_activation(gemm): self.made[product]}
        lead = local(arguments(self.fusion.product)[0], self.axes)[:-1]
        shape = (*lead, local(product, self.axes)[-1])
        return [self.shaped(known[name], known[name], shape) for name in layer.leaves(gemm, 0)]

    def replace(self, results: dict[fx.Node, fx.Node]) -> None:
        """Give the stores to what reads them outside the chain, in the shape of rows in which it reads them."""
        self.now |= results
        inside = {self.fusion.product, *self.fusion.members}
        for node in (self.fusion.product, *self.fusion.members):
            if source(node) in results and set(node.users) - inside:
                result = results[source(node)]
                new = self.shaped(result, node, local(node, self.axes), local(self.fusion.product, self.axes))
                node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)

    def shaped(
        self, value: fx.Node, like: fx.Node, shape: tuple[int, ...], have: tuple[int, ...] | None = None
    ) -> fx.Node:
        """``value``, of the shape ``have`` (its own where it is not said), in another shape of its rows."""
        if (have or local(value, self.axes)) == shape:
            return value
        new = self.graph.call_function(aten.reshape.default, (value, list(shape)))
        new.meta = like.meta
        return new


def _is_pointwise_part(part: fx.Node) -> bool:
    if part.target != own.part.default or part.args[1] not in (-1, part.meta["val"].dim() - 1):
        return False
    return bool(part.users) and all(rows_of(user) is not None for user in part.users)


def _split(graph: fx.Graph, product: fx.Node, parts: list[fx.Node]) -> None:
    x, weight, bias, transposed = product.args
    sizes = parts[0].args[2]
    with graph.inserting_before(product):
        pieces = graph.call_function(aten.split_with_sizes.default, (weight, sizes, 1 if transposed else 0))
        biases = None if bias is None else graph.call_function(aten.split_with_sizes.default, (bias, sizes, 0))
        for part in parts:
            n = part.args[3]
            piece = graph.call_function(operator.getitem, (pieces, n))
            added = None if biases is None else graph.call_function(operator.getitem, (biases, n))
            new = graph.call_function(LINEAR, (x, piece, added, transposed))
            new.meta = {**part.meta, "part_of": product.meta.get("stands_for")}
            part.replace_all_uses_with(new)
    for node in (*parts, product):
        graph.erase_node(node)
