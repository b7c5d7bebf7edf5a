"""Shapes and dtypes of every node, by running the graph on the meta device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from partitioner.sharding.op_equations import TENSOR, Op
from partitioner.sharding.op_rules import rule_of

Tensors = torch.Tensor | tuple[torch.Tensor, ...]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node that returns one tensor."""
    return tuple(node.meta["val"].shape)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensor operands of a node in argument order, with repetition, lists flattened."""
    found: list[fx.Node] = []
    for argument in (*node.args, *node.kwargs.values()):
        if isinstance(argument, fx.Node):
            found.append(argument)
        elif isinstance(argument, tuple | list | dict | slice):
            fx.map_arg(argument, found.append)
    return found


@functools.cache
def op_name(target: object) -> str:
    """An op as rules know it, ``aten.add.Tensor``."""
    return str(target)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """What a call is given by place; its op's schema says of which type each is."""
    return node.args


def schema_of(node: fx.Node) -> torch.FunctionSchema:
    """The schema of a call of an op. Raises AttributeError for a call of anything else."""
    return getattr(node.target, "_schema")  # noqa: B009


def call(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    """What the function that a node calls returns of other arguments."""
    function: Callable[..., Any] = node.target  # pyright: ignore[reportAssignmentType]
    return function(*args, **kwargs)


def op_of(node: fx.Node, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None) -> Op:
    """What the rules may look at of a call_function node, of other arguments where they are given."""
    defaults = _defaults(node.target)
    given = dict(zip(defaults, node.args if args is None else args, strict=False))
    given |= dict(node.kwargs if kwargs is None else kwargs)
    shapes = tuple(shape_of(n) for n in operands(node))
    value = node.meta["val"]
    result = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
    arguments = defaults | {name: _literal(a) for name, a in given.items()}
    return Op(op_name(node.target), shapes, result, arguments, tuple(n.meta["val"].dtype for n in operands(node)))


def argument_place(node: fx.Node, name: str) -> int:
    """Where an op's argument stands that is known by a name. Raises ValueError where it has none of that name."""
    return list(_defaults(node.target)).index(name)


@functools.cache
def _defaults(target: Callable[..., object]) -> dict[str, object]:
    """The arguments of an op by name, each with its default; none of a function that is no op."""
    schema = getattr(target, "_schema", None)
    return {a.name: a.default_value for a in schema.arguments} if schema else {}


def _literal(argument: Any) -> object:
    if isinstance(argument, list | tuple) and any(isinstance(x, fx.Node) for x in argument):
        return [TENSOR if isinstance(x, fx.Node) else x for x in argument]
    return TENSOR if isinstance(argument, fx.Node) else argument


def to_meta(graph: fx.Graph) -> None:
    """Replace the fake values that export left by meta tensors."""
    for node in graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = map_aggregate(node.meta["val"], _meta)


def _meta(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    shape, stride = (tuple(int(s) for s in sizes) for sizes in (value.shape, value.stride()))
    return torch.empty_strided(shape, stride, dtype=value.dtype, device="meta")


def propagate(module: fx.GraphModule, missing_only: bool = False, twins: Mapping[str, str] | None = None) -> None:
    """Set ``meta["val"]`` to a meta tensor of the result on every op node, or only on those that have none.

    ``twins``: names of earlier nodes whose results are of the same shape, type and own storage.
    """
    values: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and not (missing_only and "val" in node.meta):
            twin = values.get((twins or {}).get(node.name, ""))
            node.meta["val"] = values[node.name] = evaluate(node) if twin is None else map_aggregate(twin, _fresh)


def _fresh(value: Any) -> Any:
    """A tensor laid out as ``value``, on storage of its own."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def evaluate_like(node: fx.Node, twin: fx.Node) -> None:
    """Set ``node``'s value, which is laid out as ``twin``'s: a view where that is one, else on storage of its own."""
    value = twin.meta["val"]
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
        sources = [n.meta["val"] for n in twin.all_input_nodes if isinstance(n.meta["val"], torch.Tensor)]
        if all(v.untyped_storage()._cdata != storage for v in sources):  # pyright: ignore[reportPrivateUsage]
            node.meta["val"] = _fresh(value)
            return
    node.meta["val"] = evaluate(node)


def propagate_node(node: fx.Node) -> None:
    """Set one op's value anew."""
    node.meta["val"] = evaluate(node)


def evaluate(node: fx.Node) -> Any:
    """What the op returns on the meta device, of the values that its operands have."""
    args: Any
    kwargs: Any
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    rule = rule_of(op_name(node.target))
    if rule and rule.attention:
        query, _, value, *_ = args
        if query.shape[-1] == value.shape[-1]:
            return torch.empty_like(query)  # fused kernels lay the result out as the query
    args = map_aggregate(args, _on_meta)
    schema = getattr(node.target, "_schema", None)
    if schema is not None and any(argument.name == "device" for argument in schema.arguments[len(args) :]):
        kwargs = {**kwargs, "device": "meta"}
    with torch.no_grad():
        return call(node, *args, **kwargs)


def _on_meta(argument: Any) -> Any:
    return torch.device("meta") if isinstance(argument, torch.device) else argument


def emit(graph: fx.Graph, like: fx.Node, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
    """A new op in the module of ``like``, its shape known."""
    node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    node.meta = {k: v for k, v in like.meta.items() if k in ("modules", "stack_trace")}
    node.meta["val"] = evaluate(node)
    return node


def is_tensor(node: fx.Node) -> bool:
    """Whether a node returns one tensor (not a tuple of them)."""
    return isinstance(node.meta["val"], torch.Tensor)


def is_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter placeholder."""
    return node.op == "placeholder" and node.meta["kind"] == "parameter"


def buffer_name(source: str) -> str:
    """The name that a buffer has among the values of a step, whose inputs and parameters have their own."""
    return f"buffer:{source}"


def value_name(node: fx.Node) -> str:
    """The name that a value without a layout has among the values of a step."""
    if node.op != "placeholder":
        return node.name
    return buffer_name(node.meta["source"]) if node.meta["kind"] == "buffer" else node.meta["source"]
