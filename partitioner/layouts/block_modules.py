"""The modules of a block that are recomputed by themselves, found by what its ops are to each other.

    stream      what enters, and its sums with what products make of it: x + f(x)
    selective   the core of attention
    mlp         products by weights that neither lead to attention's core or its projection nor come of them, what lies
                between them, and their biases; where kernels are fused, with the norm that nobody else reads, which is
                one with the first

A mixture's experts are no MLP: what a router chose stands between its products.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from torch import fx

from partitioner.graph.nodes import op_name, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.op_kinds import biased, core, is_attention, is_choice, is_product, parts
from partitioner.plan.recompute_ways import MLP, SELECTIVE
from partitioner.sharding.op_rules import rule_of


class BlockModules:
    """Of one unit of a group; ``fused``: norms are one with the product that reads them."""

    def __init__(self, folded: Folded, group: int, fused: bool) -> None:
        self.body, self.differentiable, self.fused = folded.body(group), folded.differentiable, fused
        self.core = frozenset(core(self.body))

    def regions(self, modules: Sequence[str]) -> list[frozenset[fx.Node]]:
        """The ops of some of ``recompute_ways.MODULES``, each connected part by itself."""
        return [part for module in modules for part in parts([n for n in self.body if n in self._nodes(module)])]

    def _nodes(self, module: str) -> Collection[fx.Node]:
        return {SELECTIVE: lambda: self.core, MLP: lambda: self.mlp}[module]()

    @cached_property
    def _of_the_stream(self) -> tuple[set[fx.Node], set[fx.Node]]:
        """The stream, and what is made of it without products."""
        inside = {*self.body}
        entering = {n for node in self.body for n in operands(node) if n not in inside and self._has_samples(n)}
        samples, stream, plain = set(entering), set(entering), set[fx.Node]()
        for node in self.body:
            read = {n for n in operands(node) if n in samples}
            if not read or node not in self.differentiable:
                continue
            samples.add(node)
            if node in self.core or is_product(node) or is_attention(node):
                continue
            beside = read - stream - plain
            rule = rule_of(op_name(node.target))
            if not beside:
                plain.add(node)
            elif beside != read and rule is not None and rule.sum:
                stream.add(node)
        return stream, plain

    def _has_samples(self, node: fx.Node) -> bool:
        is_held = node.op == "placeholder" and node.meta["kind"] != "input"
        return node in self.differentiable and not is_held

    @cached_property
    def mlp(self) -> Collection[fx.Node]:
        """Its ops; none where there is no such module."""
        below = self._below(self.core)
        beside = below | self._above({*self.core, *(n for n in below if is_product(n))})
        ends = {n for n in self.body if is_product(n) and n in self.differentiable and n not in beside}
        found = self._below(ends) & self._above(ends)
        if any(is_choice(n, self.differentiable) for n in found):
            return frozenset()
        found |= {n for n in self.body if (place := biased(n)) is not None and operands(n)[place] in found}
        _, plain = self._of_the_stream
        for node in reversed(self.body if self.fused else []):
            found |= {node} if node in plain and node.users and found.issuperset(node.users) else set()
        return found

    def _below(self, ends: Collection[fx.Node]) -> set[fx.Node]:
        """These and what is made of them, up to the stream."""
        found, (stream, _) = set(ends), self._of_the_stream
        for node in self.body:
            found |= {node} if node not in stream and not found.isdisjoint(operands(node)) else set()
        return found

    def _above(self, ends: Collection[fx.Node]) -> set[fx.Node]:
        """These and what they are made of, down to the stream."""
        found, (stream, _) = set(ends), self._of_the_stream
        for node in reversed(self.body):
            found |= {node} if node not in stream and not found.isdisjoint(node.users) else set()
        return found
