"""Runs of like blocks, found by watching one forward: a run's blocks do the same, each to what the one before made.

children    0       1       2       3       4       5       each makes the same calls on parameters of its own, and
reads       x,m     h0,m    h1,m    h2,m    h3,m    h4,m    reads the same values but for what the child before made
kept        yes     yes     no      no      no      yes     a skipped child returns what the child before made
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.tracing.record_calls import Call, CantRehearse, Forward, Record, leaves, watch

LEAST_BLOCKS = 4  # the first, the one that is copied, one that is skipped, the last


@dataclass(frozen=True)
class Run:
    """Like blocks in order, each the names of one or more children that run one after the other.

    ``stubs``: what the skipped children run in place of their forward, by name. ``is_unread``: nothing else reads their
    parameters.
    """

    blocks: tuple[tuple[str, ...], ...]
    stubs: Mapping[str, Forward] = field(repr=False)
    is_unread: bool = False

    @property
    def kept(self) -> tuple[tuple[str, ...], ...]:
        """The first block, the one that is copied, and the last."""
        return self.blocks[0], self.blocks[1], self.blocks[-1]

    @property
    def skipped(self) -> tuple[tuple[str, ...], ...]:
        """The blocks in between."""
        return self.blocks[2:-1]


def find_runs(model: nn.Module, batch: Mapping[str, torch.Tensor], mode: FakeTensorMode) -> tuple[Run, ...]:
    """Run ``model`` on the fake ``batch`` and find its runs; raises CantRehearse if it can't run on fake tensors.

    A run is proven by the calls that were made, whatever the modules look like: a layer that asks for its own number
    is in a run unless the answer changes what it computes. A second rehearsal, with the blocks skipped, must do all
    else that the first one did, if it can without their parameters. The model is left as it was.
    """
    stacks = list(_stacks(model))
    if not stacks:
        return ()
    record = watch(model, batch, mode, [path for stack in stacks for path in stack], {})
    runs = tuple(run for stack in stacks for run in _runs(record, stack) if _same_buffers(model, run))
    stubs = {path: stub for run in runs for path, stub in run.stubs.items()}
    others = [path for path in record.calls if path not in stubs]
    if runs and _goes_on_without(model, batch, mode, others, stubs, record):
        return tuple(replace(run, is_unread=True) for run in runs)
    return runs if runs and watch(model, batch, mode, others, stubs).agrees(record, others) else ()


def _goes_on_without(
    model: nn.Module, batch: Mapping[str, torch.Tensor], mode: FakeTensorMode, others: list[str],
    stubs: Mapping[str, Forward], record: Record,
) -> bool:  # fmt: skip
    """Whether all but the skipped blocks does the same where these have no parameters."""
    try:
        return watch(model, batch, mode, others, stubs, hollow=True).agrees(record, others)
    except CantRehearse:  # what is asked for is missing
        return False


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


def _runs(record: Record, stack: list[str]) -> list[Run]:
    """Runs among children of one shape, each as long as can be."""
    if any(len(record.calls.get(path, ())) != 1 for path in stack):
        return []
    chain = _Chain([record.calls[path][0] for path in stack], record.readers())
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


class _Chain:
    """Calls in order. ``link[i]``: what call i reads of call i - 1, as (number of the outside value, number there)."""

    def __init__(self, calls: list[Call], readers: Mapping[int, list[Call]]) -> None:
        kinds: dict[Hashable, int] = {}
        self.calls, self.readers = calls, readers
        self.kind = [kinds.setdefault(call.kind(), len(kinds)) for call in calls]
        self.outside = [list(call.outside) for call in calls]
        self.link = [
            [(i, before.made[key]) for i, key in enumerate(call.outside) if key in before.made]
            for before, call in zip([Call({}), *calls], calls, strict=False)
        ]

    def best(self, start: int) -> tuple[int, int]:
        """(children in a block, blocks) of the run from ``start`` that skips the most children; else (0, 0)."""
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
