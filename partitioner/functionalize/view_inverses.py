"""Each view as a row: how it is made again of a changed base, and how a base takes what was written into the view.

    h = base.transpose(1, 2)       again: permute(base)            back: permute(h)
    h = base[:, 2:]                again: slice(base, 1, 2)        back: slice_scatter(base, h, 1, 2)
    h = base.expand(8, 4)          again: expand(base)             back: none, one element lies in many places
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from partitioner.graph.nodes import call

aten = torch.ops.aten

Emit = Callable[..., fx.Node]


@dataclass(frozen=True)
class View:
    """``again(emit, base)`` is the view of another base; ``back(emit, base, new)`` the base whose view is ``new``.

    ``back`` is None where elements of the base lie in several places of the view.
    """

    again: Callable[[Emit, fx.Node], fx.Node]
    back: Callable[[Emit, fx.Node, fx.Node], fx.Node] | None = None


def view_of(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int = 0) -> View | None:
    """How ``node`` makes ``value``, result number ``place``, of its first operand ``base``; None where no row says."""
    row = _ROWS.get(name_of(node))
    plain = value.is_conj() == base.is_conj() and value.is_neg() == base.is_neg()
    return row(node, base, value, place) if row and plain else None


def name_of(node: fx.Node) -> str:
    """The op's name without namespace and overload; "" where the node calls no op."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.removeprefix("aten::")


def _reshaped(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View | None:
    if value.dtype != base.dtype:
        return None
    return View(
        lambda emit, whole: emit(aten.reshape.default, whole, list(value.shape)),
        lambda emit, whole, new: emit(aten.reshape.default, new, list(base.shape)),
    )


def _expanded(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View | None:
    if value.numel() == base.numel():
        return _reshaped(node, base, value, place)
    return View(lambda emit, whole: emit(aten.expand.default, whole, list(value.shape)))


def _permuted(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View:
    probe = torch.empty(tuple(range(2, 2 + base.dim())), device="meta")  # sizes that tell the dimensions apart
    order = [size - 2 for size in call(node, probe, *node.args[1:], **node.kwargs).shape]
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return View(
        lambda emit, whole: emit(aten.permute.default, whole, order),
        lambda emit, whole, new: emit(aten.permute.default, new, inverse),
    )


def _same_arguments(again: Callable[..., object], back: Callable[..., object]) -> Inverse:
    """A view whose scatter takes the arguments that the view takes."""

    def row(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View:
        args, kwargs = node.args[1:], node.kwargs
        return View(
            lambda emit, whole: emit(again, whole, *args, **kwargs),
            lambda emit, whole, new: emit(back, whole, new, *args, **kwargs),
        )

    return row


def _narrowed(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View | None:
    dim, start = node.args[1:3]
    if not isinstance(start, int) or not isinstance(dim, int):
        return None
    return _sliced(dim, start % max(base.shape[dim], 1), value.shape[dim]) if value.shape[dim] else None


def _split(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View | None:
    parts: list[torch.Tensor] = node.meta["val"]
    cut = [d for d, size in enumerate(base.shape) if any(part.shape[d] != size for part in parts)]
    if not cut:
        return _reshaped(node, base, value, place)
    return _sliced(cut[0], sum(part.shape[cut[0]] for part in parts[:place]), value.shape[cut[0]])


def _sliced(dim: int, start: int, length: int) -> View:
    return View(
        lambda emit, whole: emit(aten.slice.Tensor, whole, dim, start, start + length),
        lambda emit, whole, new: emit(aten.slice_scatter.default, whole, new, dim, start, start + length),
    )


def _unbound(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return View(
        lambda emit, whole: emit(aten.select.int, whole, dim, place),
        lambda emit, whole, new: emit(aten.select_scatter.default, whole, new, dim, place),
    )


def _real(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View:
    return View(
        lambda emit, whole: emit(aten.view_as_real.default, whole),
        lambda emit, whole, new: emit(aten.view_as_complex.default, new),
    )


def _complex(node: fx.Node, base: torch.Tensor, value: torch.Tensor, place: int) -> View:
    return View(
        lambda emit, whole: emit(aten.view_as_complex.default, whole),
        lambda emit, whole, new: emit(aten.view_as_real.default, new),
    )


Inverse = Callable[[fx.Node, torch.Tensor, torch.Tensor, int], Any]

_ROWS: dict[str, Inverse] = {
    **dict.fromkeys(
        (
            "view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "view_as", "reshape_as", "ravel",
            "_unsafe_view", "_reshape_alias", "alias", "detach", "contiguous", "to", "type_as", "lift_fresh",
        ),
        _reshaped,
    ),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), _expanded),
    **dict.fromkeys(
        (
            "transpose", "permute", "t", "numpy_T", "mT", "mH", "adjoint", "matrix_H", "swapaxes", "swapdims",
            "movedim", "moveaxis",
        ),
        _permuted,
    ),
    "slice": _same_arguments(aten.slice.Tensor, aten.slice_scatter.default),
    "select": _same_arguments(aten.select.int, aten.select_scatter.default),
    "diagonal": _same_arguments(aten.diagonal.default, aten.diagonal_scatter.default),
    "narrow": _narrowed,
    **dict.fromkeys(
        ("split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit"), _split
    ),
    "unbind": _unbound,
    "view_as_real": _real,
    "view_as_complex": _complex,
}  # fmt: skip
