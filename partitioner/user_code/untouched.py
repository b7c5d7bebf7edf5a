"""A module and the random state are, after it was traced, exactly what they were before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from partitioner.user_code.generators import Generators

Undo = Callable[[], None]
_PLAIN = (type(None), bool, int, float, str, nn.Parameter)  # nothing in them changes


class Untouched:
    """What a model's attributes, modes, parameters and buffers were when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self.model, seen = model, set[int]()
        self.undo = [step for module in model.modules() for step in _undo(vars(module), seen)]

    @contextmanager
    def after(self, forward: Callable[[], object]) -> Generator[None]:
        """All of it is put back at the end, and the random states as they were on entering, whatever happens inside.

        Raises InputError when a generator that torch's ops don't key was drawn from inside; ``forward`` runs the model
        once more to find where.
        """
        generators = Generators(self.model)
        try:
            try:
                yield
            finally:
                generators.refuse_draws(self.model, forward)
        finally:
            for step in self.undo:
                step()
            generators.restore()


def _undo(value: Any, seen: set[int]) -> Iterator[Undo]:
    """What puts a container, what lies in it, and the values of tensors back."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield from _tensor(value)
    elif isinstance(value, dict):
        yield _contents(value, dict(value), value.update)
        yield from _undo_all(value.values(), seen)
    elif type(value) in (list, set):
        yield _contents(value, type(value)(value), value.extend if isinstance(value, list) else value.update)
        yield from _undo_all(value, seen)
    elif type(value) is tuple:
        yield from _undo_all(value, seen)
    elif isinstance(value, SimpleNamespace) or dataclasses.is_dataclass(value) and hasattr(value, "__dict__"):
        yield from _undo(vars(value), seen)


def _undo_all(items: Iterable[Any], seen: set[int]) -> Iterator[Undo]:
    for item in list(items):
        if type(item) not in _PLAIN:
            yield from _undo(item, seen)


def _contents(container: Any, before: Any, fill: Callable[[Any], None]) -> Undo:
    def undo() -> None:
        if not _same(container, before):
            container.clear()
            fill(before)

    return undo


def _same(container: Any, before: Any) -> bool:
    """Whether the very same objects lie in it, in the same order."""
    same = [*map(id, container)] == [*map(id, before)]
    return same and (not isinstance(container, dict) or [*map(id, container.values())] == [*map(id, before.values())])


def _tensor(tensor: torch.Tensor) -> Iterator[Undo]:
    """A buffer's values; parameters are replaced while tracing, and are never written to."""
    if isinstance(tensor, nn.Parameter) or tensor.is_meta or tensor.is_inference():
        return
    version, before = tensor._version, tensor.detach().clone()

    def undo() -> None:
        if tensor._version != version:
            with torch.no_grad():
                tensor.copy_(before)

    yield undo
