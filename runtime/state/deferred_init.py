"""``deferred_init``: a module is built without memory, what its construction does is noted, and done again when a rank
asks for a parameter, for that one alone.

    build() --every op that makes or writes a tensor--> Recording --the ops that one parameter hangs on--> its values

A draw is made under a seed of its own, of the given seed and the op's place, so that every rank has the same values.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from partitioner.errors import InputError
from partitioner.user_code.compiled import unwrapped
from runtime.state.parameters_on_meta import parameters_on_meta


def deferred_init(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """The module that ``build`` makes, its parameters on meta: ``parallelize`` begins each as ``build`` would, of other
    draws, on the ranks that hold it. Buffers are real."""
    with deferred(name_seed(0, "deferred_init")) as recording:
        module = build(*args, **kwargs)
    recording.keep(module)
    return module


@contextmanager
def deferred(seed: int) -> Generator[Recording]:
    """In it modules are built without memory, and what builds them is noted. ``seed``: of what numpy and Python draw,
    which is noted by its values."""
    recording, before = Recording(), (random.getstate(), np.random.get_state())  # noqa: NPY002 (constructors use it)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with parameters_on_meta(), recording, _drawn_by_values(recording), _NotMeta():
            yield recording
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


@dataclass(frozen=True)
class _Place:
    """A tensor as it lies in a storage, by number."""

    storage: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Op:
    """``made``: its results, None for those that are no tensors."""

    call: Any  # an overload of torch.ops
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    made: tuple[_Place | None, ...]
    reads: frozenset[int]
    writes: frozenset[int]


class _NotMeta(TorchFunctionMode):
    """No tensor says that it is on meta: torch.nn.init leaves one alone that does."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return False if func == _IS_META else func(*args, **(kwargs or {}))


@contextmanager
def _drawn_by_values(recording: Recording) -> Generator[None]:
    """What draws until the values are such as it wants is one op."""
    original = init._no_grad_trunc_normal_  # pyright: ignore[reportPrivateUsage]

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if tensor.device.type != "meta":
            return original(tensor, *args, **kwargs)
        recording.note(original, (tensor, *args), kwargs, [tensor])
        return tensor

    init._no_grad_trunc_normal_ = noted  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original  # pyright: ignore[reportPrivateUsage]


class Recording(TorchDispatchMode):
    """Of ops, by the storages that they read and write; what is looked at in another way, as a view, is no op here."""

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[_Op] = []
        self._writers: dict[int, list[int]] = {}
        self._given: dict[int, torch.UntypedStorage] = {}  # what no op has made
        self._numbers: dict[StorageWeakRef, int] = {}
        self._count = 0

    def keep(self, module: nn.Module) -> None:
        """As the way in which a module's parameters start."""
        _RECORDINGS[module] = self

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an op, and note it."""
        given = kwargs or {}
        return self.note(func, args, given, _mutated(func, args, given), lambda: func(*args, **given))

    def note(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], mutated: list[torch.Tensor],
        run: Callable[[], Any] = lambda: None,
    ) -> Any:  # fmt: skip
        """A call that writes to ``mutated``, and to what it makes; returns what ``run`` makes."""
        arguments = pytree.tree_map_only(torch.Tensor, self._given_place, (args, dict(kwargs)))
        read = {p.storage for p in pytree.tree_leaves(arguments) if isinstance(p, _Place)}
        written = {self._place(t).storage for t in mutated}
        for number in written & self._given.keys():
            self._given[number] = self._given[number].clone()
        made, known = run(), self._count
        results = tuple(self._place(t) if isinstance(t, torch.Tensor) else None for t in pytree.tree_leaves(made))
        written |= {p.storage for p in results if p is not None and p.storage >= known}
        if written:
            for number in written:
                self._writers.setdefault(number, []).append(len(self._ops))
            self._ops.append(_Op(func, arguments, results, frozenset(read), frozenset(written)))
        return made

    def _place(self, tensor: torch.Tensor) -> _Place:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in self._numbers:
            self._numbers[storage] = self._count
            self._count += 1
        number, offset = self._numbers[storage], int(tensor.storage_offset())
        return _Place(number, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), offset)

    def _given_place(self, tensor: torch.Tensor) -> _Place:
        known, place = self._count, self._place(tensor)
        if place.storage >= known:
            self._given[place.storage] = tensor.untyped_storage()
        return place

    def values(self, tensor: torch.Tensor, seed: int) -> torch.Tensor | None:
        """What the ops leave in a tensor that the recording has seen, NaN where none has written; None for another."""
        if StorageWeakRef(tensor.untyped_storage()) not in self._numbers:
            return None
        place = self._place(tensor)
        storages: dict[int, torch.UntypedStorage] = {}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for number in self._leading_to(place.storage):
                self._again(number, storages, seed)
        if place.storage not in storages and place.storage not in self._given:
            return None
        return self._tensor(place, storages).clone()

    def _leading_to(self, storage: int) -> list[int]:
        """The ops on which what lies in a storage in the end hangs, in order."""
        until, ops, work = {storage: len(self._ops)}, set[int](), [storage]
        while work:
            own = work.pop()
            writers = self._writers.get(own, [])
            for number in writers[: bisect_left(writers, until[own])]:
                if number in ops:
                    continue
                ops.add(number)
                for other in (self._ops[number].reads | self._ops[number].writes) - {own}:
                    if until.get(other, -1) < number:
                        until[other] = number
                        work.append(other)
        return sorted(ops)

    def _again(self, number: int, storages: dict[int, torch.UntypedStorage], seed: int) -> None:
        op = self._ops[number]
        args, kwargs = pytree.tree_map_only(
            _Place, lambda p: self._tensor(p, storages), op.arguments
        )
        here = {"device": torch.device("cpu"), "generator": None}
        torch.manual_seed(name_seed(seed, f"op {number}"))
        made = op.call(*args, **{n: here[n] if n in here and v is not None else v for n, v in kwargs.items()})
        for tensor, place in zip(pytree.tree_leaves(made) if op.made else (), op.made, strict=True):
            if place is None or place.storage in storages:
                continue
            storages[place.storage] = tensor.untyped_storage()
            if op.call.overloadpacket in _UNSET and tensor.is_floating_point():
                tensor.fill_(torch.nan)
            if (tuple(tensor.stride()), tensor.storage_offset()) != (place.stride, place.offset):
                raise InputError(f"{op.call} lies otherwise in memory than on meta: build the module without meta")

    def _tensor(self, place: _Place, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
        if place.storage not in storages:
            storages[place.storage] = self._given[place.storage].clone()
        storage = storages[place.storage]
        return torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.stride)


def recording_of(module: nn.Module) -> Recording | None:
    """How a module was built, where that was noted."""
    with unwrapped(module) as plain:
        return _RECORDINGS.get(plain)


def name_seed(seed: int, name: str) -> int:
    """A seed for torch's generator that depends on ``seed`` and ``name`` alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest(), "big")


def _mutated(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The operands that an op writes to."""
    rows = func._schema.arguments
    given = [args[n] if n < len(args) else kwargs.get(row.name) for n, row in enumerate(rows)]
    marked = [value for row, value in zip(rows, given, strict=True) if row.alias_info and row.alias_info.is_write]
    return [t for t in pytree.tree_leaves(marked) if isinstance(t, torch.Tensor)]


aten = torch.ops.aten
_UNSET = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}  # set nothing
_IS_META = torch.Tensor.is_meta.__get__  # pyright: ignore[reportAttributeAccessIssue]
_RECORDINGS = WeakKeyDictionary[nn.Module, Recording]()
