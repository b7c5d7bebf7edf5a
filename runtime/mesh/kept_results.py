"""Nodes whose results are kept from forward to backward where the rest of a block runs again, by torch's selective
checkpoint contexts.

    %y = linear(%x, %w)     -->     %y = kept linear(%x, %w)       what the product makes inside is held, its views not

The contexts see each op that torch dispatches. What is none, a collective or a product on a kernel of ours, runs as one
op that they see.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

_LIBRARY = torch.library.Library("runtime", "FRAGMENT")
_LIBRARY.define("as_one(Tensor[] operands, int function) -> Tensor[]")
_FUNCTIONS: dict[int, Callable[..., Sequence[torch.Tensor]]] = {}  # those that run now


def _run(operands: list[torch.Tensor], function: int) -> list[torch.Tensor]:
    return [*_FUNCTIONS[function](*operands)]


_LIBRARY.impl("as_one", _run, "CompositeExplicitAutograd")
torch.library.register_fake("runtime::as_one", _run)
_AS_ONE = torch.ops.runtime.as_one.default


def as_one(function: Callable[..., Sequence[torch.Tensor]], *operands: torch.Tensor) -> list[torch.Tensor]:
    """What a function of tensors makes, as one op without a gradient, which selective contexts may not run again."""
    key = id(function)
    _FUNCTIONS[key] = function
    try:
        return _AS_ONE(list(operands), key)
    finally:
        del _FUNCTIONS[key]


_aten = torch.ops.aten
_COUNTED = {op for op in flop_registry if isinstance(op, torch._ops.OpOverloadPacket)}  # pyright: ignore
_ATTENTION = {op for op in _COUNTED if "attention" in str(op)} | {
    _aten._scaled_dot_product_flash_attention_for_cpu, _aten._scaled_dot_product_fused_attention_overrideable
}  # fmt: skip
_AS_ONE_OF = torch.ops.runtime.as_one
_KEPT: dict[str, set[Any]] = {  # by what a node is: the ops in it whose results are kept
    "product": {*(_COUNTED - _ATTENTION), _aten.mv, _aten.dot, _AS_ONE_OF},
    "attention": _ATTENTION,
    "collective": {_AS_ONE_OF},
}
KINDS = frozenset({*_KEPT, "choice"})  # of a choice everything is kept that is not a view


class _Now(threading.local):
    kind: str | None = None


_now = _Now()


def kept(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """A node's function whose results selective contexts keep; ``kind`` of KINDS."""

    def run(*arguments: Any, **options: Any) -> Any:
        before, _now.kind = _now.kind, kind
        try:
            return function(*arguments, **options)
        finally:
            _now.kind = before

    run.__name__ = f"kept_{getattr(function, '__name__', kind).replace('.', '_')}"
    return run


def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For ``torch.utils.checkpoint``: of a forward, and of its recompute.

    A sum over ranks overwrites its product, and what was kept of that with it, which the sum is: nothing else changes
    what is kept.
    """
    return create_selective_checkpoint_contexts(_policy, allow_cache_entry_mutation=True)


def _policy(ctx: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_kept(op) else CheckpointPolicy.PREFER_RECOMPUTE


def _is_kept(op: Any) -> bool:
    if _now.kind is None or not isinstance(op, torch._ops.OpOverload):  # pyright: ignore
        return False
    if _now.kind in _KEPT:
        return op.overloadpacket in _KEPT[_now.kind]
    return all(result.alias_info is None for result in op._schema.returns)  # pyright: ignore[reportPrivateUsage]
