"""The same graph in float64: parameters, inputs, casts and dtype literals promoted, so that parity is exact."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from partitioner.graph.graph import Graph
from partitioner.graph.nodes import propagate

WIDE = {
    **dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), torch.float64),
    torch.complex64: torch.complex128,
}


def promote(graph: Graph) -> Graph:
    """``graph`` with every real value in float64, every complex one in complex128; the argument is left as it was."""
    parameters = {n: dataclasses.replace(p, dtype=_dtype(p.dtype)) for n, p in graph.parameters.items()}
    buffers = {n: _value(b) for n, b in graph.buffers.items()}
    counts = tuple(dataclasses.replace(c, module=_promoted(c.module)) for c in graph.counts)
    module = _promoted(graph.module)
    own = graph.precision.promoted()
    return dataclasses.replace(
        graph, module=module, parameters=parameters, buffers=buffers, counts=counts, precision=own
    )


def _promoted(module: fx.GraphModule) -> fx.GraphModule:
    copies: dict[fx.Node, fx.Node] = {}
    new = fx.Graph()
    new.output(new.graph_copy(module.graph, copies))
    for old, node in copies.items():
        node.name, node.meta = old.name, dict(old.meta)
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _dtype)  # type: ignore[misc]
        if node.op == "placeholder":
            node.meta["val"] = _value(node.meta["val"])
    made = fx.GraphModule(module, new)
    propagate(made)
    _copy_casts(made.graph)
    made.recompile()
    return made


def _dtype(word: Any) -> Any:
    return WIDE.get(word, word) if isinstance(word, torch.dtype) else word


def _value(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_dtype(tensor.dtype))


def _copy_casts(graph: fx.Graph) -> None:
    """A cast to the dtype that its operand has copies all the same: plans of the graph are plans of this one."""
    for node in graph.nodes:
        if node.target == torch.ops.aten.to.dtype and node.args[0].meta["val"].dtype == node.args[1]:
            node.args = (*node.args[:2], False, True)
