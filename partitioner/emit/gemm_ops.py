"""Products by a weight as the GEMM op that kernels stand behind; a bias joins its product where nothing else reads it.

    %y = aten.linear(%x, %w)        -->    %y = cutlass_ops.linear(%x, %w, None, False)
    %z = aten.add(%y, %b)           -->    %z = cutlass_ops.linear(%x, %w, %b, False)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from cutlass_ops.linear import gemm

aten = torch.ops.aten
_TRANSPOSED = {aten.linear.default: False, aten.matmul.default: True}


def gemms(graph: fx.Graph) -> None:
    """Rewrite the products and their biases of a lowered block in place."""
    for node in list(graph.nodes):
        if node.target in _TRANSPOSED and len(node.args) == len(node.all_input_nodes) == 2 and _dims(node.args[1]) == 2:
            node.args = (*node.args, None, _TRANSPOSED[node.target])
            node.target = gemm.ops.linear.default
        elif node.target == aten.add.Tensor:
            _join_bias(node)


def _join_bias(node: fx.Node) -> None:
    if len(node.args) != 2 or node.kwargs:
        return
    for product, bias in (node.args, node.args[::-1]):
        if isinstance(product, fx.Node) and _is_bare(product) and _dims(bias) == 1:
            x, weight, _, transposed = product.args
            node.target, node.args = product.target, (x, weight, bias, transposed)
            node.graph.erase_node(product)
            return


def _is_bare(node: fx.Node) -> bool:
    """Whether a node is a product without a bias and with one reader."""
    return node.target == gemm.ops.linear.default and node.args[2] is None and len(node.users) == 1


def _dims(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else None
