"""A deep copy of a module whose own functions close over the copy: ``self.ffn = lambda x: self.out(self.inner(x))``."""

from __future__ import annotations

import copy
import types
from typing import Any

from torch import nn


def deep_copy(module: nn.Module) -> nn.Module:
    """``copy.deepcopy``, which leaves functions as they are, and what they close over the original's: mended here.

    Functions are found among the attributes of modules, and in lists, tuples, dicts and closures below them.
    """
    known: dict[int, Any] = {}
    made = copy.deepcopy(module, known)
    done: dict[int, Any] = {}
    for part in made.modules():
        for name, value in list(vars(part).items()):
            found = _moved(value, known, done)
            if found is not value:
                vars(part)[name] = found
    return made


def _moved(value: Any, known: dict[int, Any], done: dict[int, Any]) -> Any:
    """``value``, functions in it bound to the copies that ``known`` holds by the originals' ids."""
    if isinstance(value, types.FunctionType):
        return _function(value, known, done)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        found = [_moved(item, known, done) for item in value]
        same = all(a is b for a, b in zip(found, value, strict=True))
        return value if same else type(value)(found)
    if type(value) is dict:
        found = {key: _moved(item, known, done) for key, item in value.items()}
        return value if all(found[key] is item for key, item in value.items()) else found
    return value


def _function(function: types.FunctionType, known: dict[int, Any], done: dict[int, Any]) -> Any:
    if id(function) in done:
        return done[id(function)]
    done[id(function)] = function  # one that closes over itself
    cells = tuple(_cell(cell, known, done) for cell in function.__closure__ or ())
    defaults = _copied(function.__defaults__, known, done)
    same = all(a is b for a, b in zip(cells, function.__closure__ or (), strict=True))
    if same and defaults is function.__defaults__:
        return function
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(vars(function))
    done[id(function)] = made
    return made


def _cell(cell: types.CellType, known: dict[int, Any], done: dict[int, Any]) -> types.CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    found = _copied(value, known, done)
    return cell if found is value else types.CellType(found)


def _copied(value: Any, known: dict[int, Any], done: dict[int, Any]) -> Any:
    """The copy of what a function holds: of a module or a method of one, of a tensor, and of containers of them."""
    if isinstance(value, types.MethodType) and id(value.__self__) in known:
        return types.MethodType(value.__func__, known[id(value.__self__)])
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        found = [_copied(item, known, done) for item in value]
        same = all(a is b for a, b in zip(found, value, strict=True))
        return value if same else type(value)(found)
    return _moved(value, known, done)
