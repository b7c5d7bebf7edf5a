"""Casts that ``torch.autocast`` makes, written into the graph: which operands of an op are cast is asked of torch.

    captured     linear(x f32, weight f32) -> bf16    under autocast(bf16)
    torch does   _to_copy(x) -> bf16, _to_copy(weight) -> bf16, mm(bf16, bf16)
    written      linear(to(x, bf16), to(weight, bf16))
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from partitioner.errors import InputError
from partitioner.functionalize.regions import FOREIGN, Autocast, Region, region_of
from partitioner.graph.nodes import arguments
from partitioner.user_code.uncapturable import quiet

aten = torch.ops.aten
_MOVES = (aten.clone.default, aten._unsafe_view.default)  # as views, they commute with casts
Casts = dict[int, torch.dtype]  # by number of the argument, nested ones counted through


def write_casts(graph: fx.Graph) -> None:
    """Every cast that an autocast makes becomes an op; dtypes, numbers and gradients are those of the eager module.

    A trained parameter that ops of one outermost autocast read is cast once, as torch does. Raises InputError for an
    autocast of another device type than the tensors', and for an op inside which torch casts what is not its operand.
    """
    writer = _Writer(graph)
    for node in list(graph.nodes):
        region = region_of(node)
        if region.casting and isinstance(node.target, OpOverload):
            writer.write(node, region)
        elif region.casting and isinstance(node.target, HigherOrderOperator):
            raise InputError(f"{node.target}{_place(node)} can't be traced under torch.autocast: cast its operands")


class _Writer:
    """Writes casts. ``known``: what torch answered; ``shared``: casts of parameters, and where the first one stands."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.known: dict[Hashable, Casts | None] = {}
        self.shared: dict[Hashable, fx.Node] = {}

    def write(self, node: fx.Node, region: Region) -> None:
        device_type = _device_type(node, region)
        autocast = region.autocast(device_type) if device_type else None
        if autocast is None or not autocast.enabled:
            return
        leaves, spec = tree_flatten((node.args, node.kwargs))
        casts = self._casts(node, leaves, spec, autocast)
        if casts is None:
            return self._write_out(node, leaves, spec, autocast)
        for place, dtype in casts.items():
            leaves[place] = self._cast(leaves[place], dtype, node, region, dtype == autocast.dtype)
        node.args, node.kwargs = tree_unflatten(leaves, spec)

    def _casts(self, node: fx.Node, leaves: list[Any], spec: TreeSpec, autocast: Autocast) -> Casts | None:
        key = node.target, autocast, str(spec), tuple(_word(_value(leaf)) for leaf in leaves)
        if key not in self.known:
            self.known[key] = _ask(node.target, [_value(leaf) for leaf in leaves], spec, autocast)  # type: ignore[arg-type]
        return self.known[key]

    def _cast(self, source: fx.Node, dtype: torch.dtype, reader: fx.Node, region: Region, low: bool) -> fx.Node:
        trains = source.op == "placeholder" and source.meta.get("trains", False)
        key = region.outermost, source, dtype
        if trains and low and region.gradient and source.meta["val"].dtype == torch.float32:
            if key not in self.shared:
                self.shared[key] = self._new_cast(source, dtype, reader)
            else:
                self._share(self.shared[key], reader)
            return self.shared[key]
        return self._new_cast(source, dtype, reader)

    def _new_cast(self, source: fx.Node, dtype: torch.dtype, reader: fx.Node) -> fx.Node:
        with self.graph.inserting_before(reader):
            cast = self.graph.call_function(aten.to.dtype, (source, dtype))
        cast.meta = {**_origin(reader), "val": source.meta["val"].to(dtype)}
        return cast

    def _share(self, cast: fx.Node, reader: fx.Node) -> None:
        """The cast moves to the head of the innermost call of a module that holds all its readers."""
        old, new = (n.meta.get("nn_module_stack", {}) for n in (cast, reader))
        kept = [k for k, other in zip(old, new, strict=False) if k == other]
        if len(kept) == len(old):
            return
        cast.meta["nn_module_stack"] = {k: old[k] for k in kept}
        calls = (n for n in self.graph.nodes if n.op == "call_function")
        next(n for n in calls if list(n.meta.get("nn_module_stack", {}))[: len(kept)] == kept).prepend(cast)

    def _write_out(self, node: fx.Node, leaves: list[Any], spec: TreeSpec, autocast: Autocast) -> None:
        """The ops that run below autocast, casts among them, in the place of ``node``."""
        body = _below(node.target, [_value(leaf) for leaf in leaves], spec, autocast)  # type: ignore[arg-type]
        read = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
        holders = [n for n in body.graph.nodes if n.op == "placeholder"]
        made = dict(zip(holders, read, strict=True))
        with self.graph.inserting_before(node):
            result: Any = self.graph.graph_copy(body.graph, made)
        for inner, copy in made.items():
            if inner.op == "call_function":
                copy.meta = {**_origin(node), "val": inner.meta["val"]}
        for user in list(node.users) if isinstance(result, tuple | list) else []:
            user.replace_all_uses_with(result[int(arguments(user)[1])])
            self.graph.erase_node(user)
        node.replace_all_uses_with(result) if isinstance(result, fx.Node) else None
        self.graph.erase_node(node)


def _origin(node: fx.Node) -> dict[str, Any]:
    return {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace", "region")}


def _device_type(node: fx.Node, region: Region) -> str | None:
    """The type of the device that the op's tensors lie on; raises InputError for an autocast of another one."""
    values = [n.meta["val"] for n in node.all_input_nodes] or [node.meta.get("val")]
    types = {v.device.type for v in values if isinstance(v, torch.Tensor)}
    foreign = [a.device_type for a in region.casting if a.device_type not in types]
    if types and foreign:
        raise InputError(FOREIGN.format(foreign[0]) + _place(node))
    return next(iter(types), None)


def _place(node: fx.Node) -> str:
    path = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
    trace = str(node.meta.get("stack_trace", "")).strip().splitlines()
    line = f" ({trace[-1].strip()})" if trace else ""
    return f" in {path[-1].removeprefix('model').removeprefix('.') or 'the top module'}{line}" if path else line


def _ask(target: OpOverload, values: list[Any], spec: TreeSpec, autocast: Autocast) -> Casts | None:
    """The casts of operands under ``autocast``; None where torch casts what is not an operand as well."""
    cast = _watch(target, values, spec, autocast, {})
    assert cast is not None, f"{target} does not run under {autocast}"
    casts = dict(sorted(cast.casts))
    if not casts or len({v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}) == 1:
        plain = _watch(target, values, spec, None, {})
        if plain is not None and (plain.casts, plain.events) == (cast.casts, cast.events):
            return {}
    again = _watch(target, values, spec, None, casts)
    return casts if again is not None and again.events == cast.events else None


def _watch(
    target: OpOverload, values: list[Any], spec: TreeSpec, autocast: Autocast | None, casts: Casts
) -> _Watch | None:
    """What the op does on tensors without storage, cast by ``casts``; None if it can't run on such types."""
    watch = _Watch()
    with torch.no_grad(), FakeTensorMode():
        fakes = [_like(v, casts.get(place)) for place, v in enumerate(values)]
        args, kwargs = tree_unflatten(fakes, spec)
        watch.operand = {id(v): place for place, v in enumerate(fakes) if isinstance(v, torch.Tensor)}
        try:
            with _entered(autocast), quiet(), watch:
                target(*args, **kwargs)
        except RuntimeError:  # torch's word for operands of unlike dtypes
            return None
    return watch


def _entered(autocast: Autocast | None) -> torch.autocast:
    given = autocast or Autocast("cpu", torch.bfloat16, False)
    return torch.autocast(given.device_type, given.dtype, given.enabled, cache_enabled=False)


class _Watch(TorchDispatchMode):
    """What runs below autocast: casts of operands, and all else but views. ``operand``: their numbers, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.operand: dict[int, int] = {}
        self.casts: list[tuple[int, torch.dtype]] = []
        self.events: list[Hashable] = []
        self.alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive.append((args, result))
        if func is torch.ops.prim.device.default:
            return result
        place = self.operand.get(id(args[0])) if args else None
        if func is aten._to_copy.default and place is not None and result.dtype != args[0].dtype:
            self.casts.append((place, result.dtype))
        elif not (func.is_view or func in _MOVES):
            self.events.append((func, *map(_word, tree_leaves((args, kwargs, result)))))
        elif place is not None:
            self.operand |= {id(moved): place for moved in tree_leaves(result)}
        return result


def _below(target: OpOverload, values: list[Any], spec: TreeSpec, autocast: Autocast) -> fx.GraphModule:
    """The ops that run below ``autocast`` when ``target`` is called."""
    with torch.no_grad(), FakeTensorMode():
        fakes = [_like(v) for v in values]

    def called(*given: torch.Tensor) -> Any:
        rest = iter(given)
        args, kwargs = tree_unflatten([next(rest) if isinstance(v, torch.Tensor) else v for v in fakes], spec)
        with _entered(autocast):
            return target(*args, **kwargs)

    with torch.no_grad():
        return make_fx(called)(*[v for v in fakes if isinstance(v, torch.Tensor)])


def _value(leaf: Any) -> Any:
    return leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf


def _like(value: Any, dtype: torch.dtype | None = None) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=dtype or value.dtype, device=value.device)


def _word(value: Any) -> Hashable:
    return (value.dtype, tuple(value.shape)) if isinstance(value, torch.Tensor) else (type(value), repr(value))
