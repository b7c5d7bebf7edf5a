"""Which products of a lowered block can do the pointwise work around them as they store, and the block with them fused.

    %u = linear(%x, %w1, %b)                     %h, %u = fused_linear(%x, %w1, [%b], "bias: n | ...; v1 = gelu(v0)")
    %h = gelu(%u)                    -->         %y     = fused_linear(%h, %w2, [%r], "... add(acc, t0)", inner %u)
    %y = linear(%h, %w2) + %r

A chain grows from a product over pointwise ops whose other operands are there before it. It ends at a collective (a
node like any other here, and not pointwise), at another shape, where an op waits for something else, and at a value
that several ops read. What is read behind the chain is stored. Where a product's first operand is what another's chain
made, and no one else reads that, its dgrad does the gradient of the chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import fx

from cutlass_ops.linear import gemm, layer
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Load, Op, Store
from partitioner.emit.epilogue_words import local, rows_of, source
from partitioner.graph.nodes import arguments
from partitioner.sharding.mesh_axes import Axes

LINEAR = gemm.ops.linear.default


@dataclass(frozen=True)
class Fusion:
    """A product with its chain: the nodes that join it, what it loads and stores besides, and its epilogue.

    ``inner`` is the product whose chain made this one's first operand, where no one else reads that.
    """

    product: fx.Node
    members: tuple[fx.Node, ...]
    loads: tuple[fx.Node, ...]
    stores: tuple[fx.Node, ...]
    gemm: Gemm
    inner: fx.Node | None = None

    @property
    def transposed(self) -> bool:
        """Whether the weight lies (k, n)."""
        return bool(self.product.args[3])


def find(graph: fx.Graph, axes: Axes) -> list[Fusion]:
    """All products of a lowered block, in order, with what joins each; the values' local shapes are those of rank 0."""
    products = [node for node in graph.nodes if node.target == LINEAR]
    claimed: set[fx.Node] = set()
    found: dict[fx.Node, Fusion] = {}
    for product in reversed(products):
        found[product] = _Chain(graph, product, axes, claimed).fusion()
        claimed |= set(found[product].members)
    return [_with_inner(found[product], found) for product in products]


class _Chain:
    def __init__(self, graph: fx.Graph, product: fx.Node, axes: Axes, claimed: set[fx.Node]) -> None:
        self.product, self.axes, self.claimed = product, axes, claimed
        self.order = {node: n for n, node in enumerate(graph.nodes)}
        self.shape = local(product, axes)
        self.members: list[fx.Node] = []
        self._grow(graph)
        self._absorb()
        self.members.sort(key=self.order.__getitem__)

    def fusion(self) -> Fusion:
        """What grew, or the product alone where nothing did."""
        bias = self.product.args[2]
        names: dict[fx.Node, str] = {}
        loads: list[fx.Node] = []
        ops = [Op("v0", "add", (ACCUMULATOR, "bias"))] if bias is not None else []
        names[self.product] = ops[-1].value if ops else ACCUMULATOR
        for node in self.members:
            if source(node) is not node:
                continue
            first = len(ops)
            for word, args in rows_of(node) or ():
                words = tuple(self._word(arg, names, loads, ops, first) for arg in args)
                ops.append(Op(f"v{len(ops)}", word, words))
            names[node] = ops[-1].value
        dtype = str(self.product.meta["val"].dtype).removeprefix("torch.")
        rows = [Load("bias", "n", dtype)] if bias is not None else []
        rows += [Load(names[node], "m n", dtype) for node in loads]
        stores = self._stores(names)
        gemm = self._gemm(rows, ops, stores, names, dtype)
        return Fusion(self.product, tuple(self.members), tuple(loads), stores, gemm)

    def _word(
        self, arg: object, names: dict[fx.Node, str], loads: list[fx.Node], ops: list[Op], first: int
    ) -> str | float:
        if isinstance(arg, fx.Node):
            node = source(arg)
            if node not in names:
                names[node] = f"t{len(loads)}"
                loads.append(node)
            return names[node]
        return ops[first + arg].value if type(arg) is int else float(arg)  # type: ignore[arg-type]

    def _stores(self, names: dict[fx.Node, str]) -> tuple[fx.Node, ...]:
        """The product and members that others read, the last one first."""
        inside = set(self.members)
        kept = [n for n in (self.product, *self.members) if n in names and self._leaves(n, inside)]
        return tuple(reversed(kept))

    def _leaves(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether anything outside the chain reads a value, under any shape of its rows."""
        return any(u not in inside or (source(u) is source(node) and self._leaves(u, inside)) for u in node.users)

    def _gemm(
        self, loads: list[Load], ops: list[Op], stores: tuple[fx.Node, ...], names: dict[fx.Node, str], dtype: str
    ) -> Gemm:
        """With the pre-activation stored too where the gradient reads it."""
        values = list(dict.fromkeys(names[node] for node in stores))
        pre = names[self.product]
        b = "k n" if self.product.args[3] else "n k"

        def made(values: list[str]) -> Gemm:
            rows = tuple(Store(value, dtype) for value in values)
            return Gemm("linear", dtype, b=b, loads=tuple(loads), ops=tuple(ops), stores=rows)

        full = made([*values, pre] if pre not in values else values)
        return full if pre in values or pre in layer.reads(full) else made(values)

    def _grow(self, graph: fx.Graph) -> None:
        behind: set[fx.Node] = set()  # what needs the product in another way than through the chain
        known = {self.product}
        for node in graph.nodes:
            reads = [n for n in node.all_input_nodes if n in known or n in behind]
            if not reads:
                continue
            if node not in self.claimed and self._joins(node, known, behind):
                known.add(node)
                self.members.append(node)
            else:
                behind.add(node)
        while self.members and not self._is_ordered():
            self.members.pop()
        while self._trim():
            pass

    def _trim(self) -> bool:
        """Drop what reads a value that others read too: a chain ends at a value that is wanted for itself."""
        inside = {self.product, *self.members}
        wanted = {n for n in inside if source(n) is n and self._leaves(n, inside)}
        dropped = {n for n in self.members if source(n) is n and any(source(a) in wanted for a in n.all_input_nodes)}
        self.members = [n for n in self.members if n not in dropped]
        return bool(dropped)

    def _joins(self, node: fx.Node, known: set[fx.Node], behind: set[fx.Node]) -> bool:
        if source(node) is not node:
            return node.args[0] in known
        rows = rows_of(node)
        return rows is not None and self._fits(node) and all(
            arg in known or (arg not in behind and self._fits(arg)) for arg in node.all_input_nodes
        )  # fmt: skip

    def _fits(self, node: fx.Node) -> bool:
        """Whether a value is the product's size and dtype."""
        shape = local(node, self.axes)
        same = len(shape) > 1 and shape[-1] == self.shape[-1] and math.prod(shape) == math.prod(self.shape)
        return same and node.meta["val"].dtype == self.product.meta["val"].dtype

    def _is_ordered(self) -> bool:
        """Whether all that reads the chain from outside comes behind its last op, where the kernel will stand."""
        inside = {self.product, *self.members}
        last = max(self.order[node] for node in self.members)
        return all(self.order[u] > last for node in inside for u in node.users if u not in inside)

    def _absorb(self) -> None:
        """A pointwise op before the chain that only the chain reads joins it, where it loads no more for that."""
        waiting = list(self.members)
        while waiting:
            for arg in waiting.pop().all_input_nodes:
                known = {self.product, *self.members}
                if arg in known or arg in self.claimed or arg.op != "call_function":
                    continue
                rows = rows_of(arg) if source(arg) is arg else []
                others = {source(n) for n in arg.all_input_nodes}
                joins = rows is not None and len(others) == 1 and all(map(self._fits, others))
                if joins and set(arg.users) <= set(self.members):
                    self.members.append(arg)
                    waiting.append(arg)


def _with_inner(fusion: Fusion, found: dict[fx.Node, Fusion]) -> Fusion:
    """With the product whose chain made the first operand and whose gradient is more than a copy."""
    made = source(arguments(fusion.product)[0])
    for other in found.values():
        if other.stores and other.stores[0] is made and made is not other.product and layer.reads(other.gemm):
            read = {u for u in made.users if u not in other.members}
            through = {fusion.product, *(u for u in read if source(u) is made)}
            if read <= through and all(set(u.users) <= {fusion.product} for u in read if source(u) is made):
                return replace(fusion, inner=other.product)
    return fusion
