"""Values that depend on no input and no parameter: equal ones merged, batch dimensions trimmed."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from partitioner.graph.dependence import constants, evaluate, input_free, module_path, parameter_free
from partitioner.graph.nodes import emit, shape_of
from partitioner.normalize.attention_masks import flag_masks
from partitioner.ops.own_ops import own

aten = torch.ops.aten
_PLACES = (aten.select.int, aten.slice.Tensor, own.part.default)
_VIEWS = (*_PLACES, aten.reshape.default)
_MOST_ELEMENTS = 1 << 28  # a mask of 16,384 x 16,384; of a larger one only repetition is known


def fold_constants(module: fx.GraphModule, buffers: dict[str, torch.Tensor], batch: int) -> None:
    """Turn causal and all-true attention masks into flags; give every other constant a batch dimension of 1.

    A constant that is the same for all ``batch`` samples is narrowed to one and expanded again behind, so that its
    value holds for every batch size.
    """
    graph = module.graph
    fixed = constants(graph)
    flag_masks(graph, fixed, buffers)
    graph.eliminate_dead_code()
    fixed &= {*graph.nodes}
    wanted = [n for n in fixed if any(user not in fixed for user in n.users) and _is_interesting(n)]
    for node, value in evaluate(graph, fixed, set(wanted), buffers).items():
        outside = [user for user in node.users if user not in fixed]
        if outside and node.op == "call_function":
            _trim(graph, node, value, batch, outside)
    graph.eliminate_dead_code()


def merge_equal(graph: fx.Graph) -> None:
    """Constants that are computed alike become one (T5 makes a mask in each block)."""
    fixed, first = constants(graph), dict[tuple[Any, str, str], fx.Node]()
    for node in [n for n in graph.nodes if n in fixed and n.op == "call_function"]:
        if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):  # getitem has none
            known = first.setdefault((node.target, str(node.args), str(node.kwargs)), node)
            if known is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)


def _is_interesting(node: fx.Node) -> bool:
    if not shape_of(node) or not node.meta.get("batch_dims") or node.op != "call_function":
        return False
    if node.meta["val"].numel() <= _MOST_ELEMENTS:
        return True
    if node.target == aten.expand.default and _repeats(node):
        node.meta["grown"] = True
    return False


def _repeats(node: fx.Node) -> bool:
    """Whether an expanded value is the same for all samples, for it has one of its source."""
    (source,) = node.all_input_nodes
    behind = len(shape_of(node)) - len(shape_of(source))
    return all(dim < behind or shape_of(source)[dim - behind] == 1 for dim in node.meta["batch_dims"])


def _trim(graph: fx.Graph, node: fx.Node, value: torch.Tensor, batch: int, outside: list[fx.Node]) -> None:
    """Write a constant that is the same for all samples as that of one sample, repeated."""
    shape, dims = list(value.shape), node.meta.get("batch_dims", ())
    if len(dims) != 1 or shape[dims[0]] % batch:
        return
    dim, each = dims[0], shape[dims[0]] // batch
    apart = value.unflatten(dim, (batch, each))
    if not bool((apart == apart.narrow(dim, 0, 1)).all()):
        return
    with graph.inserting_before(node.next):
        new = emit(graph, node, aten.slice.Tensor, node, dim, 0, each)
        if each > 1:
            new = emit(graph, node, aten.reshape.default, new, [*shape[:dim], 1, each, *shape[dim + 1 :]])
        grown = [*shape[:dim], batch, *([each] if each > 1 else []), *shape[dim + 1 :]]
        new = emit(graph, node, aten.expand.default, new, grown)
        new.meta["grown"] = True
        if each > 1:
            new = emit(graph, node, aten.reshape.default, new, shape)
            new.meta["grown"] = True
    for user in outside:
        user.replace_input_with(node, new)


def sort_by_dependence(graph: fx.Graph) -> None:
    """Order the graph: placeholders, constants, what only inputs feed, shared functions of parameters, the rest.

    A function of parameters moves ahead only when a module other than its own reads it (T5's position bias), or when it
    is one of several places of a vector that each block reads at its own (``scale[i]``), so that identical blocks stay
    identical.
    """
    early = parameter_free(graph)
    candidates = input_free(graph) - constants(graph)
    shared = _shared(graph, candidates) | _places(graph)
    fixed = constants(graph)
    nodes = [n for n in graph.nodes if n.op != "output"]
    rank = {n: next((r for r, group in enumerate((fixed, early, shared), 1) if n in group), 4) for n in nodes}
    rank |= {n: 0 for n in nodes if n.op == "placeholder"}
    root = next(n for n in graph.nodes if n.op == "output")
    for node in sorted(nodes, key=lambda n: rank[n]):
        root.prepend(node)


def _shared(graph: fx.Graph, candidates: set[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in candidates and node.op == "call_function":
            away = any(not _inside(user, node) for user in node.users)
            if away or any(user in found for user in node.users):
                found.add(node)
    return found


def _places(graph: fx.Graph) -> set[fx.Node]:
    """Views of parameters that are selected at several places, down to vectors and numbers: what blocks read is one."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target not in _VIEWS or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        several = is_parameter(source) and len({str(u.args[1:]) for u in source.users if u.target in _PLACES}) > 1
        if source in found or (several and node.target in _PLACES and len(shape_of(node)) <= 1):
            found.add(node)
    return found


def is_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter placeholder."""
    return node.op == "placeholder" and node.meta["kind"] == "parameter"


def _inside(user: fx.Node, node: fx.Node) -> bool:
    own, other = module_path(node), module_path(user)
    return user.op == "output" or other[: len(own)] == own
