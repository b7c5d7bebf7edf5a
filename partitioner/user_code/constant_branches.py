"""Values that Python asks for while a model is traced, where they depend on neither inputs nor parameters.

    forward     mask = triu(full(-inf), 1)    h = mask == causal    if h.all():    x * y
    kept        call, call                    call                  call           -
    asked                                                           the calls so far that h needs, on real tensors

A call is kept while all that it reads is known: buffers, tensors that the module holds, and what kept calls made. One
that changes a known tensor is kept as well, so that asking again sees the change; where the change comes from an input,
a parameter or a random draw, the tensor is known no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves, tree_map_only

_T = torch.Tensor
_ASKING = (  # how Python reads values
    _T.__bool__, _T.__int__, _T.__float__, _T.__complex__, _T.__index__, _T.item, _T.tolist, _T.__contains__,
    _T.is_nonzero, torch.is_nonzero, _T.equal, torch.equal, _T.allclose, torch.allclose,
)  # fmt: skip


@dataclass(frozen=True)
class _Call:
    """A call on known tensors. ``stores``: what it made or changed, as storages."""

    function: Any
    args: Any
    kwargs: Any
    results: tuple[Any, ...]
    stores: frozenset[int]
    low: tuple[torch.dtype, bool]  # of the autocast around it


class ConstantBranches(TorchFunctionMode):
    """Inside, Python that asks for the value of a constant of the model is told it; any other asking goes its way.

    ``real`` gives each buffer's values by name; ``model`` may hold others under the names, without storage.
    """

    def __init__(self, model: nn.Module, real: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        held = model.named_buffers(remove_duplicate=False)
        self.given = {id(t): (t, real[name]) for name, t in held if name in real and not _is_hollow(real[name])}
        self.calls: list[_Call] = []
        self.known: dict[int, Any] = {}
        self.spoilt: dict[int, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():  # export does not see it, and its tensors don't tell that they change
            raise ValueError("torch.inference_mode in a forward can't be traced: use torch.no_grad()")
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        tensors = [v for v in given if isinstance(v, torch.Tensor)]
        known = all(map(self._is_known, tensors)) and not any(map(_is_unknown, given))
        if func in _ASKING and tensors and known:
            return self._answer(func, args, kwargs, tensors)
        before = [t._version for t in tensors]
        result = func(*args, **kwargs)
        made = [v for v in tree_leaves(result) if isinstance(v, torch.Tensor)]
        changed = [t for t, version in zip(tensors, before, strict=True) if t._version != version]
        self._keep(func, args, kwargs, made, changed, known)
        return result

    def _keep(self, func: Any, args: Any, kwargs: Any, made: list[Any], changed: list[Any], known: bool) -> None:
        if not known:
            self.spoilt |= {_store(t): t for t in changed}
        elif made or changed:
            stores = frozenset(map(_store, [*made, *changed]))
            self.calls.append(_Call(func, args, kwargs, tuple(made), stores, _autocast()))
            self.known |= {id(t): t for t in made}

    def _is_known(self, tensor: torch.Tensor) -> bool:
        if _store(tensor) in self.spoilt:
            return False
        return id(tensor) in self.known or id(tensor) in self.given or not _is_hollow(tensor)

    def _answer(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        values = dict[int, torch.Tensor]()
        plain = torch._C.DisableTorchFunction()  # pyright: ignore[reportPrivateUsage]
        with _disable_current_modes(), plain, torch.no_grad(), torch.random.fork_rng([]):
            state = torch.get_rng_state()
            for call in self._needed(tensors):
                self._run(call, values)
            drawn = not torch.equal(state, torch.get_rng_state())
            if not drawn:
                return func(*self._real(args, values), **self._real(kwargs, values))
        return func(*args, **kwargs)

    def _needed(self, tensors: list[torch.Tensor]) -> list[_Call]:
        stores, found = set(map(_store, tensors)), list[_Call]()
        for call in reversed(self.calls):
            if stores & call.stores:
                found.append(call)
                stores |= {_store(v) for v in tree_leaves((call.args, call.kwargs)) if isinstance(v, torch.Tensor)}
        return found[::-1]

    def _run(self, call: _Call, values: dict[int, torch.Tensor]) -> None:
        with torch.autocast("cpu", *call.low, cache_enabled=False):
            result = call.function(*self._real(call.args, values), **self._real(call.kwargs, values))
        made = [v for v in tree_leaves(result) if isinstance(v, torch.Tensor)]
        values |= {id(fake): real for fake, real in zip(call.results, made, strict=True)}

    def _real(self, arguments: Any, values: dict[int, torch.Tensor]) -> Any:
        def real(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in values:
                values[id(tensor)] = self.given.get(id(tensor), (tensor, tensor))[1].detach().clone()
            return values[id(tensor)]

        return tree_map_only(torch.Tensor, real, arguments)


def _autocast() -> tuple[torch.dtype, bool]:
    return torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")


def _is_hollow(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, FakeTensor | nn.Parameter) or tensor.is_meta


def _is_unknown(value: Any) -> bool:
    """Whether an argument hides values: a number that tracing does not know, a generator with a state of its own."""
    if isinstance(value, slice):
        return any(isinstance(end, torch.Tensor) or _is_unknown(end) for end in (value.start, value.stop, value.step))
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | torch.Generator)


def _store(tensor: torch.Tensor) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
