"""Random generators outside torch's keyed ops: their states, who drew from one, and where.

A model that draws from Python's or numpy's generator, or from a ``torch.Generator`` of its own, is another model each
time that it runs: no trace of it holds for the next step.
"""

from __future__ import annotations

import linecache
import random
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from partitioner.errors import InputError
from partitioner.ops.autograd_functions import alone
from partitioner.user_code.places import first_argument

Frames = Callable[[], object]


class Generators:
    """All generators that a model may draw from, with their states now."""

    def __init__(self, model: nn.Module) -> None:
        self.rows = list(_rows(model))
        self.before = self.states()
        self.torch_state = torch.random.get_rng_state()
        self.on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def states(self) -> list[Any]:
        """Of all of them, now."""
        with alone():
            return [read() for _, read, _ in self.rows]

    def restore(self) -> None:
        """Put every state back, torch's own too."""
        for (_, _, write), state, now in zip(self.rows, self.before, self.states(), strict=True):
            if not _equal(now, state):
                write(state)
        torch.random.set_rng_state(self.torch_state)
        if self.on_devices:
            torch.cuda.set_rng_state_all(self.on_devices)

    def drawn(self) -> str | None:
        """The first generator whose state is another than at the start."""
        rows = zip(self.rows, self.before, self.states(), strict=True)
        return next((name for (name, _, _), state, now in rows if not _equal(now, state)), None)

    def refuse_draws(self, model: nn.Module, forward: Frames) -> None:
        """Raise InputError if a generator was drawn from, naming the module and line that does so in ``forward``."""
        name = self.drawn()
        if name is None:
            return
        raise InputError(
            f"the model draws from {name} in its forward{self._place(model, forward)}: each step would train another "
            "model than the one that was traced; draw with torch's own random ops (torch.rand), or leave it out"
        )

    def _place(self, model: nn.Module, forward: Frames) -> str:
        """The innermost line that draws, found by looking at the states after each line of the model's code."""
        names = {id(module): name or "the top module" for name, module in model.named_modules()}
        found: list[str] = []
        last = self.states()

        def look(frame: FrameType, line: int) -> None:
            if not found and not all(map(_equal, self.states(), last)):
                owner, file = _owner(frame, names), frame.f_code.co_filename
                found.append(f"{owner} at {file}:{line} ({linecache.getline(file, line).strip()})")

        def watch(frame: FrameType, event: str, _: Any) -> Any:
            if frame.f_code.co_filename.startswith((torch.__path__[0], np.__path__[0], random.__file__)):
                return None
            line = [frame.f_lineno]

            def local(inner: FrameType, event: str, _: Any) -> Any:
                look(inner, line[0])
                line[0] = inner.f_lineno
                return local

            return local

        tracing = sys.gettrace()
        sys.settrace(watch)
        try:
            forward()
        except Exception:  # any model code may run here; what it draws from was found, where it does so need not be
            return ""
        finally:
            sys.settrace(tracing)
        return f", in {found[0]}" if found else ""


def _owner(frame: FrameType | None, names: dict[int, str]) -> str:
    while frame is not None:
        owner = id(first_argument(frame))
        if owner in names:
            return names[owner]
        frame = frame.f_back
    return "the model"


_Row = tuple[str, Callable[[], Any], Callable[[Any], None]]


def _rows(model: nn.Module) -> Iterator[_Row]:
    """Name, reader and writer of each generator's state."""
    yield "Python's random", random.getstate, random.setstate
    yield "numpy's random", np.random.get_state, np.random.set_state
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for one in value if isinstance(value, list | tuple) else (value,):
                row = _own(one)
                if row:
                    yield f"{path}.{name}".lstrip("."), *row


def _own(value: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if isinstance(value, np.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(value, torch.Generator):
        return lambda: value.get_state().numpy(), lambda state: value.set_state(torch.from_numpy(state)) and None
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple):
        return all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
