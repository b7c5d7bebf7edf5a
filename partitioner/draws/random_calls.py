"""One row an op of torch that draws: the distribution that it draws from, and what it makes of the draw.

The rows read a node of a graph and a call of the eager module alike: ``make`` calls an op on nodes or on tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from partitioner.errors import InputError

aten = torch.ops.aten
Make = Callable[..., Any]
Given = dict[str, Any]
_ATTENTION = "aten::scaled_dot_product_attention"


@dataclass(frozen=True)
class Draw:
    """``finish`` makes the call's result, of a dtype, of the draw; None: the draw is the result.

    ``dtype`` and ``shape`` of the draw where they are not the result's.
    """

    distribution: str
    parameters: tuple[float, ...] = ()
    finish: Callable[[Make, Any, torch.dtype], Any] | None = None
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None


def is_random(target: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of this op draws; dropout of probability 0 or 1, or of a module in evaluation, does not."""
    if not isinstance(target, torch._ops.OpOverload):  # pyright: ignore[reportPrivateUsage]
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags and _name(target) != _ATTENTION:
        return False
    given = arguments(target, args, kwargs)
    chance = next((given[name] for name in ("dropout_p", "dropout") if name in given), None)
    chance = given["p"] if chance is None and "train" in given else chance
    trains = given.get("train", given.get("training", True))
    return trains is not False and chance not in (0, 1)


def arguments(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given:  # pyright: ignore[reportPrivateUsage]
    """The arguments of a call by name, defaults included."""
    schema = target._schema.arguments  # pyright: ignore[reportPrivateUsage]
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return defaults | dict(zip([a.name for a in schema], args, strict=False)) | dict(kwargs)


def read(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], where: str) -> Draw | None:  # pyright: ignore[reportPrivateUsage]
    """What a random call draws; None for dropout and for attention with dropout, which rules know whole.

    Raises InputError, naming the call and ``where`` it is made, for a call that is not drawn by key.
    """
    given = arguments(target, args, kwargs)
    if given.get("generator") is not None:
        raise InputError(f"{where} draws from a torch.Generator of its own: leave out generator=, to draw by key")
    name = _name(target)
    row = _ROWS.get(name.removeprefix("aten::").removesuffix("_"))
    draw = row(given) if row else None
    if draw is None and name not in _WHOLE:
        raise InputError(
            f"{where} draws random numbers by {target}, which can't be drawn alike under every plan: "
            f"write it with one of torch.rand, randn, randint, bernoulli, or their like"
        )
    return draw


_WHOLE = ("aten::dropout", "aten::dropout_", _ATTENTION)


def _name(target: torch._ops.OpOverload) -> str:  # pyright: ignore[reportPrivateUsage]
    return target._schema.name  # pyright: ignore[reportPrivateUsage]


def _numbers(distribution: str, *names: str) -> Callable[[Given], Draw | None]:
    """A distribution whose parameters are the arguments of these names, all of them numbers."""

    def row(given: Given) -> Draw | None:
        values = [given.get(name) for name in names]
        numbers = [float(v) for v in values if isinstance(v, int | float)]
        return Draw(distribution, tuple(numbers)) if len(numbers) == len(names) else None

    return row


def _fixed(distribution: str, *parameters: float) -> Callable[[Given], Draw | None]:
    return lambda _: Draw(distribution, parameters)


def _integers(given: Given) -> Draw | None:
    low, high = given.get("low", given.get("from", 0)), given.get("high", given.get("to"))
    return _numbers("integers", "low", "high")({"low": low, "high": high})


def _bernoulli(given: Given) -> Draw | None:
    """Of a number, or of a tensor of probabilities."""
    p = given.get("p", given["self"])
    if isinstance(p, int | float):
        return Draw("bernoulli", (float(p),))

    def finish(make: Make, drawn: Any, dtype: torch.dtype) -> Any:
        return make(aten.to.dtype, make(aten.lt.Tensor, drawn, p), dtype)

    return Draw("uniform", (0.0, 1.0), finish, torch.float32)


def _normal(given: Given) -> Draw | None:
    """Of numbers, or with tensors for mean or deviation: no gradient reaches them, as in torch."""
    mean, deviation = given["mean"], given["std"]
    if isinstance(mean, int | float) and isinstance(deviation, int | float):
        return Draw("normal", (float(mean), float(deviation)))

    def finish(make: Make, drawn: Any, dtype: torch.dtype) -> Any:
        scale, shift = (
            x if isinstance(x, int | float) else make(aten.detach.default, x) for x in (deviation, mean)
        )  # fmt: skip
        return make(aten.add.Tensor, make(aten.mul.Tensor, drawn, scale), shift)

    return Draw("normal", (0.0, 1.0), finish)


def _feature_dropout(given: Given) -> Draw | None:
    """Whole channels are dropped."""
    x, keep = given["input"], 1.0 - given["p"]

    def finish(make: Make, drawn: Any, dtype: torch.dtype) -> Any:
        return make(aten.mul.Tensor, x, make(aten.div.Tensor, drawn, keep))

    return Draw("bernoulli", (keep,), finish, shape=_channels(x))


def _channels(x: Any) -> tuple[int, ...]:
    shape = tuple((x.meta["val"] if hasattr(x, "meta") else x).shape)
    return (*shape[:2], *(1,) * (len(shape) - 2))


def _alpha_dropout(given: Given, shape: Callable[[Any], tuple[int, ...] | None] = lambda _: None) -> Draw | None:
    """What is dropped becomes SELU's lower end, and mean and variance stay (Klambauer et al., 2017)."""
    x, p = given["input"], float(given["p"])
    scale = 1.0 / math.sqrt((_ALPHA * _ALPHA * p + 1.0) * (1.0 - p))

    def finish(make: Make, drawn: Any, dtype: torch.dtype) -> Any:
        shift = make(aten.mul.Tensor, make(aten.sub.Tensor, drawn, 1.0), _ALPHA * scale)
        shift = make(aten.add.Tensor, shift, _ALPHA * scale * p)
        return make(aten.add.Tensor, make(aten.mul.Tensor, x, make(aten.mul.Tensor, drawn, scale)), shift)

    return Draw("bernoulli", (1.0 - p,), finish, shape=shape(x))


_ALPHA = 1.7580993408473766

_ROWS: dict[str, Callable[[Given], Draw | None]] = {
    "rand": _fixed("uniform", 0.0, 1.0),
    "rand_like": _fixed("uniform", 0.0, 1.0),
    "uniform": _numbers("uniform", "from", "to"),
    "randn": _fixed("normal", 0.0, 1.0),
    "randn_like": _fixed("normal", 0.0, 1.0),
    "normal": _normal,
    "log_normal": _numbers("log_normal", "mean", "std"),
    "exponential": _numbers("exponential", "lambd"),
    "geometric": _numbers("geometric", "p"),
    "cauchy": _numbers("cauchy", "median", "sigma"),
    "randint": _integers,
    "randint_like": _integers,
    "random": _integers,
    "randperm": _fixed("permutation"),
    "bernoulli": _bernoulli,
    "feature_dropout": _feature_dropout,
    "alpha_dropout": _alpha_dropout,
    "feature_alpha_dropout": lambda given: _alpha_dropout(given, _channels),
}
