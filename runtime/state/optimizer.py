"""Optimizers over a rank's parts of the parameters, hyper-parameters, and factors of the learning rate by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from partitioner.errors import InputError

Named = Sequence[tuple[str, nn.Parameter]]
Factory = Callable[[Named], torch.optim.Optimizer]
Given = type[torch.optim.Optimizer] | partial[torch.optim.Optimizer] | Factory
LrLambda = Callable[[int], float]  # the factor of a step, as of torch's LambdaLR
Hyper = dict[str, Any]  # of a group of parameters: lr, betas, weight_decay, ...

FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)  # have one kernel that updates in place
FUSED_DEVICES = ("cpu", "cuda")
KERNELS = ("foreach", "fused", "capturable", "differentiable")  # how a group is updated is its machine's affair


def factory(given: Given, **options: Any) -> Factory:
    """What makes an optimizer of named parameters.

    ``given``: a class, of torch or your own, or a ``functools.partial`` of one, which takes parameters and ``options``;
    or any other callable, which takes (name, parameter) pairs and returns an optimizer, of groups as it likes. Raises
    InputError for options beside such a callable. Where torch has a fused kernel it is taken, unless ``options`` say
    otherwise: it reads and writes the state once and makes no tensors of its own.
    """
    kind = given.func if isinstance(given, partial) else given
    if not isinstance(kind, type):
        if options:
            raise InputError(f"{', '.join(options)}: give options to the optimizer in your function, which makes it")
        return cast(Factory, given)
    plain = {*options, *getattr(given, "keywords", {})} & {"fused", "foreach"}

    def make(named: Named) -> torch.optim.Optimizer:
        rows = [parameter for _, parameter in named]
        fused = {} if plain else kernel_options(kind, rows)
        return cast(Callable[..., torch.optim.Optimizer], given)(rows, **options, **fused)

    return make


def kernel_options(kind: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> Hyper:
    """``fused``, where torch has such a kernel and all parameters lie where it runs."""
    return {"fused": all(p.device.type in FUSED_DEVICES for p in parameters)} if kind in FUSED else {}


def hyper_parameters(optimizer: torch.optim.Optimizer) -> list[Hyper]:
    """Those of each group that decide what is trained, as JSON can hold them."""
    rows = [{w: v for w, v in g.items() if w != "params" and w not in KERNELS} for g in optimizer.param_groups]
    return [{w: float(v) if isinstance(v, torch.Tensor) else v for w, v in row.items()} for row in rows]


def restored(group: Hyper, saved: Hyper) -> Hyper:
    """A group with the values of ``hyper_parameters`` in place of its own."""
    return group | {word: _like(group.get(word), value) for word, value in saved.items()}


def _like(own: object, value: Any) -> Any:
    if isinstance(own, torch.Tensor):
        return torch.full_like(own, value)
    return tuple(value) if isinstance(value, list) else value


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """What groups multiply by their own factors, as it was before those of a step."""
    plain = (group for group in optimizer.param_groups if group.get("lr_factor", 1.0) == 1.0)
    group = next(plain, optimizer.param_groups[0])
    return float(group.get("initial_lr", group["lr"]))


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let ``lr`` be every group's learning rate, times its own factor (``parameter_groups``), and what the factors of
    the engine start from."""
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)
        group["lr"] = lr * group.get("lr_factor", 1.0)


def keep_initial_rates(optimizer: torch.optim.Optimizer) -> None:
    """Note in each group, where torch's schedulers do, the rate that factors multiply."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Let each group's learning rate be ``factor`` times its initial one."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate


def warmup_cosine(warmup_steps: int, steps: int, floor: float = 0.0) -> LrLambda:
    """Linear from 0 over ``warmup_steps``, then a half cosine to ``floor`` at ``steps`` (Loshchilov, Hutter, 2017)."""
    if not 0 <= warmup_steps < steps:
        raise InputError(f"the learning rate warms up for {warmup_steps} of {steps} steps: warm up for fewer than all")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))

    return factor
