"""Custom autograd Functions kept while a model is captured, where export would drop their backward.

While a model is captured, ``apply`` calls an op of a library that lives no longer; afterwards the op's nodes call the
Function itself.
"""

from __future__ import annotations

import contextlib
import types
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import function as autograd_function
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from partitioner.errors import InputError
from partitioner.ops.autograd_functions import (
    AutogradCall,
    Function,
    alone,
    apart,
    apply_plainly,
    fake,
    filled,
    on_meta,
)
from partitioner.user_code.places import place_here

_SINGLE: Any = autograd_function._SingleLevelFunction  # pyright: ignore[reportPrivateUsage]
_PLAIN = (
    bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
_TORCHS = ("torch.utils.checkpoint", "torch._library.autograd")  # of what is captured as it is: checkpoint, custom ops
_LIBRARY = "partitioner_capture"
_MEND = "write it with torch's own ops, or wrap the model without it"


@dataclass(frozen=True)
class _Outputs:
    """What a Function returns: values in order, as a tuple or alone, and which tensors have a gradient."""

    values: tuple[Any, ...]
    alone: bool
    differentiable: tuple[int, ...]
    others: tuple[int, ...]
    side: int


@dataclass
class KeptFunctions:
    """The Functions that a model has called, while it is captured, and the calls of the op that stands for them."""

    model: nn.Module
    calls: list[tuple[AutogradCall, Any]] = field(default_factory=list)
    known: dict[object, AutogradCall] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    numbers: dict[object, int] = field(default_factory=dict)
    trying: bool = False

    @cached_property
    def trains(self) -> bool:
        """Whether anything does: else nobody asks for a backward, and a Function is what its forward does."""
        return any(p.requires_grad for p in self.model.parameters())

    def apply(self, function: Function, *arguments: Any) -> Any:
        """In place of ``function.apply``."""
        if function is CheckpointFunction:
            return _checkpointed(*arguments)
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
        if self.trying or not tensors or function.__module__ in _TORCHS or not self.trains:
            return apply_plainly(function, *arguments)
        outputs = self._tried(function, arguments, tensors)
        several = None if len(outputs.values) == 1 else outputs.differentiable
        found = dict[int, torch.Tensor]()
        if outputs.differentiable:
            whole = self._node(function, arguments, tensors, several, outputs.side)
            likes = [outputs.values[n] for n in outputs.differentiable]
            found |= zip(outputs.differentiable, apart(whole, likes, outputs.side), strict=True)
        for n in outputs.others:
            with torch.no_grad():
                found[n] = self._node(function, arguments, tensors, None if several is None else (n,), 0)
        results = tuple(found.get(n, value) for n, value in enumerate(outputs.values))
        return results[0] if outputs.alone else results

    def _node(
        self, function: Function, arguments: Sequence[Any], tensors: list[torch.Tensor],
        outputs: tuple[int, ...] | None, side: int,
    ) -> torch.Tensor:  # fmt: skip
        held = tuple((n, a) for n, a in enumerate(arguments) if not _is_plain(a))
        plain = [a for a in arguments if _is_plain(a)]
        call = self._call(function, held, outputs, side)
        empty = pytree.tree_map(lambda leaf: _Tensor if isinstance(leaf, torch.Tensor) else leaf, plain)
        key = id(call), repr(empty)
        if key not in self.numbers:
            self.numbers[key] = len(self.calls)
            self.calls.append((call, empty))
        return getattr(torch.ops, _LIBRARY).autograd_function.default(tensors, self.numbers[key])

    def _call(
        self, function: Function, held: tuple[tuple[int, object], ...], outputs: tuple[int, ...] | None, side: int
    ) -> AutogradCall:
        devices = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        autocast = tuple((d, torch.get_autocast_dtype(d)) for d in devices)
        key = function, tuple((n, id(value)) for n, value in held), outputs, side, autocast
        if key not in self.known:
            name = ".".join([function.__qualname__, *map(str, outputs or ())])
            self.names[name] += 1  # calls of one name that differ must not be taken for the same op
            unique = name if self.names[name] == 1 else f"{name}#{self.names[name]}"
            self.known[key] = AutogradCall(function, unique, held, outputs, side, autocast)
        return self.known[key]

    def _tried(self, function: Function, arguments: Sequence[Any], tensors: list[torch.Tensor]) -> _Outputs:
        """What the Function returns, run forward and backward on fake tensors; refused where it can't be kept."""
        for value in arguments:
            if _holds_state(value, set()):
                self._refuse(function, "is given a module, or something that holds parameters or a generator")
        with self._inside(), FakeTensorMode(), _Deterministic() as mode, torch.enable_grad():
            leaves = [fake(t, t.requires_grad) for t in tensors]
            given = [t.clone() if t.requires_grad else t for t in leaves]
            versions = [t._version for t in given]
            try:
                results = apply_plainly(function, *filled(arguments, given))
            except Exception as error:  # any code of the user's may run here
                self._refuse(function, f"can't run on fake tensors ({type(error).__name__}: {_line(error)})", error)
            alone = not isinstance(results, tuple)
            values: tuple[Any, ...] = (results,) if alone else results
            if [t._version for t in given] != versions:
                self._refuse(function, "changes its arguments in place")
            found = [n for n, value in enumerate(values) if isinstance(value, torch.Tensor)]
            differentiable = tuple(n for n in found if values[n].requires_grad)
            self._try_backward(function, [values[n] for n in differentiable], leaves)
            if mode.drawn:
                self._refuse(function, f"draws random numbers ({mode.drawn})")
            side = _side([values[n] for n in differentiable])
        others = tuple(n for n in found if n not in differentiable)
        return _Outputs(values, alone, differentiable, others, side)

    @contextmanager
    def _inside(self) -> Generator[None]:
        """What a Function calls runs as it is, unseen."""
        before, self.trying = self.trying, True
        try:
            with alone():
                yield
        finally:
            self.trying = before

    def _try_backward(self, function: Function, results: list[torch.Tensor], leaves: list[torch.Tensor]) -> None:
        needed = [t for t in leaves if t.requires_grad]
        if not results:
            return
        if len({t.is_complex() for t in results}) > 1:
            self._refuse(function, "returns real and complex tensors")
        try:
            ones = [torch.ones_like(t) for t in results]
            torch.autograd.grad(results, needed, ones, allow_unused=True)
        except Exception as error:  # as above
            what = f"has a backward that can't run on fake tensors ({type(error).__name__}: {_line(error)})"
            self._refuse(function, what, error)

    def refuse_transform(self, function: Function, *arguments: Any) -> NoReturn:
        """In place of what ``apply`` does inside vmap, grad and the like."""
        self._refuse(function, "runs inside a transform of torch.func")

    def _refuse(self, function: Function, why: str, error: Exception | None = None) -> NoReturn:
        name = f"{function.__module__}.{function.__qualname__}"
        raise InputError(f"autograd.Function {name}{place_here(self.model)} {why}: {_MEND}") from error

    def evaluate(self, tensors: list[torch.Tensor], number: int) -> torch.Tensor:
        """The op's result without values."""
        call, arguments = self.calls[number]
        with self._inside(), torch.no_grad():
            return call(*_placed(arguments, [on_meta(t) for t in tensors]))

    def settle(self, module: fx.GraphModule) -> None:
        """Let the op's nodes, in regions too, call the Functions themselves."""
        for part in module.modules():
            for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
                if node.op == "call_function" and str(node.target) == f"{_LIBRARY}.autograd_function.default":
                    tensors, number = node.args
                    node.target, arguments = self.calls[number]
                    node.args = tuple(_placed(arguments, tensors))


def _side(tensors: list[torch.Tensor]) -> int:
    """1 where all of them count the same thing in dimension 0, so that samples stay apart."""
    return int(all(t.dim() > 0 and t.shape[0] == tensors[0].shape[0] for t in tensors))


class _Tensor:
    """Stands for a tensor among arguments."""


def _placed(arguments: Any, tensors: Sequence[Any]) -> Any:
    rows = iter(tensors)
    return pytree.tree_map(lambda leaf: next(rows) if leaf is _Tensor else leaf, arguments)


class _Deterministic(TorchDispatchMode):
    """Notes the first op that draws."""

    drawn = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.drawn = self.drawn or str(func)
        return func(*args, **(kwargs or {}))


def _is_plain(value: Any) -> bool:
    """Whether a graph can hold the value: a tensor, a literal, or a list or tuple of them."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, torch.Tensor) or type(value) in _PLAIN


def _holds_state(value: Any, seen: set[int]) -> bool:
    """Whether modules, tensors or generators lie in what is not a plain value: in closures, methods, attributes."""
    if _is_plain(value) or id(value) in seen or isinstance(value, type | types.ModuleType):
        return False
    seen.add(id(value))
    if isinstance(value, nn.Module | torch.Generator):
        return True
    inside: list[Any] = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    inside += [getattr(value, "__self__", None), *getattr(value, "__dict__", {}).values()]
    inside += value if isinstance(value, list | tuple | set) else value.values() if isinstance(value, dict) else ()
    return any(isinstance(v, torch.Tensor) or _holds_state(v, seen) for v in inside)


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]


def _checkpointed(run: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
    """Reentrant torch.utils.checkpoint: the function itself, without a gradient where no argument has one."""
    needed = any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments)
    with contextlib.nullcontext() if needed else torch.no_grad():
        return run(*arguments)


@contextmanager
def kept_functions(model: nn.Module) -> Generator[KeptFunctions]:
    """Inside, every ``Function.apply`` of ``model``'s code becomes a call of one op; ``settle`` ends that."""
    kept = KeptFunctions(model)
    with ExitStack() as stack:
        library = stack.enter_context(torch.library._scoped_library(_LIBRARY, "FRAGMENT"))  # pyright: ignore[reportPrivateUsage]
        library.define("autograd_function(Tensor[] tensors, int call) -> Tensor")
        library.impl("autograd_function", kept.evaluate, "Meta")

        def apply(function: Any, *arguments: Any) -> Any:
            return kept.apply(function, *arguments)

        stack.enter_context(mock.patch.object(_SINGLE, "apply", classmethod(apply)))
        transformed = mock.patch.object(autograd_function, "custom_function_call", kept.refuse_transform)
        stack.enter_context(transformed)
        yield kept
