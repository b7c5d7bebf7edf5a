"""The optimizer that a run was asked for: one of torch's, of all parameters alike or by groups."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn

from partitioner.errors import InputError
from runtime.state.optimizer import Given, Named, kernel_options
from runtime.state.parameter_groups import parameter_groups
from tools.run.going_on import DEFAULTS, Settings

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def optimizer_of(asked: Settings, names: Sequence[str]) -> Given:
    """By groups where weight decay or a rate is asked for; ``names``: of the trained parameters. Raises InputError."""
    kind, lr = OPTIMIZERS[asked["optimizer"]], DEFAULTS["lr"] if asked["lr"] is None else asked["lr"]
    decay, rates = asked["weight_decay"], dict(_rate(text, names) for text in asked["rates"] or ())
    if decay is None and not rates:
        return partial(kind, lr=lr)
    if decay is not None and not 0 <= decay < float("inf"):
        raise InputError(f"--weight-decay must be 0 or more, not {decay}")
    if decay is None:
        decay = kind([nn.Parameter(torch.zeros(0))]).defaults["weight_decay"]

    def make(named: Named) -> torch.optim.Optimizer:
        groups = parameter_groups(named, lr, decay, rates)
        return kind(groups, **kernel_options(kind, [p for _, p in named]))

    return make


def _rate(text: str, names: Sequence[str]) -> tuple[str, float]:
    pattern, _, factor = text.rpartition("=")
    try:
        found = float(factor)
    except ValueError:
        found = -1.0
    if not pattern or not 0 <= found < float("inf"):
        raise InputError(f"--rate takes NAMES=FACTOR, as in \"embed*=0.5\", not {text!r}")
    if not any(fnmatchcase(name, pattern) for name in names):
        raise InputError(f"--rate {pattern}: no parameter is called so; the first is {names[0]}")
    return pattern, found
