"""A module as a Precision computes it: its parameters cast, the modules that stay in float32 between casts.

    bfloat16 --> | float32    norm(x)    float32 | --> bfloat16        what comes in float32 passes
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from partitioner.errors import InputError
from partitioner.precision import Precision


@contextmanager
def computing_in(model: nn.Module, precision: Precision, with_values: bool = True) -> Generator[nn.Module]:
    """Inside, ``model`` computes as ``precision`` says; afterwards it is as it was.

    Without values, cast parameters lie on meta. Raises InputError for a pattern that names no module.
    """
    kept = _kept(model, precision)
    places = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    inside = {id(p) for module in kept for p in module.parameters()}
    cast: dict[int, nn.Parameter] = {}
    classes = [(module, type(module)) for module in (*kept, model)]
    try:
        for module, name, p in places:
            wanted = _dtype(p, torch.float32 if id(p) in inside else _torch(precision.compute))
            if wanted != p.dtype:
                if id(p) not in cast:
                    cast[id(p)] = _cast(p, wanted, with_values)
                module.register_parameter(name, cast[id(p)])
        for module in kept:
            module.__class__ = _in_float32(type(module))
        if precision.compute:
            model.__class__ = _reading(type(model), _torch(precision.compute))
        yield model
    finally:
        for module, kind in classes:
            module.__class__ = kind
        for module, name, p in places:
            module.register_parameter(name, p)


def _kept(model: nn.Module, precision: Precision) -> list[nn.Module]:
    """The outermost modules that compute in float32."""
    found = dict[str, nn.Module]()
    for pattern in precision.float32:
        named = {name: module for name, module in model.named_modules() if name and fnmatchcase(name, pattern)}
        if not named:
            kind = type(model).__name__
            raise InputError(f"float32={pattern} names no module of {kind}: take names as they are in it")
        found |= named
    outer = tuple(f"{name}." for name in found)
    return [module for name, module in found.items() if not any(name.startswith(o) for o in outer)]


def _torch(name: str) -> torch.dtype | None:
    return getattr(torch, name) if name else None


@functools.cache
def _reading(kind: type[nn.Module], dtype: torch.dtype) -> type[nn.Module]:
    """A subclass that takes real numbers of a batch in ``dtype``, as FSDP2's ``cast_forward_inputs`` of a root does."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(dtype) if _is_real(t) else t, (args, kwargs))
        return kind.forward(self, *args, **kwargs)

    return _named_as(kind, forward)


def _dtype(parameter: torch.Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and _is_real(parameter) else parameter.dtype


def _cast(parameter: nn.Parameter, dtype: torch.dtype, with_values: bool) -> nn.Parameter:
    device = parameter.device if with_values else torch.device("meta")
    made = parameter.detach().to(dtype) if with_values else torch.empty(parameter.shape, dtype=dtype, device=device)
    return nn.Parameter(made, parameter.requires_grad)


@functools.cache
def _in_float32(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose forward computes in float32, and returns what it made in the type in which values came."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        came = [t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and _is_low(t)]
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to(torch.float32) if _is_low(t) else t, (args, kwargs))
        made = kind.forward(self, *args, **kwargs)
        if not came:
            return made
        return tree_map_only(torch.Tensor, lambda t: t.to(came[0]) if t.dtype == torch.float32 else t, made)

    return _named_as(kind, forward)


def _named_as(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    forward.__signature__ = inspect.signature(kind.forward)  # what a model's own code may look at
    members = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), members)


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.dtype.is_floating_point


def _is_low(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)
