"""What autograd keeps of a graph between forward and backward, each storage once: what rules say that ops save.

An op without a rule, a user's ``autograd.Function`` among them, is watched on fake tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.graph.dependence import parameter_free
from partitioner.graph.nodes import call, op_name, op_of, operands
from partitioner.ops.autograd_functions import alone, fake
from partitioner.sharding.op_rules import rule_of


def saved_bytes(graph: fx.Graph, differentiable: set[fx.Node]) -> dict[fx.Node, int]:
    """Bytes that each op is the first to keep, less what is kept anyhow: parameters, inputs, constants, prelude."""
    found: dict[fx.Node, int] = {}
    free = parameter_free(graph)
    storages = {_storage(n) for n in graph.nodes if n.op == "placeholder" or n in free}
    for node in graph.nodes:
        if node not in differentiable or node.op != "call_function":
            continue
        found[node] = int(hidden(node))
        for value in saved(node, differentiable):
            if _storage(value) not in storages:
                storages.add(_storage(value))
                found[node] += value.meta["val"].untyped_storage().nbytes()
    return found


def saved(node: fx.Node, differentiable: set[fx.Node]) -> list[fx.Node]:
    """The operands and result that backward of ``node`` reads; a factor only where another has a gradient."""
    rule, sources = rule_of(op_name(node.target)), operands(node)
    found: list[fx.Node] = []
    for word in rule.saves if rule else _watched(node, differentiable).words:
        if word == "out":
            found.append(node)
        elif isinstance(word, int) and word < len(sources):
            others = [n for i, n in enumerate(sources) if i != word]
            if not (rule and rule.bilinear) or any(n in differentiable for n in others):
                found.append(sources[word])
    return found


def hides(node: fx.Node) -> bool:
    """Whether backward reads more of an op than operands and results."""
    rule = rule_of(op_name(node.target))
    return rule.hidden is not None if rule else hidden(node) > 0


def hidden(node: fx.Node) -> float:
    """Bytes of what only backward sees of a whole op that has a gradient."""
    rule = rule_of(op_name(node.target))
    if rule is None:
        return _watched(node, {node, *operands(node)}).hidden
    return rule.hidden(op_of(node), node.meta["val"].element_size()) if rule.hidden else 0.0


class _Saved(NamedTuple):
    """As a rule says it: operands by number, and "out"; and bytes of all else."""

    words: tuple[int | str, ...]
    hidden: float


_NOTHING = _Saved((), 0.0)
_seen: dict[object, _Saved] = {}


def _watched(node: fx.Node, differentiable: set[fx.Node]) -> _Saved:
    """Of an op without a rule: what it saves as it runs on fake tensors. What can't run so saves all that it reads."""
    sources = operands(node)
    values = [n.meta["val"] for n in sources]
    if node not in differentiable or not all(isinstance(v, torch.Tensor) for v in (*values, node.meta["val"])):
        return _NOTHING
    trained = tuple(n in differentiable and (v.is_floating_point() or v.is_complex())
                    for n, v in zip(sources, values, strict=True))  # fmt: skip
    literals = fx.map_arg((node.args, node.kwargs), sources.index)
    key = node.target, str(literals), trained, tuple((tuple(v.shape), v.dtype) for v in values)
    if key not in _seen:
        try:
            _seen[key] = _watch(node, trained)
        except Exception:  # noqa: BLE001  user code on tensors that have no values
            _seen[key] = _Saved((*range(len(sources)), "out"), 0.0)
    return _seen[key]


def _watch(node: fx.Node, trained: tuple[bool, ...]) -> _Saved:
    with alone(), FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        given = {n: fake(n.meta["val"], needed) for n, needed in zip(operands(node), trained, strict=True)}
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
            result = call(node, *args, **kwargs)
        places = {_cdata(x): n for n, x in enumerate(given.values())} | {_cdata(result): "out"}
        sizes = {_cdata(x): x.untyped_storage().nbytes() for x in kept}
    words = [places[key] for key in sizes if key in places]
    return _Saved(tuple(dict.fromkeys(words)), float(sum(size for key, size in sizes.items() if key not in places)))


def _cdata(x: torch.Tensor) -> int:
    return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _storage(node: fx.Node) -> int:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return id(node)
    return _cdata(value)
