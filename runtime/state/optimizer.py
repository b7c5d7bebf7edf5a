"""Optimizers over a rank's parts of the parameters, and their hyper-parameters."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from partitioner.errors import InputError

Named = Sequence[tuple[str, nn.Parameter]]
Factory = Callable[[Named], torch.optim.Optimizer]
Given = type[torch.optim.Optimizer] | partial[torch.optim.Optimizer] | Factory
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


def check_options(given: Given, options: Iterable[str], others: Sequence[str] = ()) -> None:
    """Raises TypeError for an option that an optimizer's class does not take, with the nearest that it, or whoever
    passes options on (``others``), takes."""
    kind = given.func if isinstance(given, partial) else given
    if not isinstance(kind, type):
        return
    taken = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for name in options:
        if name not in taken:
            near = difflib.get_close_matches(name, [*others, *taken], 1)
            raise TypeError(f"{kind.__name__} takes no option {name}{f': {near[0]} is meant?' if near else ''}")


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
