"""Runs of like blocks, found by watching one forward on fake tensors: which torch calls does each child module make?

    children    0       1       2       3       4       5       each makes the same calls on parameters of its own, and
    reads       x,m     h0,m    h1,m    h2,m    h3,m    h4,m    reads the same values but for what the child before made
    kept        yes     yes     no      no      no      yes     a skipped child returns what the child before made
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

Forward = Callable[..., Any]
LEAST_BLOCKS = 4  # the first, the one that is copied, one that is skipped, the last


@dataclass(frozen=True)
class Run:
    """Like blocks in order, each the names of one or more children that run one after the other.

    ``stubs``: what the skipped children run in place of their forward, by name.
    """

    blocks: tuple[tuple[str, ...], ...]
    stubs: Mapping[str, Forward] = field(repr=False)

    @property
    def kept(self) -> tuple[tuple[str, ...], ...]:
        """The first block, the one that is copied, and the last."""
        return self.blocks[0], self.blocks[1], self.blocks[-1]

    @property
    def skipped(self) -> tuple[tuple[str, ...], ...]:
        """The blocks in between."""
        return self.blocks[2:-1]


def rehearse(model: nn.Module, batch: Mapping[str, torch.Tensor], mode: FakeTensorMode) -> tuple[Run, ...]:
    """Run ``model`` on the fake ``batch`` and find its runs; none if the model can't run on fake tensors.

    A run is proven by the calls that were made, whatever the modules look like: a layer that asks for its own number
    is in a run unless the answer changes what it computes. The model is left as it was.
    """
    stacks = list(_stacks(model))
    if not stacks:
        return ()
    record = _Record()
    forwards = {path: record.watch(path, model.get_submodule(path)) for stack in stacks for path in stack}
    try:
        with replaced(model, forwards), _as_in_export(), mode, record:
            model(**batch)
    except Exception:  # any model code may run here; export says what is wrong with it
        return ()
    return tuple(run for stack in stacks for run in record.runs(stack) if _same_buffers(model, run))


@contextmanager
def _as_in_export() -> Generator[None]:
    """Model code that asks is told that it is exported; nothing is printed about what fails."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), _compiling_state_context():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = disabled


@contextmanager
def replaced(model: nn.Module, forwards: Mapping[str, Forward]) -> Generator[None]:
    """Submodules by name run other forwards inside; afterwards every module's attributes are what they were."""
    saved = [(vars(module), dict(vars(module)), module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        for path, forward in forwards.items():
            vars(model.get_submodule(path))["forward"] = forward
        yield
    finally:
        for attributes, before, buffers, tensors in saved:
            for now, then in ((attributes, before), (buffers, tensors)):
                now.clear()
                now.update(then)


def _stacks(model: nn.Module) -> Iterator[list[str]]:
    """Names of consecutive children of one module that hold the same modules and state; none inside another."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if f"{name}.".startswith(inside):
            continue
        for run in _alike(name, module, names):
            inside += tuple(f"{path}." for path in run)
            yield run


def _alike(name: str, module: nn.Module, names: Mapping[int, list[str]]) -> list[list[str]]:
    runs: list[list[str]] = []
    last: Hashable = None
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        shape = _shape(child, path, names)
        if shape is None or shape != last:
            runs.append([])
        runs[-1].append(path)
        last = shape
    return [run for run in runs if len(run) >= LEAST_BLOCKS]


def _shape(child: nn.Module, path: str, names: Mapping[int, list[str]]) -> Hashable:
    """What like children have alike before they run; None if one shares a parameter with what lies outside it."""
    first: dict[int, str] = {}
    state: list[Hashable] = []
    for name, tensor in child.named_parameters(remove_duplicate=False):
        if not all(n.startswith(f"{path}.") for n in names[id(tensor)]):
            return None
        state.append((name, first.setdefault(id(tensor), name), tensor.shape, tensor.dtype, tensor.requires_grad))
    for name, tensor in child.named_buffers(remove_duplicate=False):
        state.append((name, first.setdefault(id(tensor), name), tensor.shape, tensor.dtype, tensor.is_meta))
    return tuple((name, type(module)) for name, module in child.named_modules()), tuple(state)


def _same_buffers(model: nn.Module, run: Run) -> bool:
    for same in zip(*run.blocks, strict=True):
        first, *others = (dict(model.get_submodule(path).named_buffers(remove_duplicate=False)) for path in same)
        for name, buffer in first.items():
            if any(other[name] is not buffer and not torch.equal(other[name], buffer) for other in others):
                return False
    return True


_PLAIN = (
    bool, int, float, complex, str, type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_CASTS = (torch.Tensor.to, torch.Tensor.type, torch.Tensor.type_as, torch.Tensor.contiguous, torch.Tensor.float)


@dataclass
class _Call:
    """What one child did. In ``words``, its torch calls, a tensor is the child's own result or state, or outside."""

    state: Mapping[int, str]
    words: list[Hashable] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    outside: dict[int, torch.Tensor] = field(default_factory=dict)
    arguments: Any = None
    output: Any = None

    def note(self, function: object, arguments: Any, result: Any) -> None:
        words = (function, self._word(arguments))
        for tensor in leaves(result):
            if isinstance(tensor, torch.Tensor) and id(tensor) not in self.state and id(tensor) not in self.outside:
                self.made.setdefault(id(tensor), len(self.made))
        self.words.append((*words, self._word(result)))

    def kind(self) -> Hashable:
        return tuple(self.words), tuple((tuple(t.shape), t.dtype) for t in self.outside.values())

    def _word(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, tuple | list):
            return (type(value), *map(self._word, value))
        if isinstance(value, dict):
            return (dict, *((k, self._word(v)) for k, v in value.items()))
        if isinstance(value, slice):
            return (slice, self._word(value.start), self._word(value.stop), self._word(value.step))
        if value is None or isinstance(value, _PLAIN):
            return type(value), repr(value)
        return "object", id(value)

    def _tensor(self, value: torch.Tensor) -> Hashable:
        if id(value) in self.made:
            return "made", self.made[id(value)]
        if id(value) in self.state:
            return "state", self.state[id(value)]
        self.outside.setdefault(id(value), value)
        return "outside", list(self.outside).index(id(value))


class _Record(TorchFunctionMode):
    """Notes every torch call in the child whose forward is running. What it has seen stays alive: ids name tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[_Call]] = {}
        self.loose: set[int] = set()
        self.alive: list[Any] = []
        self.running: _Call | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = (args, kwargs or {})
        result = func(*args, **arguments[1])
        if getattr(func, "__name__", "") == "__get__" and not isinstance(result, torch.Tensor):
            return result  # a shape or a type, which shows in what is done with it
        if func in _CASTS and result is args[0]:
            return result  # no op
        self.alive.append((func, arguments, result))
        if self.running is not None:
            self.running.note(func, arguments, result)
        else:
            self.loose.update(map(id, leaves(arguments)))
        return result

    def watch(self, path: str, module: nn.Module) -> Forward:
        """The forward of ``module``, noted under ``path``."""
        original = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
            call = _Call({id(tensor): name for name, tensor in reversed(tensors)})
            call.words.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            self.calls.setdefault(path, []).append(call)
            before, self.running = self.running, call
            try:
                call.arguments, call.output = (args, kwargs), original(*args, **kwargs)
            finally:
                self.running = before
            return call.output

        return forward

    def runs(self, stack: list[str]) -> list[Run]:
        """Runs among children of one shape, each as long as can be."""
        if any(len(self.calls.get(path, ())) != 1 for path in stack):
            return []
        chain = _Chain([self.calls[path][0] for path in stack], self._readers())
        found: list[Run] = []
        start = 0
        while start < len(stack):
            period, count = chain.best(start)
            if not count:
                start += 1
                continue
            blocks = [tuple(stack[i : i + period]) for i in range(start, start + period * count, period)]
            stubs = {stack[i]: chain.stub(i) for i in range(start + 2 * period, start + period * (count - 1))}
            if all(stubs.values()):
                found.append(Run(tuple(blocks), {path: stub for path, stub in stubs.items() if stub}))
            start += period * count
        return found

    def _readers(self) -> dict[int, list[_Call | None]]:
        """By id of a tensor: the calls that read it from outside, and None if something between the calls does."""
        readers: dict[int, list[_Call | None]] = {key: [None] for key in self.loose}
        for calls in self.calls.values():
            for call in calls:
                for key in call.outside:
                    readers.setdefault(key, []).append(call)
        return readers


class _Chain:
    """Calls in order. ``link[i]``: what call i reads of call i - 1, as (number of the outside value, number there)."""

    def __init__(self, calls: list[_Call], readers: Mapping[int, list[_Call | None]]) -> None:
        kinds: dict[Hashable, int] = {}
        self.calls, self.readers = calls, readers
        self.kind = [kinds.setdefault(call.kind(), len(kinds)) for call in calls]
        self.outside = [list(call.outside) for call in calls]
        self.link = [
            [(i, before.made[key]) for i, key in enumerate(call.outside) if key in before.made]
            for before, call in zip([_Call({}), *calls], calls, strict=False)
        ]

    def best(self, start: int) -> tuple[int, int]:
        """(children in a block, blocks) of the run from ``start`` that skips the most children; (0, 0) if there is none."""
        options = [(p, self._blocks(start, p)) for p in range(1, (len(self.calls) - start) // LEAST_BLOCKS + 1)]
        options = [(p, n) for p, n in options if n >= LEAST_BLOCKS]
        return max(options, key=lambda o: o[0] * (o[1] - LEAST_BLOCKS + 1), default=(0, 0))

    def _blocks(self, start: int, period: int) -> int:
        end = start + period
        while end < len(self.calls) and self._alike(end - period, end, start):
            end += 1
        count = (end - start) // period
        chained = all(self._handed_on(i) for i in range(start, start + count * period - 1))
        return count if chained else 0

    def _alike(self, a: int, b: int, start: int) -> bool:
        if self.kind[a] != self.kind[b] or len(self.link[b]) != 1 or not (a == start or self.link[a] == self.link[b]):
            return False
        hidden = self.link[b][0][0]
        pairs = enumerate(zip(self.outside[a], self.outside[b], strict=True))
        return all(x == y for i, (x, y) in pairs if i != hidden)

    def _handed_on(self, i: int) -> bool:
        """Whether one value of call ``i`` leaves it, to the next call."""
        after = self.calls[i + 1]
        read = [reader for key in self.calls[i].made for reader in self.readers.get(key, ())]
        return len(self.link[i + 1]) == 1 and all(reader is after for reader in read)

    def stub(self, i: int) -> Forward | None:
        """A forward that returns call ``i``'s hidden state as it came; None if the call returned anything new."""
        call = self.calls[i]
        hidden, left = self.outside[i][self.link[i][0][0]], self.link[i + 1][0][1]
        places = {id(value): place for place, value in enumerate(leaves(call.arguments)) if value is not None}
        alone = type(call.output) is not tuple
        answers: list[int | None] = []
        for value in (call.output,) if alone else call.output:
            key = hidden if call.made.get(id(value)) == left else id(value)
            if value is not None and key not in places:
                return None
            answers.append(None if value is None else places[key])

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = leaves((args, kwargs))
            results = tuple(None if place is None else given[place] for place in answers)
            return results[0] if alone else results

        return forward


def leaves(value: Any) -> list[Any]:
    """What lies in nested tuples, lists and dicts, in order."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    if type(value) is dict:
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]
