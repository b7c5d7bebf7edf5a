"""Modules and functions under ``torch.compile``, run as they were written and named as without it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from partitioner.errors import InputError

_INNER = "_orig_mod"  # the one child of the module that torch.compile returns, part of its parameters' names


@contextmanager
def as_written(model: nn.Module) -> Generator[nn.Module]:
    """``unwrapped``, and what else is under ``torch.compile``, functions as well, runs as written inside.

    Raises InputError for what is no module, as a module compiled twice.
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"the model must be an nn.Module, not {type(model).__name__}: give the module itself")
    with unwrapped(model) as plain, torch.compiler.set_stance("force_eager"):
        yield plain


@contextmanager
def unwrapped(model: nn.Module) -> Generator[nn.Module]:
    """``model`` with no module under ``torch.compile`` in it; afterwards it is as it was."""
    wrappers = list(_wrappers(model))
    try:
        yield unwrap(model)
    finally:
        for table, name, value in wrappers:
            table[name] = value


def unwrap(model: nn.Module) -> nn.Module:
    """``model`` with no module under ``torch.compile`` in it, from now on."""
    for table, name, value in list(_wrappers(model)):
        table[name] = _unwrapped(value) if isinstance(value, nn.Module) else None
    return _unwrapped(model)


def _wrappers(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Where a wrapped module, or the compiled call of one that compiles in place, is kept, and what is kept there."""
    for module in _unwrapped(model).modules():
        children = vars(module)["_modules"]
        for name, child in children.items():
            if child is not None and _unwrapped(child) is not child:
                yield children, name, child
        if vars(module).get("_compiled_call_impl") is not None:
            yield vars(module), "_compiled_call_impl", vars(module)["_compiled_call_impl"]


def _unwrapped(module: nn.Module) -> nn.Module:
    while isinstance(inner := vars(module)["_modules"].get(_INNER), nn.Module):
        module = inner
    return module


def written_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of ``model``, tied ones by each name, as they are called without ``torch.compile``."""
    with unwrapped(model) as plain:
        return dict(plain.named_parameters(remove_duplicate=False))
