"""The modules of a block that are recomputed by themselves, found by what its ops are to each other.

    stream      what enters, and its sums with what products make of it: x + f(x)
    selective   the core of attention
    norms       what is made of the stream without products, on its way to those of weights
    mlp         products by weights that neither lead to attention's core nor come of it, and all between them
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from partitioner.graph.nodes import op_name, operands
from partitioner.graph.tied_blocks import Folded
from partitioner.layouts.op_kinds import core, is_attention, is_product, parts
from partitioner.plan.recompute_ways import MLP, NORMS, SELECTIVE
from partitioner.sharding.op_rules import rule_of


class BlockModules:
    """Of one unit of a group."""

    def __init__(self, folded: Folded, group: int) -> None:
        self.body, self.differentiable = folded.body(group), folded.differentiable
        self.core = frozenset(core(self.body))
        self.stream, self.plain = self._of_the_stream()

    def nodes(self, module: str) -> list[fx.Node]:
        """The ops of one of ``recompute_ways.MODULES``, in order."""
        found = {SELECTIVE: lambda: self.core, NORMS: self._norms, MLP: self._mlp}[module]()
        return [n for n in self.body if n in found]

    def regions(self, modules: Sequence[str]) -> list[frozenset[fx.Node]]:
        """Their ops, each connected part by itself."""
        return [part for module in modules for part in parts(self.nodes(module))]

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
            if node in self.core or _computes(node):
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

    def _norms(self) -> Collection[fx.Node]:
        leads = {n for n in self.body if _computes(n) and n not in self.core}
        for node in reversed(self.body):
            leads |= {node} if node in self.plain and not leads.isdisjoint(node.users) else set()
        return self.plain & leads

    def _mlp(self) -> Collection[fx.Node]:
        beside = self._below(self.core) | self._above(self.core)
        ends = {n for n in self.body if is_product(n) and n in self.differentiable and n not in beside}
        return self._below(ends) & self._above(ends)

    def _below(self, ends: Collection[fx.Node]) -> set[fx.Node]:
        """These and what is made of them, up to the stream."""
        found = set(ends)
        for node in self.body:
            found |= {node} if node not in self.stream and not found.isdisjoint(operands(node)) else set()
        return found

    def _above(self, ends: Collection[fx.Node]) -> set[fx.Node]:
        """These and what they are made of, down to the stream."""
        found = set(ends)
        for node in reversed(self.body):
            found |= {node} if node not in self.stream and not found.isdisjoint(node.users) else set()
        return found


def _computes(node: fx.Node) -> bool:
    return is_product(node) or is_attention(node)
