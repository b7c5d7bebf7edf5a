"""MODEL on the command line (file.py:function, hf:TYPE, hf:config.json, plain:decoder) and its ``--set k=v``."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import nn

from partitioner.errors import InputError

PLAIN_MODELS = ("decoder",)  # this project's own, of any size
WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Entry:
    """``kind`` is "file", "hf" or "plain"; ``path`` a Python file, a config.json or none; ``name`` a function, a model
    type or one of PLAIN_MODELS."""

    kind: str
    path: Path | None
    name: str


def parse(spec: str) -> Entry:
    """Read MODEL without importing anything; raises InputError when it has none of the forms."""
    head, _, tail = spec.rpartition(":")
    if spec.startswith("hf:") and len(spec) > 3:
        return _transformers_entry(spec.removeprefix("hf:"))
    if head == "plain" and tail in PLAIN_MODELS:
        return Entry("plain", None, tail)
    if head.endswith(".py") and tail.isidentifier():
        return Entry("file", Path(head), tail)
    forms = "file.py:function, hf:TYPE, hf:config.json and plain:decoder"
    raise InputError(f"MODEL {spec!r} is none of {forms} (example: hf:llama)")


def _transformers_entry(text: str) -> Entry:
    path = Path(text)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return Entry("hf", path, path.stem)
    return Entry("hf", None, text)


def parse_settings(pairs: Iterable[str]) -> dict[str, object]:
    """``["hidden_size=512", "act=gelu"]`` as keyword arguments: Python literals where they parse, else text."""
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"--set takes key=value, not {pair!r}")
        settings[key] = _literal(text)
    return settings


def literals(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings with every text value read as a Python literal where it is one."""
    return {key: _literal(value) if isinstance(value, str) else value for key, value in settings.items()}


def _literal(text: str) -> object:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def nearest(key: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, or all the known names when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"


Model = Callable[..., object]  # what it returns is looked at by ``call``


def function(entry: Entry) -> Model:
    """Import the entry's file and find its function; raises InputError, with the user's own line, when that fails."""
    module = _module(entry)
    found = getattr(module, entry.name, None)
    if not callable(found):
        names = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise InputError(f"{entry.path} has no function {entry.name}{nearest(entry.name, names)}")
    return found


def takes(model: Model, key: str) -> bool:
    """Whether ``key`` may be set."""
    parameters = inspect.signature(model).parameters.values()
    return any(p.kind is inspect.Parameter.VAR_KEYWORD or p.name == key for p in parameters)


def call(entry: Entry, model: Model, settings: Mapping[str, object]) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The module and its example batch; raises InputError when the call fails, or returns anything else."""
    place = f"{entry.path}:{entry.name}"
    for key in settings:
        if not takes(model, key):
            known = nearest(key, inspect.signature(model).parameters)
            raise InputError(f"--set {key}: {place} takes no such argument{known}")
    with _blame(entry):
        returned = model(**settings)
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], nn.Module):
        raise InputError(f"{place} must return (module, batch), and returned {type(returned).__name__}")
    module, batch = cast(tuple[nn.Module, object], returned)
    tensors = cast(dict[str, object], batch).values() if isinstance(batch, dict) else [None]
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise InputError(f"{place}: the batch must be a dict of tensors, argument name to example")
    return module, cast(dict[str, torch.Tensor], batch)


def _module(entry: Entry) -> ModuleType:
    path = _path(entry)
    spec = importlib.util.spec_from_file_location(f"model_file_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{entry.path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses and pickle look it up
    with _blame(entry), _neighbours(path.parent):
        spec.loader.exec_module(module)
    return module


def _path(entry: Entry) -> Path:
    return (entry.path or Path()).resolve()


@contextmanager
def _neighbours(folder: Path) -> Generator[None]:
    """The file may import its neighbours, as it may when run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _blame(entry: Entry) -> Generator[None]:
    """Any error of the user's code becomes one line that names the user's line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame.lineno for frame in frames if Path(frame.filename).resolve() == _path(entry)]
        line = f":{inside[-1]}" if inside else ""
        raise InputError(f"{entry.path}{line}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An error's type and what it says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
