"""``deferred_init``: a module is built without memory, what its construction does is noted, and done again when a rank
asks for a parameter, for that one alone.

    build() --every op that makes or writes a tensor--> Recording --the ops that one parameter hangs on--> its values

Each draw has a seed of its own, of torch's initial seed and the draw's number, when it is noted and when it is done
again: parameters fit buffers that are made of the same draws, and every rank that draws in the same order has the same.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import init
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from runtime.state.parameters_on_meta import parameters_on_meta


def deferred_init(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """The module that ``build`` makes, its parameters on meta: ``parallelize`` begins each as ``build`` would, on the
    ranks that hold it. Buffers are real.

    What is drawn hangs on ``torch.initial_seed()``, which must be the same on all ranks. What can't be seen: values
    that numpy writes into a tensor's memory.
    """
    with deferred() as recording:
        module = build(*args, **kwargs)
    recording.keep(module)
    return module


@contextmanager
def deferred() -> Generator[Recording]:
    """In it modules are built without memory, and what builds them is noted."""
    recording, seed = Recording(torch.initial_seed()), name_seed(torch.initial_seed(), "numpy and Python")
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 (constructors use it)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        with (
            torch.random.fork_rng(devices=[]), parameters_on_meta(recording.without_memory), recording,
            _drawn_by_values(recording), _NotMeta(),
        ):  # fmt: skip
            yield recording
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def name_seed(seed: int, name: str) -> int:
    """A seed for torch's generator that depends on ``seed`` and ``name`` alone, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest(), "big")


@dataclass(frozen=True)
class _Place:
    """A tensor as it lies in a storage, by number."""

    storage: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """From the storage's beginning to its own end."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (self.offset + last + 1) * self.dtype.itemsize if 0 not in self.shape else 0


@dataclass(frozen=True)
class _Op:
    """``made``: its results, None for those that are no tensors. ``default``: torch's default dtype; ``draw``: its
    number among those that draw, None for any other."""

    call: Any  # an overload of torch.ops, or a function
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]]
    made: tuple[_Place | None, ...]
    reads: frozenset[int]
    writes: frozenset[int]
    default: torch.dtype
    draw: int | None


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
        run = (lambda: None) if tensor.device.type == "meta" else (lambda: original(tensor, *args, **kwargs))
        with recording.as_one():
            recording.note(original, (tensor, *args), kwargs, [tensor], run, draws=True)
        return tensor

    init._no_grad_trunc_normal_ = noted  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        init._no_grad_trunc_normal_ = original  # pyright: ignore[reportPrivateUsage]


class Recording(TorchDispatchMode):
    """Of ops, by the storages that they read and write; what is looked at in another way, as a view, is no op here."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed, self._draws, self._count, self._is_noting = seed, 0, 0, True
        self._ops: list[_Op] = []
        self._writers: dict[int, list[int]] = {}
        self._given: dict[int, torch.UntypedStorage] = {}  # what no op has made, as it was first seen
        self._numbers: dict[StorageWeakRef, int] = {}
        self._without: dict[int, torch.Tensor] = {}  # bytes on meta in the place of a storage, by its number
        self._words = hashlib.blake2b(f"{seed}".encode(), digest_size=8)

    @property
    def draws(self) -> str:
        """A word that is the same where the same was drawn, of the same seed, in the same order."""
        return self._words.hexdigest()

    def keep(self, module: nn.Module) -> None:
        """As the way in which a module's parameters begin; buffers that were made of such get values."""
        for parameter in module.parameters():
            _RECORDINGS[parameter] = self, parameter._version
        for owner in module.modules():
            for name, buffer in list(owner.named_buffers(recurse=False)):
                if buffer.is_meta and (values := self.values(buffer)) is not None:
                    setattr(owner, name, values)

    @contextmanager
    def as_one(self) -> Generator[None]:
        """Ops in it are part of another, which is noted."""
        before, self._is_noting = self._is_noting, False
        try:
            yield
        finally:
            self._is_noting = before

    def without_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """On meta, where it lies: what is written to either of both is written to both."""
        place = self._given_place(tensor)
        with self.as_one():
            if place.storage not in self._without:
                many = tensor.untyped_storage().nbytes()
                self._without[place.storage] = torch.empty(many, dtype=torch.uint8, device="meta")
            storage = self._without[place.storage].untyped_storage()
            self._numbers[StorageWeakRef(storage)] = place.storage
            return torch.empty(0, dtype=place.dtype, device="meta").set_(
                storage, place.offset, place.shape, place.stride
            )  # fmt: skip

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an op, and note it."""
        given = dict(kwargs or {})
        leaves = pytree.tree_leaves((args, given))
        if not self._is_noting or any(isinstance(leaf, torch.UntypedStorage) for leaf in leaves):
            return func(*args, **given)
        if "generator" in given:
            given["generator"] = None
        draws = torch.Tag.nondeterministic_seeded in func.tags
        return self.note(func, args, given, _mutated(func, args, given), lambda: func(*args, **given), draws)

    def note(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], mutated: list[torch.Tensor],
        run: Callable[[], Any], draws: bool = False,
    ) -> Any:  # fmt: skip
        """A call that writes to ``mutated``, and to what it makes; returns what ``run`` makes."""
        arguments = pytree.tree_map_only(torch.Tensor, self._given_place, (args, dict(kwargs)))
        read = {p.storage for p in pytree.tree_leaves(arguments) if isinstance(p, _Place)}
        written = {self._place(t).storage for t in mutated}
        draw = self._draws if draws else None
        if draws:
            numbers = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if not isinstance(leaf, torch.Tensor)]
            self._words.update(f"{func} {[tuple(t.shape) for t in mutated]} {numbers}".encode())
            self._draws += 1
            torch.manual_seed(name_seed(self._seed, f"draw {draw}"))
        made, known = run(), self._count
        results = tuple(self._place(t) if isinstance(t, torch.Tensor) else None for t in pytree.tree_leaves(made))
        written |= {p.storage for p in results if p is not None and p.storage >= known}
        if written:
            for number in written:
                self._writers.setdefault(number, []).append(len(self._ops))
            row = _Op(func, arguments, results, frozenset(read), frozenset(written), torch.get_default_dtype(), draw)
            self._ops.append(row)
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
        if place.storage >= known and tensor.device.type != "meta":
            with self.as_one():
                storage = tensor.untyped_storage()
                self._given[place.storage] = storage.clone() if storage.device.type == "cpu" else storage.cpu()
        return place

    def values(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What the ops leave in a tensor that the recording has seen, NaN where none has written; None for another."""
        if StorageWeakRef(tensor.untyped_storage()) not in self._numbers:
            return None
        place, default = self._place(tensor), torch.get_default_dtype()
        ops = self._leading_to(place.storage)
        made = set[int]().union(*(self._ops[n].writes - self._ops[n].reads for n in ops))
        if not {place.storage, *(s for n in ops for s in self._ops[n].reads)} <= made | self._given.keys():
            return None  # of something on meta that was there before
        storages: dict[int, torch.UntypedStorage] = {}
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device("cpu"):
                for number in ops:
                    self._again(self._ops[number], storages)
                return self._tensor(place, storages).clone()
        finally:
            torch.set_default_dtype(default)

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

    def _again(self, op: _Op, storages: dict[int, torch.UntypedStorage]) -> None:
        args, kwargs = pytree.tree_map_only(_Place, lambda p: self._tensor(p, storages), op.arguments)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        torch.set_default_dtype(op.default)
        if op.draw is not None:
            torch.manual_seed(name_seed(self._seed, f"draw {op.draw}"))
        made = op.call(*args, **kwargs)
        for tensor, place in zip(pytree.tree_leaves(made) if op.made else (), op.made, strict=True):
            if place is None or place.storage in storages:
                continue
            packet = getattr(op.call, "overloadpacket", None)
            if packet in _UNSET and (tensor.is_floating_point() or tensor.is_complex()):
                tensor.fill_(torch.nan)
            storages[place.storage] = tensor.untyped_storage()
            if (tensor.dtype, tensor.stride(), tensor.storage_offset()) != (place.dtype, place.stride, place.offset):
                storages[place.storage] = torch.UntypedStorage(place.bytes)  # what it was on meta lay otherwise
                self._tensor(place, storages).copy_(tensor)

    def _tensor(self, place: _Place, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
        if place.storage not in storages:
            storages[place.storage] = self._given[place.storage].clone()
        storage = storages[place.storage]
        if place.bytes > storage.nbytes():
            raise ValueError(f"{place} lies behind {storage.nbytes()} bytes")
        return torch.empty(0, dtype=place.dtype).set_(storage, place.offset, place.shape, place.stride)


def recording_of(parameter: nn.Parameter) -> tuple[Recording, bool] | None:
    """How a parameter was built, where that was noted, and whether it was left as it was since."""
    known = _RECORDINGS.get(parameter)
    return None if known is None else (known[0], parameter._version == known[1])


def _mutated(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The operands that an op writes to."""
    rows = func._schema.arguments
    given = [args[n] if n < len(args) else kwargs.get(row.name) for n, row in enumerate(rows)]
    marked = [value for row, value in zip(rows, given, strict=True) if row.alias_info and row.alias_info.is_write]
    return [t for t in pytree.tree_leaves(marked) if isinstance(t, torch.Tensor)]


aten = torch.ops.aten
_UNSET = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.empty_permuted, aten.new_empty, aten.new_empty_strided,
}  # fmt: skip
_IS_META = torch.Tensor.is_meta.__get__  # pyright: ignore[reportAttributeAccessIssue]
_RECORDINGS = WeakTensorKeyDictionary()  # of a parameter: its recording, and its version then
