"""The loss as a global sum over a global count, and the count as a program of its own."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from partitioner.errors import InputError
from partitioner.ops import own
from partitioner.shapes import emit, shape_of

aten = torch.ops.aten


def new_input(graph: fx.Graph, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
    """A batch input that the runtime gives beside the source model's own."""
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.placeholder(name)
    node.meta |= {"source": name, "kind": "input", "val": torch.empty(shape, dtype=dtype, device="meta")}
    return node


def count_losses(graph: fx.Graph) -> None:
    """A mean cross entropy becomes a sum divided by the input ``loss_count``, which the runtime counts globally."""
    losses = [n for n in graph.nodes if n.op == "call_function" and n.target == aten.cross_entropy_loss.default]
    if len(losses) != 1:
        raise InputError(
            f"the loss must be one cross entropy, the model has {len(losses)}: "
            "other losses are not split over samples yet"
        )
    node = losses[0]
    names = ("self", "target", "weight", "reduction", "ignore_index", "label_smoothing")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    reduction, smoothing = given.get("reduction", 1), given.get("label_smoothing", 0.0)
    logits, target = given["self"], given["target"]
    assert isinstance(logits, fx.Node)
    assert isinstance(target, fx.Node)
    if given.get("weight") is not None or reduction == 0 or target.meta["val"].is_floating_point():
        raise InputError(
            "the cross entropy has class weights, class probabilities or no reduction: "
            "its mean does not separate over samples"
        )
    with graph.inserting_before(node):
        logits, target = _two_dimensional(graph, node, logits, target)
        ignored = given.get("ignore_index", -100)
        loss = emit(graph, node, own.cross_entropy_sum.default, logits, target, ignored, smoothing)
        if reduction == 1:
            loss = emit(graph, node, aten.div.Tensor, loss, new_input(graph, "loss_count", (), torch.float64))
    node.replace_all_uses_with(loss)
    graph.erase_node(node)


def _two_dimensional(graph: fx.Graph, node: fx.Node, logits: fx.Node, target: fx.Node) -> tuple[fx.Node, fx.Node]:
    shape = shape_of(logits)
    if len(shape) <= 2:
        return logits, target
    moved = emit(graph, node, aten.permute.default, logits, [0, *range(2, len(shape)), 1])
    tokens = math.prod(shape) // shape[1]
    return (
        emit(graph, node, aten.reshape.default, moved, [tokens, shape[1]]),
        emit(graph, node, aten.reshape.default, target, [tokens]),
    )


def count_targets(graph: fx.Graph) -> tuple[fx.GraphModule | None, tuple[str, ...]]:
    """A module from batch inputs to the number of counted targets (int64, scalar), and its arguments' names.

    A buffer that the targets depend on is an argument named ``buffer:NAME``. None when the loss is a plain sum.
    """
    if not any(n.op == "placeholder" and n.meta["source"] == "loss_count" for n in graph.nodes):
        return None, ()
    loss = next(n for n in graph.nodes if n.target == own.cross_entropy_sum.default)
    needed: set[fx.Node] = set()
    stack = [loss.args[1]]
    while stack:
        node = stack.pop()
        assert isinstance(node, fx.Node)
        if node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    names: list[str] = []
    for node in [n for n in graph.nodes if n in needed]:
        copies[node] = new.node_copy(node, lambda n: copies[n])
        if node.op == "placeholder":
            names.append(("buffer:" if node.meta["kind"] == "buffer" else "") + node.meta["source"])
    counted = new.call_function(aten.ne.Scalar, (copies[loss.args[1]], loss.args[2]))  # type: ignore[index]
    new.output(new.call_function(aten.sum.default, (counted,)))
    return fx.GraphModule(nn.Module(), new), tuple(names)
