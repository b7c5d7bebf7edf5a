"""What autograd keeps of a graph between forward and backward, each storage once: what rules say that ops save."""

from __future__ import annotations

import torch
from torch import fx

from partitioner.graph.dependence import parameter_free
from partitioner.graph.nodes import op_of, operands
from partitioner.sharding.op_rules import rule_of


def saved_bytes(graph: fx.Graph, differentiable: set[fx.Node]) -> dict[fx.Node, int]:
    """Bytes that each op is the first to keep, less what is kept anyhow: parameters, inputs, constants, prelude."""
    found: dict[fx.Node, int] = {}
    free = parameter_free(graph)
    storages = {_storage(n) for n in graph.nodes if n.op == "placeholder" or n in free}
    for node in graph.nodes:
        if node not in differentiable or node.op != "call_function":
            continue
        rule = rule_of(str(node.target))
        found[node] = int(rule.hidden(op_of(node), node.meta["val"].element_size())) if rule and rule.hidden else 0
        for value in saved(node, differentiable):
            if _storage(value) not in storages:
                storages.add(_storage(value))
                found[node] += value.meta["val"].untyped_storage().nbytes()
    return found


def saved(node: fx.Node, differentiable: set[fx.Node]) -> list[fx.Node]:
    """The operands and result that backward of ``node`` reads; a factor only where another has a gradient."""
    rule, sources = rule_of(str(node.target)), operands(node)
    found: list[fx.Node] = []
    for word in rule.saves if rule else ():
        if word == "out":
            found.append(node)
        elif isinstance(word, int) and word < len(sources):
            others = [n for i, n in enumerate(sources) if i != word]
            if not (rule and rule.bilinear) or any(n in differentiable for n in others):
                found.append(sources[word])
    return found


def _storage(node: fx.Node) -> int:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return id(node)
    return value.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
