"""Whether a model keeps a window's documents apart: asked before it is trained on packed ones, refused if it does not.

A graph that is small is run: what is asked of the second document must not hang on what the first one says. Of a larger
one every attention must be masked by what follows from the argument that tells where documents end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from partitioner.comparing.capture_check import MOST_PARAMETERS
from partitioner.errors import InputError
from partitioner.graph.dependence import constants, evaluate, parameter_free
from partitioner.graph.graph import Graph, ParameterInfo, placeholders
from partitioner.graph.interpret import interpret
from partitioner.graph.nodes import call, shape_of
from partitioner.graph.targets import classes
from runtime.data.filling import boundaries, content, fill
from runtime.data.packing import IGNORED

SAME = 1e-6  # a larger relative difference of two losses is no rounding
MEND = "train on --pack plain, or with hf: models plan with --set position_ids=true"
_ATEN = torch.ops.aten
FUSED, SOFTMAX = _ATEN.scaled_dot_product_attention.default, _ATEN.softmax.int  # attention, the second of pairs
MIXING = {_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.cumsum.default}  # tokens, and no mask divides them


def check_boundaries(example: Mapping[str, Tensor]) -> None:
    """Raises InputError where the model has no argument that tells where documents end, or none for labels."""
    if not boundaries(example):
        raise InputError(
            "--pack documents: no argument of the model tells where documents end, which document_ids or position_ids "
            f"(integers, samples by tokens) do; it takes {', '.join(example)}: {MEND}"
        )
    if not any(content(name) == "labels" for name in example):
        raise InputError(
            "--pack documents: the model has no argument for labels, and would be asked for a document's first token "
            f"from the one before it: {MEND}"
        )


def check_separate(graph: Graph, example: Mapping[str, Tensor], most: int = MOST_PARAMETERS) -> None:
    """Raises InputError where what is said in one document of a window changes what another is asked; a graph of more
    than ``most`` parameters is not run."""
    windows = _two_documents(graph, example)
    small = sum(torch.Size(p.shape).numel() for p in graph.parameters.values()) <= most
    apart = _apart(graph, example, windows) if small else None
    if not (_masked(graph, example, windows) if apart is None else apart):
        raise InputError(
            f"--pack documents: the model takes {' and '.join(boundaries(example))} and still lets a document read the "
            f"one before it (transformers does so with use_cache=True and with an attention_mask): {MEND}"
        )


def _two_documents(graph: Graph, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Windows of random tokens, each of two documents of half its length, of which the second alone is asked."""
    seq = next(t.shape[1] for t in example.values() if t.dim() == 2)
    half, shape = seq // 2, (graph.batch, seq)
    given = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, max(classes(graph.module.graph), 1), shape, generator=given)
    labels = tokens.clone()
    labels[:, : half + 1] = IGNORED
    documents = (torch.arange(seq) >= half).long().expand(shape)
    positions = (torch.arange(seq) - half * documents).expand(shape)
    return {"tokens": tokens, "labels": labels, "positions": positions, "documents": documents}


def _apart(graph: Graph, example: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> bool | None:
    """Whether the second documents are asked the same whatever the first say; None where random weights have no finite
    loss."""
    given = torch.Generator().manual_seed(0)
    weights = {name: _weight(info, given) for name, info in graph.parameters.items()}
    first, other = windows["documents"] == 0, windows["tokens"].flip(0, 1)
    texts = windows["tokens"], other.where(first, windows["tokens"])
    with torch.no_grad():
        one, two = (float(interpret(graph, weights, fill(example, {**windows, "tokens": text}))) for text in texts)
    difference = abs(one - two)
    return None if difference != difference else difference <= SAME * max(abs(one), abs(two))


def _weight(info: ParameterInfo, given: torch.Generator) -> Tensor:
    """Random values with which every token tells: a matrix keeps the size of what it maps, a vector is near 1."""
    drawn = torch.randn(info.shape, generator=given)
    return (drawn * info.shape[-1] ** -0.5 if len(info.shape) > 1 else 1 + 0.1 * drawn).to(info.dtype)


def _masked(graph: Graph, example: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> bool:
    """Whether every attention is reached, not through another, by a value that tells pairs of tokens of two documents
    from the rest; False where nothing attends, and where tokens are mixed otherwise."""
    nodes, attends = graph.module.graph.nodes, False
    free, reached = parameter_free(graph.module.graph), _dividing(graph, example, windows)
    pairs = windows["tokens"].shape[1:] * 2
    for node in nodes:
        meets = any(n in reached for n in node.all_input_nodes)
        if node.target in MIXING and node not in free:
            return False
        if node.target == FUSED or (node.target == SOFTMAX and shape_of(node)[-2:] == pairs):
            if not meets:
                return False
            attends = True
        elif meets:
            reached.add(node)
    return attends


def _dividing(graph: Graph, example: Mapping[str, Tensor], windows: Mapping[str, Tensor]) -> set[fx.Node]:
    """Values that are yes or no of every two tokens, follow from where documents end alone, and are the same of all
    pairs of two documents and other of some of one."""
    inner, inputs, filled = graph.module.graph, placeholders(graph.module.graph, "input"), fill(example, windows)
    fixed, values = constants(inner), {inputs[name]: filled[name] for name in boundaries(example) if name in inputs}
    across = windows["documents"][0][:, None] != windows["documents"][0][None]
    found = set[fx.Node]()
    for node in inner.nodes:
        sources = node.all_input_nodes
        if not any(n in values for n in sources) or not all(n in values or n in fixed for n in sources):
            continue
        known = evaluate(inner, fixed, {n for n in sources if n not in values}, graph.buffers) | values
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, known=known: known[n])
        value = values[node] = call(node, *args, **kwargs)
        if isinstance(value, Tensor) and value.dtype == torch.bool and value.shape[-2:] == across.shape:
            between = value[..., across]
            if between.all() or not between.any():
                found |= {node} if (value[..., ~across] != between.flatten()[0]).any() else set()
    return found
