"""Where an answer begins and ends in a training graph: the tokens that are looked up, the logits of its loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.generating.refusal import NotDerived
from partitioner.graph.graph import Graph
from partitioner.graph.nodes import call, operands, shape_of
from partitioner.ops.own_ops import own
from partitioner.sharding.op_rules import rule_of

aten = torch.ops.aten
_CUTS = (aten.slice.Tensor, own.part.default, aten.select.int, aten.index_select.default)  # drop positions
_CASTS = (aten.to.dtype, aten.clone.default)


@dataclass(frozen=True)
class Ends:
    """``tokens`` (b, positions) are looked up in an embedding; ``logits`` have the positions of the tokens. ``asks``:
    inputs on which the tokens and the targets hang."""

    tokens: fx.Node
    logits: fx.Node
    asks: tuple[str, ...]


def ends(graph: Graph) -> Ends:
    """Of a graph that ends in one loss over classes. Raises NotDerived where it has no such ends."""
    losses = [n for n in graph.module.graph.nodes if n.target == own.cross_entropy.default]
    if len(losses) != 1:
        raise NotDerived(f"the loss has {len(losses) or 'no'} cross entropies: answers are made of one's logits")
    targets = _inputs([operands(losses[0])[1]])
    found = [n for n in _looked_up(graph) if _reaches(n, losses[0])]
    near = [n for n in found if _inputs([n]) & targets]
    tokens = near if len(near) == 1 else found
    if len(tokens) != 1:
        words = ", ".join(n.name for n in tokens) or "nothing"
        raise NotDerived(f"tokens are looked up at {len(tokens)} places ({words}): which are an answer's?")
    asks = _inputs(tokens) | targets
    return Ends(tokens[0], _logits(losses[0]), tuple(n for n in graph.inputs if n in asks))


def needed(wanted: Iterable[fx.Node], tokens: fx.Node | None) -> set[fx.Node]:
    """What some nodes hang on, themselves among it; no further up than ``tokens``."""
    found, work = set[fx.Node](), list(wanted)
    while work:
        node = work.pop()
        if node not in found:
            found.add(node)
            work += [] if node is tokens else node.all_input_nodes
    return found


def begins(graph: Graph, ends: Ends) -> tuple[int, ...]:
    """The token that stands first in every text, whatever the targets are: where the model itself puts it there."""
    if ends.tokens.op == "placeholder":
        return ()
    first = set[int]()
    for number in (0, 1):
        first |= set(_value(graph, ends.tokens, number)[:, 0].tolist())
    return tuple(first) if len(first) == 1 else ()


def check_positions(graph: Graph, ends: Ends) -> None:
    """Raises InputError where a text has more positions than a table that is looked up by position."""
    for table, index in _lookups(graph):
        read = {n.meta["kind"] for n in needed([index], None) if n.op == "placeholder"}
        if index is ends.tokens or index.op == "placeholder" or "parameter" in read:
            continue
        rows, last = shape_of(table)[0], int(_value(graph, index, 0).max())
        if last >= rows:
            raise InputError(
                f"texts of {shape_of(ends.tokens)[1]:,} positions: {table.meta.get('source', table.name)} has {rows:,} "
                f"rows, and row {last:,} is looked up: make shorter ones"
            )


def _value(graph: Graph, wanted: fx.Node, number: int) -> torch.Tensor:
    """Of a node, where the batch is this number everywhere."""
    values: dict[fx.Node, torch.Tensor] = {}
    read = needed([wanted], None)
    for node in (n for n in graph.module.graph.nodes if n in read):
        if node.op == "placeholder":
            given = torch.full(shape_of(node), number, dtype=node.meta["val"].dtype)
            values[node] = graph.buffers[node.meta["source"]] if node.meta["kind"] == "buffer" else given
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = call(node, *args, **kwargs)
    return values[wanted]


def vocabulary(graph: Graph, ends: Ends) -> int:
    """How many tokens can be looked up."""
    return min(shape_of(table)[0] for table, index in _lookups(graph) if index is ends.tokens)


def _looked_up(graph: Graph) -> list[fx.Node]:
    """Integers of each sample that rows of a parameter are taken by."""
    found = [index for _, index in _lookups(graph) if _inputs([index]) and len(shape_of(index)) == 2]
    return list(dict.fromkeys(found))


def _lookups(graph: Graph) -> list[tuple[fx.Node, fx.Node]]:
    """Tables, and what takes rows of them."""
    rules = [(n, rule_of(str(n.target))) for n in graph.module.graph.nodes if n.op == "call_function"]
    return [(operands(n)[0], operands(n)[1]) for n, rule in rules if rule and rule.lookup]


def _inputs(nodes: Iterable[fx.Node]) -> set[str]:
    """The batch's tensors on which some nodes hang."""
    seen, work, found = set[fx.Node](), list(nodes), set[str]()
    while work:
        node = work.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "placeholder" and node.meta["kind"] == "input":
            found.add(node.meta["source"])
        work += node.all_input_nodes
    return found


def _reaches(node: fx.Node, loss: fx.Node) -> bool:
    """Whether the logits of a loss hang on a node."""
    seen, work = set[fx.Node](), [operands(loss)[0]]
    while work:
        at = work.pop()
        if at is node:
            return True
        if at not in seen:
            seen.add(at)
            work += at.all_input_nodes
    return False


def _logits(loss: fx.Node) -> fx.Node:
    """What the loss reads, before positions are dropped, laid flat or cast for it."""
    node = operands(loss)[0]
    while node.op == "call_function":
        rule = rule_of(str(node.target))
        if node.target not in (*_CUTS, *_CASTS) and not (rule and rule.view):
            break
        node = operands(node)[0]
    return node
