"""Places in the user's code, in words: ``in MODULE at FILE:LINE (source)``."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_TORCH, _OWN = torch.__path__[0], str(Path(__file__).parents[1])
Framed = tuple[FrameType, int]


def place_of(error: BaseException, model: nn.Module) -> str:
    """Where an error was raised, ' in MODULE at FILE:LINE (source)'; empty where no line of the user's is on its way.

    The module is the innermost one whose method runs, the line the innermost outside torch and this package.
    """
    return _place(_raised(error), model)


def place_here(model: nn.Module) -> str:
    """Where the model's code is now."""
    return _place(reversed(list(_running())), model)


def _place(frames: Iterable[Framed], model: nn.Module) -> str:
    names = {id(module): name or "the top module" for name, module in model.named_modules()}
    module, where = "", ""
    for frame, line in frames:
        file = frame.f_code.co_filename
        if file.startswith(_OWN):
            continue
        module = names.get(id(first_argument(frame))) or module
        if module and not file.startswith((_TORCH, "<")):
            where = f" at {file}:{line} ({linecache.getline(file, line).strip()})"
    return f" in {module}{where}" if module else ""


def first_argument(frame: FrameType) -> object:
    """The ``self`` of a method, whatever it is called."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount or code.co_varnames else None


def _raised(error: BaseException) -> Iterator[Framed]:
    step = error.__traceback__
    while step:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _running() -> Iterator[Framed]:
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame:
        yield frame, frame.f_lineno
        frame = frame.f_back
