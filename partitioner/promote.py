"""The same graph in float64: parameters, inputs, casts and dtype literals promoted, so that parity is exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from partitioner.graph import Graph
from partitioner.shapes import propagate

_LOW = (torch.float32, torch.bfloat16, torch.float16)


def promote(graph: Graph) -> Graph:
    """``graph`` with every floating-point value in float64; the argument is left as it was."""
    copies: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    new.output(new.graph_copy(graph.module.graph, copies))
    for old, node in copies.items():
        node.name, node.meta = old.name, dict(old.meta)
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _dtype)  # type: ignore[misc]
        if node.op == "placeholder":
            node.meta["val"] = _value(node.meta["val"])
    module = fx.GraphModule(graph.module, new)
    propagate(module)
    _copy_casts(module.graph)
    module.recompile()
    parameters = {n: dataclasses.replace(p, dtype=_dtype(p.dtype)) for n, p in graph.parameters.items()}
    buffers = {n: _value(b) for n, b in graph.buffers.items()}
    return dataclasses.replace(graph, module=module, parameters=parameters, buffers=buffers)


def _dtype(word: Any) -> Any:
    return torch.float64 if word in _LOW else word


def _value(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.dtype in _LOW else tensor


def _copy_casts(graph: fx.Graph) -> None:
    """A cast to the dtype that its operand has copies all the same: plans of the graph are plans of this one."""
    for node in graph.nodes:
        if node.target == torch.ops.aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.args = (*node.args[:2], False, True)
