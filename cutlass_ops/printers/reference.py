"""A fused GEMM in torch, printed as an fx graph: the numbers that every kernel must meet.

    %acc = matmul(float(%a), float(%b).T)    %v0 = add(%acc, float(%bias))    %v1 = gelu(%v0)    (%v1.to(bfloat16),)

``reference(gemm)`` takes (a, b, *loads in order), for a grouped GEMM (a, b, offsets, *loads), in the shapes of
``spec``, and returns a tuple with a tensor for each store. On a GPU float32 products must not be rounded to TF32 by
torch's flags.
"""

from __future__ import annotations

import torch
from torch import fx

from cutlass_ops.spec.elementwise import OPS
from cutlass_ops.spec.spec import ACCUMULATOR, Gemm, Load


def reference(gemm: Gemm) -> fx.GraphModule:
    """The module whose ``code`` reads as the spec and whose call computes it."""
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    offsets = (graph.placeholder("offsets"),) if gemm.kind == "grouped" else ()
    operands = {load.name: graph.placeholder(load.name) for load in gemm.loads}
    wide = torch.float64 if gemm.dtype == "float64" else torch.float32
    a, b = _matrix(graph, a, gemm.a == "k m", wide), _matrix(graph, b, gemm.b == "n k", wide)
    values: dict[str, fx.Node] = {
        ACCUMULATOR: graph.create_node(
            "call_function", grouped if offsets else torch.matmul, (a, b, *offsets), name=ACCUMULATOR
        )
    }
    for load in gemm.loads:
        values[load.name] = _broadcast(graph, gemm.kind, load, operands[load.name], wide, offsets, a)
    for op in gemm.ops:
        arguments = tuple(values[arg] if isinstance(arg, str) else arg for arg in op.args)
        values[op.value] = graph.create_node("call_function", OPS[op.op].torch, arguments, name=op.value)
    stores = [graph.call_method("to", (values[s.value], getattr(torch, s.dtype))) for s in gemm.stores]
    graph.output(tuple(stores))
    return fx.GraphModule({}, graph)


def grouped(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """a (m, k), b (l, k, n), offsets (l + 1) ascending from 0 to m -> (m, n): each group of rows by its own matrix."""
    bounds = offsets.tolist()
    return torch.cat([a[start:end] @ matrix for start, end, matrix in zip(bounds[:-1], bounds[1:], b, strict=True)])


def of_rows(vectors: torch.Tensor, offsets: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """vectors (l, n) -> (m, n): each row of ``a`` gets the vector of its group."""
    return vectors.repeat_interleave(offsets.diff().to(torch.int64), 0, output_size=a.shape[0])


def _matrix(graph: fx.Graph, operand: fx.Node, transposed: bool, wide: torch.dtype) -> fx.Node:
    """``operand`` widened, its last two dimensions in the order of the product."""
    widened = _widen(graph, operand, wide)
    return graph.call_method("transpose", (widened, -1, -2)) if transposed else widened


def _widen(graph: fx.Graph, operand: fx.Node, wide: torch.dtype) -> fx.Node:
    return graph.create_node("call_method", "to", (operand, wide), name=f"wide_{operand.name}")


def _broadcast(
    graph: fx.Graph,
    kind: str,
    load: Load,
    operand: fx.Node,
    wide: torch.dtype,
    offsets: tuple[fx.Node, ...],
    a: fx.Node,
) -> fx.Node:
    """A load widened, of a shape that broadcasts against the accumulator."""
    widened = _widen(graph, operand, wide)
    if load.over == "m":
        return graph.call_method("unsqueeze", (widened, -1))
    if load.over == "n" and kind == "batched":
        return graph.call_method("unsqueeze", (widened, -2))
    if load.over == "n" and offsets:
        return graph.call_function(of_rows, (widened, *offsets, a))
    return widened
