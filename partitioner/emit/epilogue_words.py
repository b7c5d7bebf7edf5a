"""ATen's pointwise ops in the words of a GEMM's epilogue, and which nodes are one value under another shape of rows.

    aten.mul.Tensor(x, 0.5)             mul(x, 0.5)
    aten.pow.Tensor_Scalar(x, 3.0)      mul(x, x), mul of that and x
    aten.reshape(x, [32, 64])           x, where the last dimension stays
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from partitioner.graph.nodes import arguments
from partitioner.sharding.layout import largest_shape
from partitioner.sharding.mesh_axes import Axes

aten = torch.ops.aten
Arg = fx.Node | float
# an op of an epilogue and its arguments; an int is the value of the row of that number before it
Spelling = tuple[str, tuple[Arg | int, ...]]

_UNARY: dict[object, str] = {
    aten.relu.default: "relu",
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
}
_BINARY: dict[object, str] = {aten.add.Tensor: "add", aten.sub.Tensor: "sub", aten.mul.Tensor: "mul"}


def rows_of(node: fx.Node) -> list[Spelling] | None:
    """The ops of an epilogue that compute ``node`` from its operands, or None where there are none."""
    if node.target in _UNARY:
        return [(_UNARY[node.target], (arguments(node)[0],))]
    if node.target in _BINARY and not node.kwargs and len(node.args) == 2 and all(map(_is_argument, node.args)):
        given = tuple(arg if isinstance(arg, fx.Node) else float(arg) for arg in arguments(node))
        return [(_BINARY[node.target], given)]
    if node.target == aten.gelu.default:
        word = node.kwargs.get("approximate", "none")
        return [("gelu_tanh" if word == "tanh" else "gelu", (arguments(node)[0],))]
    if node.target == aten.neg.default:
        return [("mul", (arguments(node)[0], -1.0))]
    if node.target == aten.pow.Tensor_Scalar and node.args[1] in (2, 3):
        x: Any = node.args[0]
        return [("mul", (x, x)), *([("mul", (0, x))] if node.args[1] == 3 else [])]
    return None


def source(node: fx.Node) -> fx.Node:
    """The node whose value ``node`` is, its rows under another shape."""
    while node.target == aten.reshape.default and _columns(node) == _columns(node.args[0]):
        node = arguments(node)[0]
    return node


def local(node: fx.Node, axes: Axes) -> tuple[int, ...]:
    """The shape of an emitted node's value on rank 0."""
    return largest_shape(tuple(node.meta["val"].shape), node.meta["layout"], axes)


def _columns(node: Any) -> int | None:
    """The whole size of the last dimension."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape[-1] if isinstance(value, torch.Tensor) and value.dim() else None


def _is_argument(arg: Any) -> bool:
    return isinstance(arg, fx.Node | int | float) and not isinstance(arg, bool)
