"""Which numbers of a traced graph follow from the batch size: two traces at two sizes, told apart node by node.

    at 4 samples            at 5 samples            what it is
    reshape(x, [64, 32])    reshape(x, [80, 32])    a size: 16 for each sample of the micro-batch
    div(loss, 64)           div(loss, 80)           a number: 16 for each sample of the *global* batch
    mean(x)  # of 64        mean(x)  # of 80        a sum, divided by such a number
    mul(x, 4)               mul(x, 4)               a number of the model, equal by chance
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from partitioner.errors import InputError
from partitioner.graph.dependence import constants, evaluate, module_of
from partitioner.graph.nodes import emit, propagate_node, shape_of
from partitioner.samples.batch_laws import Build, known_law
from partitioner.samples.paired_captures import Sizes, is_size, pairs, unlike

aten = torch.ops.aten
_MEAN = aten.mean.dim


Buffers = dict[str, torch.Tensor]


def name_batch_numbers(
    first: fx.Graph, second: fx.Graph, sizes: Sizes, buffers: tuple[Buffers, Buffers]
) -> None:  # fmt: skip
    """Make of each number that follows from the batch size a function of the step's ``sample_count``, in both graphs.

    Notes in ``meta["batch_dims"]`` the dimensions that grow with the batch, and in ``meta["sized"]`` what grows and is
    not so much for each sample (pairs), or is another value for each batch size though no bigger. ``buffers`` are those
    of either trace.
    """
    fixed = constants(first), constants(second)
    for a, b in pairs(first, second, sizes):
        if a.op == "output":
            continue
        if a.op == "placeholder" and a.meta["kind"] == "buffer":
            _name_constant(a, b, sizes, buffers)
        a.meta["batch_dims"] = b.meta["batch_dims"] = _grown(a.meta["val"], b.meta["val"])
        if a not in fixed[0] and any(
            shape_of(a)[d] * sizes[1] != shape_of(b)[d] * sizes[0] for d in a.meta["batch_dims"]
        ):
            a.meta["sized"] = b.meta["sized"] = True
        if a.target == _MEAN and _elements(a) != _elements(b):
            _divided_sum(a, b, sizes)
        elif a.op == "call_function":
            _name_numbers(a, b, sizes)
            if a in fixed[0] and not a.meta["batch_dims"] and any(n.meta.get("batch_dims") for n in a.all_input_nodes):
                _name_made(
                    a,
                    b,
                    sizes,
                    (evaluate(first, fixed[0], {a}, buffers[0])[a], evaluate(second, fixed[1], {b}, buffers[1])[b]),
                )


def _name_made(a: fx.Node, b: fx.Node, sizes: Sizes, values: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A constant made of one that grows with the batch (``ones(b, s).sum()``)."""
    x, y = values
    if x.shape == y.shape and torch.equal(x, y):
        return
    if x.dim() or x.is_complex():
        a.meta["sized"] = b.meta["sized"] = True
        return
    number = known_law(x.item(), y.item(), sizes, a).emit
    for node in (a, b):
        with node.graph.inserting_before(node):
            new = number(node.graph, node, node.meta["val"].dtype)
        node.replace_all_uses_with(new)


def _name_constant(a: fx.Node, b: fx.Node, sizes: Sizes, buffers: tuple[Buffers, Buffers]) -> None:
    """A tensor that forward makes of Python numbers: a number of the batch, or the same for every batch."""
    x, y = (held[n.meta["source"]] for held, n in zip(buffers, (a, b), strict=True))
    if x is y or x.is_meta or y.is_meta or x.shape == y.shape and torch.equal(x, y):
        return
    if x.dim() or y.dim():
        raise InputError(
            f"forward makes a tensor of numbers of Python, {tuple(x.shape)} with {sizes[0]} samples, that is another "
            f"one with {sizes[1]}: make it of the batch's tensors"
        )
    number = known_law(x.item(), y.item(), sizes, a).emit
    for node in (a, b):
        like = next(iter(node.users))
        with node.graph.inserting_before(like):
            new = number(node.graph, like, node.meta["val"].dtype)
        node.replace_all_uses_with(new)


def _grown(a: Any, b: Any) -> tuple[int, ...]:
    if not isinstance(a, torch.Tensor) or a.dim() != b.dim():
        return ()
    return tuple(d for d, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if n != m)


def _elements(node: fx.Node) -> int:
    """How many elements a mean is of."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return math.prod(shape_of(source)) // max(1, math.prod(shape_of(node)))


def _divided_sum(a: fx.Node, b: fx.Node, sizes: Sizes) -> None:
    """A mean over samples as a sum in at least float32, divided by a number of the global batch."""
    counted = known_law(_elements(a), _elements(b), sizes, a).emit
    for node in (a, b):
        graph, dtype = node.graph, node.meta["val"].dtype
        wide = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        with graph.inserting_before(node):
            total = emit(graph, node, aten.sum.dim_IntList, *node.args, dtype=wide)
            mean = emit(graph, node, aten.div.Tensor, total, counted(graph, node, wide))
            mean = mean if wide == dtype else emit(graph, node, aten.to.dtype, mean, dtype)
        mean.meta["batch_dims"] = total.meta["batch_dims"] = node.meta["batch_dims"]
        node.replace_all_uses_with(mean)
        graph.erase_node(node)


def _name_numbers(a: fx.Node, b: fx.Node, sizes: Sizes) -> None:
    leaves, spec = pytree.tree_flatten_with_path((a.args, a.kwargs))
    others, other_spec = pytree.tree_flatten_with_path((b.args, b.kwargs))
    if spec != other_spec:
        raise unlike(a, b, sizes)
    for place, ((path, x), (_, y)) in enumerate(zip(leaves, others, strict=True)):
        if isinstance(x, fx.Node) or type(x) is type(y) and (x == y or x != x) or is_size(a, path):
            continue
        if not isinstance(x, int | float) or not isinstance(y, int | float) or isinstance(x, bool):
            raise unlike(a, b, sizes)
        number = known_law(x, y, sizes, a).emit
        for node in (a, b):
            _substitute(node, place, number)


def _substitute(node: fx.Node, place: int, number: Build) -> None:
    """The argument ``place`` of a call is now a tensor, its result of the same dtype as before."""
    if node.target == aten.full.default:
        _fill(node, number)
        return
    graph, dtype = node.graph, node.meta["val"].dtype
    if (target := _OF_TENSORS.get(node.target)) is not None:
        node.target = target
    with graph.inserting_before(node):
        value = number(graph, node, dtype if dtype in (torch.float64, torch.int64) else torch.float32)
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    leaves[place] = value
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    node.args, node.kwargs = tuple(args), dict(kwargs)
    try:
        propagate_node(node)
    except RuntimeError as error:
        raise InputError(
            f"{node.target} in {module_of(node)} takes a number that follows from the batch size, and only as a "
            "number: make it a tensor of it (torch.tensor(len(x)))"
        ) from error
    if node.meta["val"].dtype != dtype:
        with graph.inserting_after(node):
            cast = graph.call_function(aten.to.dtype, (node, dtype))
        cast.meta = dict(node.meta)
        node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
        propagate_node(cast)


def _fill(node: fx.Node, number: Build) -> None:
    """A tensor full of a number of the batch: that number, expanded."""
    graph, dtype, shape = node.graph, node.meta["val"].dtype, list(shape_of(node))
    with graph.inserting_before(node):
        new = number(graph, node, dtype if dtype in (torch.float64, torch.int64) else torch.float32)
        new = emit(graph, node, aten.to.dtype, new, dtype) if new.meta["val"].dtype != dtype else new
        if shape:
            new = emit(graph, node, aten.expand.default, new, shape)
            new.meta["batch_dims"] = node.meta["batch_dims"]
    node.replace_all_uses_with(new)
    graph.erase_node(node)


_OF_TENSORS: dict[object, Callable[..., object]] = {
    aten.pow.Tensor_Scalar: aten.pow.Tensor_Tensor,
    aten.masked_fill.Scalar: aten.masked_fill.Tensor,
    aten.eq.Scalar: aten.eq.Tensor,
    aten.ne.Scalar: aten.ne.Tensor,
    aten.gt.Scalar: aten.gt.Tensor,
    aten.ge.Scalar: aten.ge.Tensor,
    aten.lt.Scalar: aten.lt.Tensor,
    aten.le.Scalar: aten.le.Tensor,
    aten.remainder.Scalar: aten.remainder.Tensor,
    aten.clamp.default: aten.clamp.Tensor,
    aten.where.ScalarOther: aten.where.self,
}
