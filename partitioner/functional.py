"""First passes over an exported graph: regions inlined, asserts dropped, in-place ops made functional."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from partitioner.autocast import write_casts
from partitioner.errors import InputError
from partitioner.regions import detach_regions

aten = torch.ops.aten

_SCATTER = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def inline_regions(module: fx.GraphModule) -> None:
    """Write the casts of autocasts and the detaching of regions without gradient as ops; drop metadata asserts.

    Each node's ``meta["modules"]`` become the names, outermost first, of the source model's modules that made it.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    detach_regions(graph)
    write_casts(graph)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        node.meta["modules"] = tuple(path.removeprefix("model").removeprefix(".") for path in stack[1:])


def functionalize(graph: fx.Graph) -> None:
    """Replace each in-place op by its functional form; later readers see the new value, views are scattered back."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not _mutates(node):
            continue
        with graph.inserting_before(node):
            value = _functional(graph, node)
        _write_back(graph, node, node.args[0], value)  # type: ignore[arg-type]
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _functional(graph: fx.Graph, node: fx.Node) -> fx.Node:
    destination = node.args[0]
    assert isinstance(destination, fx.Node)
    if node.target == aten.copy_.default:
        source = node.args[1]
        value = graph.call_function(aten.to.dtype, (source, destination.meta["val"].dtype))  # type: ignore[arg-type]
        value = graph.call_function(aten.expand.default, (value, list(destination.meta["val"].shape)))
    elif node.target in (aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default):
        value = _filled(graph, destination, node.args[1] if len(node.args) > 1 else 0)
    else:
        functional = out_of_place(str(node.target))
        if functional is None:
            raise InputError(f"{node.target} changes a tensor in place and has no functional form{_source(node)}")
        value = graph.call_function(functional, node.args, node.kwargs)
    value.meta = dict(node.meta)
    return value


def out_of_place(target: str) -> Callable[..., object] | None:
    """``aten.add_.Tensor`` -> ``aten.add.Tensor``: the op of the same arguments that changes nothing; None without."""
    space, name, overload = target.split(".")
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None) if name.endswith("_") else None
    found = getattr(packet, overload, None)
    return None if found is None or found._schema.is_mutable else found


def _filled(graph: fx.Graph, destination: fx.Node, fill: object) -> fx.Node:
    value = destination.meta["val"]
    if not isinstance(fill, fx.Node):
        return graph.call_function(aten.full.default, (list(value.shape), fill), {"dtype": value.dtype})  # type: ignore[arg-type]
    cast = graph.call_function(aten.to.dtype, (fill, value.dtype))
    return graph.call_function(aten.expand.default, (cast, list(value.shape)))


def _source(node: fx.Node) -> str:
    trace = str(node.meta.get("stack_trace", "")).strip().splitlines()
    return f" ({trace[-2].strip()})" if len(trace) > 1 else ""


def _write_back(graph: fx.Graph, node: fx.Node, changed: fx.Node, value: fx.Node) -> None:
    """Uses of ``changed`` after ``node`` read ``value``; if ``changed`` views a base, the base changes with it."""
    if changed.op == "placeholder" and changed.meta["kind"] != "input":
        raise InputError(
            f"the model changes {changed.meta['source']} in its forward: "
            "state that outlives a step can't be split over ranks"
        )
    scatter = _SCATTER.get(changed.target)  # type: ignore[call-overload]
    base = changed.args[0] if changed.op == "call_function" and changed.args else None
    if scatter is not None and isinstance(base, fx.Node):
        with graph.inserting_before(node):
            whole = graph.call_function(scatter, (base, value, *changed.args[1:]))
        whole.meta = dict(base.meta)
        _replace_after(base, node, whole)
        _write_back(graph, node, base, whole)
    _replace_after(changed, node, value)


def _replace_after(old: fx.Node, point: fx.Node, new: fx.Node) -> None:
    for user in list(old.users):
        if user is not new and user is not point and point < user:
            user.replace_input_with(old, new)
