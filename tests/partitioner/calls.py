"""Calls of ops to sample: what makes their tensors, and those that many ops share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

aten = torch.ops.aten
Op = Callable[..., torch.Tensor]
_RANDOM = torch.Generator().manual_seed(3)


@dataclass(frozen=True)
class Sample:
    """``target(*args, **kwargs)``; tensors among the arguments (also in a list) are the operands.

    Those of ``fixed`` can have no gradient: torch has no derivative, or none for this shape.
    """

    target: Op
    args: tuple[object, ...]
    kwargs: dict[str, object] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [_word(a) for a in (*self.args, *self.kwargs.values())]
        return f"{self.target}-{','.join(words)}"


def _word(argument: object) -> str:
    if isinstance(argument, torch.Tensor):
        return "x".join(map(str, argument.shape))
    return "+".join(map(_word, argument)) if isinstance(argument, list) else str(argument)


def real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=_RANDOM)


COMPLEX = torch.complex128


def compound(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=COMPLEX, generator=_RANDOM)


def positive(*shape: int) -> torch.Tensor:
    return real(*shape).abs() + 0.5


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=_RANDOM)


def truth(*shape: int) -> torch.Tensor:
    return integers(2, *shape).bool()


def unary(targets: tuple[Op, ...], make: Callable[..., torch.Tensor], *rest: object) -> list[Sample]:
    return [Sample(t, (make(4, 6), *rest)) for t in targets]


def binary(targets: tuple[Op, ...], make: Callable[..., torch.Tensor]) -> list[Sample]:
    return [Sample(t, (make(4, 6), make(*shape))) for t in targets for shape in ((4, 6), (6,), (4, 1))]


def conv(target: Op, n: int) -> list[tuple[object, ...]]:
    """Stride, padding, dilation and groups, each in turn; with and without a bias; one sample without its dimension."""
    space, named = [5] * n, str(target).endswith("padding")
    plain: list[object] = [[1] * n, "valid" if named else [0] * n, [1] * n, 1]
    changes = (([2] * n, 0), ("same" if named else [1] * n, 1), ([2] * n, 2), (6, 3), (3, 3))
    one = (real(3, *space), real(6, 3, *[2] * n))
    rows: list[tuple[object, ...]] = [(real(4, 3, *space), real(6, 3, *[2] * n), real(6)), one]
    for value, place in changes:
        rest = [*plain[:place], value, *plain[place + 1 :]]
        groups = value if place == 3 else 1
        assert isinstance(groups, int)
        rows.append((real(2, 6, *space), real(6, 6 // groups, *[2] * n), real(6), *rest))
    return rows


def transposed(n: int) -> list[tuple[object, ...]]:
    """Stride, padding, output padding, groups and dilation, each in turn."""
    space, plain = [4] * n, [[1] * n, [0] * n, [0] * n, 1, [1] * n]
    weight = real(3, 6, *[2] * n)
    rows: list[tuple[object, ...]] = [(real(4, 3, *space), weight), (real(3, *space), weight)]
    for value, place in (([2] * n, 0), ([1] * n, 1), ([1] * n, 2), (6, 3), (3, 3), ([2] * n, 4)):
        rest: list[object] = [*plain[:place], value, *plain[place + 1 :]]
        rest[0] = [2] * n if place == 2 else rest[0]
        groups = value if place == 3 else 1
        assert isinstance(groups, int)
        rows.append((real(2, 6, *space), real(6, 12 // groups, *[2] * n), real(12), *rest))
    return rows


def attention(keys: int, *rest: object) -> Sample:
    tensors = (real(2, 6, 5, 4), real(2, 6, keys, 4), real(2, 6, keys, 4))
    return Sample(aten.scaled_dot_product_attention.default, (*tensors, *rest), {"scale": 0.3})


def resampled(target: Op, n: int, corners: tuple[bool, ...]) -> list[Sample]:
    """To sizes and by factors, corners aligned and not."""
    x, rest = real(2, 4, *[4] * n), [(c,) for c in corners] or [()]
    calls = [(x, [6] * n, *r, None) for r in rest] + [(x, None, *r, [2.0] * n) for r in rest]
    return [Sample(target, call) for call in calls]
