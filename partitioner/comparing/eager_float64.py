"""The eager module in float64: parameters, buffers, casts and dtype literals, and what still rounds lower."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from partitioner.comparing.graph_float64 import WIDE
from partitioner.errors import InputError
from partitioner.user_code.closures import deep_copy
from partitioner.user_code.compiled import unwrapped, written_parameters

_WIDE: dict[Any, Any] = {
    **WIDE, torch.complex32: torch.complex128,
    torch.FloatTensor: torch.DoubleTensor, torch.HalfTensor: torch.DoubleTensor,
    torch.BFloat16Tensor: torch.DoubleTensor,
    "torch.FloatTensor": "torch.DoubleTensor", "torch.HalfTensor": "torch.DoubleTensor",
    "torch.BFloat16Tensor": "torch.DoubleTensor",
}  # fmt: skip
_TENSOR: Any = torch.Tensor
_DTYPE = _TENSOR.dtype.__get__
_TOLD = {torch.float64: torch.float32, torch.complex128: torch.complex64}
_FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
_NO_KERNEL = ("not implemented for 'Double'", "got Double", "got: Double")
_CASTS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.float: torch.Tensor.double, torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double, _TENSOR.cfloat: _TENSOR.cdouble, _TENSOR.chalf: _TENSOR.cdouble,
}  # fmt: skip


def _grouped_mm(
    rows: torch.Tensor, weights: torch.Tensor, offs: torch.Tensor | None = None, bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:  # fmt: skip
    """Each group of rows by its own matrix; torch has no kernel for float64."""
    if offs is None or weights.dim() != 3 or bias is not None:
        raise InputError("this form of grouped_mm has no float64 to be compared in")
    ends = offs.tolist()
    parts = [rows[a:b] @ w for a, b, w in zip([0, *ends], ends, weights, strict=False)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - ends[-1], weights.shape[-1])])


_WRITTEN_OUT: dict[Any, Callable[..., Any]] = {torch._grouped_mm: _grouped_mm}  # pyright: ignore


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64 or complex128 if it holds floating-point numbers, else as it is."""
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor


class Widening(TorchFunctionMode):
    """What graph_float64.py does to a graph, done to every torch call of a ``widened`` module, backward too.

    A tensor that no parameter or buffer holds (an attribute, a global) is widened where it is read. An op without a
    float64 kernel runs in float32, which ``Rounding`` sees. A model's code that asks for a dtype is told the single
    one, as it may insist on it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _DTYPE:
            return _TOLD.get(dtype := func(*args), dtype)
        if func in _FROM_NUMBERS and not isinstance(_numbers(func, args, kwargs or {}), torch.Tensor):
            return wide(_in_single(func, args, kwargs or {}))
        args, given = tree_map(_widened, (args, dict[str, Any](kwargs or {})))
        func = _CASTS.get(func) or _WRITTEN_OUT.get(func) or func
        try:
            return func(*args, **given)
        except (RuntimeError, NotImplementedError) as error:
            if not any(word in str(error) for word in _NO_KERNEL):
                raise
        args, given = tree_map(_narrowed, (args, given))
        return tree_map(lambda value: wide(value) if _low(value) else value, func(*args, **given))


def _numbers(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What ``torch.tensor`` and its like make a tensor of."""
    place = 1 if func is torch.Tensor.new_tensor else 0
    return args[place] if len(args) > place else kwargs.get("data", kwargs.get("obj"))


def _in_single(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """A tensor of numbers is stored in a graph, rounded as it is made; so it is here."""
    if func is torch.Tensor.new_tensor:
        return _in_single(torch.tensor, args[1:], {"dtype": _TOLD.get(args[0].dtype, args[0].dtype), **kwargs})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return func(*args, **kwargs)
    finally:
        torch.set_default_dtype(before)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.Tensor.to(value, _WIDE[value.dtype]) if type(value) is torch.Tensor and _low(value) else value
    return _WIDE.get(value, value) if isinstance(value, torch.dtype | str | type) else value


def _narrowed(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value


def _low(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _WIDE


class Rounding(TorchDispatchMode):
    """``first``: the first op that read float64 and made fewer digits, and their dtype; ``made``: dtypes of results."""

    def __init__(self) -> None:
        super().__init__()
        self.first: tuple[str, torch.dtype] | None = None
        self.made: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {t.dtype for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.dtype.is_floating_point}
        self.made |= made
        lower = [dtype for dtype in made if dtype in _WIDE]
        if func is torch.ops.aten._local_scalar_dense.default:  # a number that Python reads stands in a graph as traced
            lower.append(torch.float32)
        if self.first is None and lower:
            read = (t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
            if any(t.dtype in (torch.float64, torch.complex128) for t in read):
                self.first = str(func), lower[0]
        return result


@contextmanager
def float64_by_default() -> Generator[None]:
    """Inside, what is made without a dtype, and the quotient of whole numbers, is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy that keeps the hooks of parameters, which a copied parameter loses; raises InputError."""
    try:
        with unwrapped(module) as plain:
            made = deep_copy(plain)
    except Exception as error:  # whatever a model holds (locks, generators, results of other ops) may refuse
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"{type(module).__name__} can't be copied, so it can't be compared: {type(error).__name__}: {reason}"
        ) from error
    own = dict(made.named_parameters(remove_duplicate=False))
    for name, parameter in written_parameters(module).items():
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if (found := getattr(parameter, hooks, None)) and own[name] is not parameter:
                setattr(own[name], hooks, found)
    return made


def widened(module: nn.Module) -> nn.Module:
    """``copied``, its parameters and buffers in float64 and complex128; ``module`` is left as it was."""
    made = copied(module)
    for tensor in [*made.parameters(), *made.buffers()]:
        if _low(tensor):
            tensor.data = wide(tensor.data)
    return made
