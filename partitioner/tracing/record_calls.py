"""A rehearsal: one forward on fake tensors that notes which torch calls each of some submodules makes, and on what."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._export.utils import _compiling_state_context  # pyright: ignore[reportPrivateUsage]
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from partitioner.errors import InputError
from partitioner.user_code.constant_branches import ConstantBranches
from partitioner.user_code.uncapturable import in_a_line, quiet

Forward = Callable[..., Any]


class CantRehearse(Exception):
    """The model can't run on fake tensors: says why."""


def watch(
    model: nn.Module, batch: Mapping[str, torch.Tensor], mode: FakeTensorMode, paths: list[str],
    stubs: Mapping[str, Forward], hollow: bool = False,
) -> Record:  # fmt: skip
    """What the submodules ``paths`` do; ``stubs`` run in place of other submodules, ``hollow`` ones where it is said.

    Raises CantRehearse where the model can't run without values.
    """
    record = Record(model)
    forwards = {path: record.watch(path, model.get_submodule(path)) for path in paths}
    try:
        branches = ConstantBranches(model, dict(model.named_buffers(remove_duplicate=False)))
        without = hollowed(model, stubs if hollow else ())
        with without, replaced(model, {**forwards, **stubs}), _as_in_export(), mode, branches, record:
            model(**batch)
    except InputError:
        raise
    except Exception as error:  # any model code may run here
        raise CantRehearse(f"the model can't run on fake tensors ({in_a_line(error)})") from error
    return record


@contextmanager
def _as_in_export() -> Generator[None]:
    """Model code that asks is told that it is exported; nothing is printed about what fails."""
    with quiet(), _compiling_state_context():
        yield


@contextmanager
def replaced(model: nn.Module, forwards: Mapping[str, Forward]) -> Generator[None]:
    """Submodules by name run other forwards inside; afterwards every module's attributes are what they were."""
    tables = [table for module in model.modules() for table in (vars(module), vars(module).get("_buffers", {}))]
    saved = [(table, dict(table)) for table in tables]
    try:
        for path, forward in forwards.items():
            vars(model.get_submodule(path))["forward"] = forward
        yield
    finally:
        for table, before in saved:
            table.clear()
            table.update(before)


@contextmanager
def hollowed(model: nn.Module, paths: Iterable[str]) -> Generator[None]:
    """Submodules by name have no parameters inside."""
    tables = [vars(module)["_parameters"] for path in paths for module in model.get_submodule(path).modules()]
    saved = [(table, dict(table)) for table in tables]
    try:
        for table in tables:
            table.clear()
        yield
    finally:
        for table, before in saved:
            table.update(before)


_PLAIN = (
    bool, int, float, complex, str, type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as, torch.Tensor.contiguous, torch.Tensor.float)


@dataclass
class Call:
    """What one child did. In ``words``, its torch calls, a tensor is the child's own result or state, or outside.

    ``outside``: what else it read, tensors and objects that are no plain values, by id in order.
    """

    state: Mapping[int, str]
    words: list[Hashable] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    outside: dict[int, tuple[int, Any]] = field(default_factory=dict)
    arguments: Any = None
    output: Any = None

    def note(self, function: object, arguments: Any, result: Any) -> None:
        words = (function, _regions(), self._word(arguments))
        for tensor in leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self.state and id(tensor) not in self.outside:
                self.made.setdefault(id(tensor), len(self.made))
        self.words.append((*words, self._word(result)))

    def kind(self) -> Hashable:
        read = [value for _, value in self.outside.values()]
        return tuple(self.words), tuple((v.shape, v.dtype) if isinstance(v, torch.Tensor) else type(v) for v in read)

    def _word(self, value: Any) -> Hashable:
        if id(value) in self.made:
            return "made", self.made[id(value)]
        if id(value) in self.state:
            return "state", self.state[id(value)]
        if isinstance(value, tuple | list):
            return (type(value), *map(self._word, value))
        if isinstance(value, dict):
            return (dict, *((k, self._word(v)) for k, v in value.items()))
        if isinstance(value, slice):
            return (slice, self._word(value.start), self._word(value.stop), self._word(value.step))
        if value is None or isinstance(value, _PLAIN):
            return type(value), repr(value)
        return "outside", self.outside.setdefault(id(value), (len(self.outside), value))[0]


def _regions() -> Hashable:
    """The gradient mode and the autocasts that are on."""
    types = [t for t in ("cpu", "cuda") if torch.is_autocast_enabled(t)]
    return torch.is_grad_enabled(), *((t, torch.get_autocast_dtype(t)) for t in types)


def _state(module: nn.Module) -> dict[int, str]:
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {id(tensor): name for name, tensor in reversed(tensors)}


class Record(TorchFunctionMode):
    """Notes every torch call in the child whose forward is running. What it has seen stays alive: ids name tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, list[Call]] = {}
        self.between = Call(_state(model))
        self.running = self.between
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = (args, kwargs or {})
        result = func(*args, **arguments[1])
        if getattr(func, "__name__", "") == "__get__" and not isinstance(result, torch.Tensor):
            return result  # a shape or a type, which shows in what is done with it
        if func in _CASTS and result is args[0]:
            return result  # no op
        self.alive.append((func, arguments, result))
        self.running.note(func, arguments, result)
        return result

    def watch(self, path: str, module: nn.Module) -> Forward:
        """The forward of ``module``, noted under ``path``."""
        original = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(_state(module))
            call.words.append(_regions())
            self.calls.setdefault(path, []).append(call)
            before, self.running = self.running, call
            try:
                call.arguments, call.output = (args, kwargs), original(*args, **kwargs)
            finally:
                self.running = before
            return call.output

        return forward

    def readers(self) -> dict[int, list[Call]]:
        """By id of a value: the calls that read it from outside."""
        readers: dict[int, list[Call]] = {}
        for call in [self.between, *(call for calls in self.calls.values() for call in calls)]:
            for key in call.outside:
                readers.setdefault(key, []).append(call)
        return readers

    def agrees(self, whole: Record, paths: list[str]) -> bool:
        """Whether the submodules ``paths``, and what runs between them, did here what they do in ``whole``."""
        pairs = [(self.calls.get(path, []), whole.calls[path]) for path in paths]
        pairs.append(([self.between], [whole.between]))
        return all([call.kind() for call in a] == [call.kind() for call in b] for a, b in pairs)


def leaves(value: Any) -> list[Any]:
    """What lies in nested tuples, lists and dicts, in order."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    if type(value) is dict:
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]
