"""What ops of a unit are: products, biases that join them, attention, and its core from the scores to their use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from partitioner.graph.nodes import is_tensor, op_name, operands, shape_of
from partitioner.sharding.op_rules import rule_of
from partitioner.sharding.rule import Rule


def core(body: list[fx.Node]) -> list[fx.Node]:
    """The core of attention: products of two values that hang on samples, and all between; or the fused kernel.

    A product by a weight stands between two attentions, and belongs to none.
    """
    fixed = _without_samples(body)
    ends = {n for n in body if is_attention(n) or (is_product(n) and not {*operands(n)[:2]} & fixed)}
    between = {n for n in body if n in ends or not is_product(n)}
    below, above = set(ends), set(ends)
    for node in body:
        below |= {node} if node in between and not below.isdisjoint(operands(node)) else set()
    for node in reversed(body):
        above |= {node} if node in between and not above.isdisjoint(node.users) else set()
    return [n for n in body if n in below and n in above]


def parts(nodes: Sequence[fx.Node]) -> list[frozenset[fx.Node]]:
    """Those that hang together, each by itself."""
    inside, found = set(nodes), list[frozenset[fx.Node]]()
    while inside:
        reached, work = set[fx.Node](), [next(n for n in nodes if n in inside)]
        while work:
            node = work.pop()
            if node in inside and node not in reached:
                reached.add(node)
                work += [*operands(node), *node.users]
        inside -= reached
        found.append(frozenset(reached))
    return found


def is_product(node: fx.Node) -> bool:
    """Whether a node is a product of two operands."""
    rule = _rule(node)
    return rule is not None and rule.gemm is not None and len(operands(node)) > 1


def is_bias(node: fx.Node) -> bool:
    """Whether an op adds a bias to a product that nothing else reads, so that the GEMM does it."""
    return biased(node) is not None


def biased(node: fx.Node) -> int | None:
    """Which operand of such an op is the product; None of any other op."""
    found, rule = operands(node), _rule(node)
    if rule is None or not rule.bias or len(found) != 2:
        return None
    for n, (product, bias) in enumerate((found, found[::-1])):
        row = _rule(product)
        if row is not None and row.weight and len(product.users) == 1 and len(shape_of(bias)) == 1:
            return n
    return None


def is_attention(node: fx.Node) -> bool:
    """Whether a node is attention as one op."""
    rule = _rule(node)
    return rule is not None and rule.attention is not None


def is_choice(node: fx.Node, differentiable: set[fx.Node]) -> bool:
    """Whether an op chooses by computed values (a router): run again it could choose otherwise, so that is kept."""
    if not is_tensor(node) or node in differentiable or not any(n in differentiable for n in operands(node)):
        return False
    dtype = node.meta["val"].dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _without_samples(body: list[fx.Node]) -> set[fx.Node]:
    """Parameters, buffers and what the ops of a unit make of them alone."""
    read = {n for node in body for n in operands(node)}
    found = {n for n in read if n.op == "placeholder" and n.meta["kind"] != "input"}
    for node in body:
        found |= {node} if all(n in found for n in operands(node)) else set()
    return found


def _rule(node: fx.Node) -> Rule | None:
    return rule_of(op_name(node.target)) if node.op == "call_function" else None
