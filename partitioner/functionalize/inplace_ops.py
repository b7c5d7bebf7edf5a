"""In-place ops: which operand each writes into, and the value that it leaves there, by ops that write nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from partitioner.errors import InputError
from partitioner.functionalize.view_inverses import Emit, name_of

aten = torch.ops.aten

RESHAPING = {
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
    aten.swapaxes_.default: aten.swapaxes.default,
    aten.swapdims_.default: aten.swapdims.default,
    aten.detach_.default: aten.detach.default,
    aten.as_strided_.default: aten.as_strided.default,
}
"""Ops that change how a tensor lies and not what is stored; who holds the tensor reads the op's result from then on."""

_STATISTICS = {"batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"}
_STORAGE = {"set_", "resize_", "resize_as_"}
_RENAMED = {"normal_": "normal_functional"}


def written(node: fx.Node) -> list[fx.Node]:
    """What ``node`` writes into: its operands that its schema marks, and a norm's running statistics."""
    found: list[fx.Node] = []
    fx.map_arg(_marked(node), found.append)
    return found


def _marked(node: fx.Node) -> list[Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    if name_of(node) in _STATISTICS:
        return [n for n in node.args[3:5] if n is not None and node.args[5]]
    given = [node.args[i] if i < len(node.args) else node.kwargs.get(a.name) for i, a in enumerate(schema.arguments)]
    marks = [a.alias_info for a in schema.arguments]
    return [value for value, mark in zip(given, marks, strict=True) if mark is not None and mark.is_write]


def check_form(node: fx.Node) -> None:
    """Refuse an in-place op that writes elsewhere than into its first operand alone, or into no fixed place."""
    if written(node) != [*node.args[:1]]:
        raise InputError(
            f"{_op(node)} writes into other operands than its first{where(node)}: assign its results instead"
        )
    if name_of(node) in _STORAGE:
        raise InputError(f"{_op(node)} gives a tensor another storage{where(node)}: make a new tensor instead")


OUTLIVES = (
    "state that outlives a step can't be split over ranks; where it is a batch norm's statistics, eval() of that module"
    " keeps them, and a norm of each sample (LayerNorm, GroupNorm) has none"
)


def check_state(node: fx.Node, root: fx.Node) -> None:
    """Refuse a write of ``node`` into the storage of the placeholder ``root``, a parameter or a buffer."""
    if root.op == "placeholder" and root.meta["kind"] != "input":
        raise InputError(f"the model changes {root.meta['source']} in its forward{where(node)}: {OUTLIVES}")


def left_by(emit: Emit, node: fx.Node, destination: torch.Tensor) -> fx.Node:
    """What the in-place op ``node`` leaves in its first operand, which has the shape and dtype of ``destination``."""
    row = _ROWS.get(name_of(node))
    value = row(emit, node, destination) if row else _plain(emit, node)
    if value.meta["val"].dtype != destination.dtype:
        value = emit(aten.to.dtype, value, destination.dtype)
    if value.meta["val"].shape != destination.shape:
        value = emit(aten.expand.default, value, list(destination.shape))
    return value


def _plain(emit: Emit, node: fx.Node) -> fx.Node:
    functional = out_of_place(node.target)
    if functional is None:
        raise InputError(f"{_op(node)} changes a tensor in place and has no functional form{where(node)}")
    return emit(functional, *node.args, **node.kwargs)


def out_of_place(target: Any) -> Callable[..., object] | None:
    """``aten.add_.Tensor`` -> ``aten.add.Tensor``: the op of the same arguments that changes nothing; None without."""
    space, name, _ = str(target).split(".")
    plain = _RENAMED.get(name) or (f"__{name[3:]}" if name.startswith("__i") else name.removesuffix("_"))
    packet = getattr(getattr(torch.ops, space), plain, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return next((o for o in overloads if not o._schema.is_mutable and _arguments(o) == _arguments(target)), None)


def _arguments(target: Any) -> list[tuple[str, str]]:
    return [(a.name if a.kwarg_only else "", str(a.type)) for a in target._schema.arguments]


def _copied(emit: Emit, node: fx.Node, destination: torch.Tensor) -> fx.Node:
    source = node.args[1]
    assert isinstance(source, fx.Node)
    return source


def _filled(emit: Emit, node: fx.Node, destination: torch.Tensor) -> fx.Node:
    fill = node.args[1] if len(node.args) > 1 else 0
    if isinstance(fill, fx.Node):
        return fill
    return emit(aten.full.default, list(destination.shape), fill, dtype=destination.dtype)


def _diagonal_filled(emit: Emit, node: fx.Node, destination: torch.Tensor) -> fx.Node:
    shape, wraps = list(destination.shape), any(node.args[2:])
    if wraps and shape[0] > shape[1] + 1:
        raise InputError(f"{_op(node)} wraps around{where(node)}: fill the diagonals of parts of the tensor instead")
    rank = len(shape)
    counts = [
        emit(aten.reshape.default, emit(aten.arange.default, size), [size if i == d else 1 for i in range(rank)])
        for d, size in enumerate(shape)
    ]
    diagonal = emit(aten.eq.Tensor, counts[0], counts[1])
    for count in counts[2:]:
        diagonal = emit(aten.logical_and.default, diagonal, emit(aten.eq.Tensor, counts[0], count))
    tensor, fill = node.args[:2]
    return emit(aten.masked_fill.Scalar, tensor, diagonal, fill)


def _put(emit: Emit, node: fx.Node, destination: torch.Tensor) -> fx.Node:
    """One number put where a mask says is a choice, element by element."""
    places, value, *accumulate = node.args[1:]
    assert isinstance(places, list | tuple)
    assert isinstance(value, fx.Node)
    mask = next(iter(places), None)
    if len(places) != 1 or not isinstance(mask, fx.Node) or mask.meta["val"].dtype != torch.bool:
        return _plain(emit, node)
    if value.meta["val"].numel() != 1 or any(accumulate):
        return _plain(emit, node)
    shape = [*mask.meta["val"].shape, *[1] * (destination.dim() - mask.meta["val"].dim())]
    value = emit(aten.to.dtype, emit(aten.reshape.default, value, []), destination.dtype)
    return emit(aten.where.self, emit(aten.reshape.default, mask, shape), value, node.args[0])


_ROWS: dict[str, Callable[[Emit, fx.Node, torch.Tensor], fx.Node]] = {
    "copy_": _copied,
    "fill_": _filled,
    "zero_": _filled,
    "fill_diagonal_": _diagonal_filled,
    "index_put_": _put,
}


def where(node: fx.Node) -> str:
    """' in MODULE at FILE:LINE (source)' of the call that made ``node``, as far as that is known."""
    modules = node.meta.get("modules", ())
    frames = re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.*)', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not frame[0].startswith(torch.__path__[0])] or frames
    module = f" in {modules[-1] or 'the top module'}" if modules else ""
    return module + (" at {}:{} ({})".format(*own[-1]) if own else "")


def _op(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")
