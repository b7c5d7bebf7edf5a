"""What a plan assumes of its model: the data types of its parameters and of its products, the tokens of a sample."""

from __future__ import annotations

from collections import Counter

import torch

from partitioner.cost.op_seconds import product_type
from partitioner.graph.graph import Graph, placeholders
from partitioner.precision import RECIPES


def assumed(graph: Graph) -> dict[str, str | int]:
    """``dtype`` of most parameters, ``product_dtype`` of most FLOPs, ``tokens`` of a sample, 0 where it is no text."""
    parameters: Counter[str] = Counter()
    for info in graph.parameters.values():
        parameters[_name(info.dtype)] += torch.Size(info.shape).numel()
    products: Counter[str] = Counter()
    for _, row in graph.digraph.nodes(data=True):
        products[row["dtype"]] += row["forward_flops"]
    dtype = _most(parameters, _name(torch.float32))
    recipe = RECIPES.get(graph.precision.products)
    product_dtype = recipe.dtype if recipe else product_type(_most(products, dtype), graph.precision)
    return {"dtype": dtype, "product_dtype": product_dtype, "tokens": _tokens(graph)}


def _most(counts: Counter[str], otherwise: str) -> str:
    return max(sorted(counts), key=lambda name: counts[name]) if counts.total() else otherwise


def _tokens(graph: Graph) -> int:
    """The length of the longest input of integers that has a sample a row."""
    inputs = placeholders(graph.module.graph, "input")
    values = [inputs[name].meta["val"] for name in graph.batched]
    rows = [v for v in values if v.dim() == 2 and v.dtype in (torch.int64, torch.int32)]
    return max((v.shape[1] for v in rows), default=0)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
