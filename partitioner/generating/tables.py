"""Are tables by positions what they are for every length of a text?"""

from __future__ import annotations

import math

import torch
from torch import fx

from partitioner.generating.causal_masks import LOW
from partitioner.generating.ends import ends, needed
from partitioner.generating.numbers import Numbers, sized_dimension
from partitioner.generating.refusal import refused
from partitioner.graph.dependence import constants, evaluate
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import shape_of
from partitioner.sharding.op_rules import rule_of

aten = torch.ops.aten
NEAR = 1e-5  # numbers of tables that differ by less are the same, made by another kernel
OF_LENGTH = "hangs on the whole length of the text"
_FOLLOWED = (aten.add.Tensor, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.to.dtype, aten.clone.default)


def check_tables(first: Graph, second: Graph, numbers: Numbers) -> None:
    """Raises NotDerived, naming the op, where what is made of no token is another for texts of another length: answers
    would hang on the length of the longest text."""
    found = ends(first)
    fixed, wanted = constants(first.module.graph), needed([found.logits], found.tokens)
    for node in (n for n in first.module.graph.nodes if n in wanted and n.op == "call_function"):
        if node not in fixed and any(sized_dimension(node, place) is None for place in numbers.differing(node)):
            raise refused(node, OF_LENGTH)
    other = {numbers.twin[n] for n in fixed}
    for node in (n for n in fixed & wanted if any(u in wanted and u not in fixed for u in n.users)):
        twin = numbers.twin[node]
        here = evaluate(first.module.graph, fixed, {node}, first.buffers)[node]
        there = evaluate(second.module.graph, other, {twin}, second.buffers)[twin]
        if here.dim() != there.dim():
            raise refused(node, OF_LENGTH)
        both = tuple(slice(0, min(sizes)) for sizes in zip(here.shape, there.shape, strict=True))
        if not _alike(here[both], there[both]) and not (
            _moves_rows(here[both], there[both]) and _is_forgotten(node, wanted)
        ):
            raise refused(node, OF_LENGTH)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_floating_point() or a.is_complex():
        return torch.allclose(a, b, NEAR, NEAR, equal_nan=True)
    return torch.equal(a, b)


def _moves_rows(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tables differ by one number for each row, where they hide nothing."""
    if not a.is_floating_point() or a.dim() == 0 or not torch.equal(a > LOW, b > LOW):
        return False
    apart, seen = a - b, a > LOW
    most, least = apart.where(seen, -math.inf).amax(-1), apart.where(seen, math.inf).amin(-1)
    return bool((most - least <= NEAR * (1 + a.where(seen, 0).abs().amax())).all())


def _is_forgotten(node: fx.Node, wanted: set[fx.Node]) -> bool:
    """Whether all that sees a table is a softmax over its last dimension, which forgets what all of a row has more."""
    work = [user for user in node.users if user in wanted]
    for at in work:
        rule = rule_of(str(at.target))
        if rule and rule.attention:
            if at.args[3] is not node:
                return False
        elif at.target == aten.softmax.int:
            if at.args[1] not in (-1, len(shape_of(at)) - 1):
                return False
        elif at.target in _FOLLOWED:
            work += [user for user in at.users if user in wanted and user not in work]
        else:
            return False
    return True
