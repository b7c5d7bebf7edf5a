"""The optimizer of a run: by groups where weight decay or a rate is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from partitioner.errors import InputError
from runtime.state.optimizer import factory
from tools.run.going_on import DEFAULTS
from tools.run.optimizers import optimizer_of

NAMED = [("embed.weight", nn.Parameter(torch.ones(4, 2))), ("norm.bias", nn.Parameter(torch.ones(2)))]
NAMES = [name for name, _ in NAMED]


def groups(**asked: object) -> list[tuple[int, float, float]]:
    """Parameters, rate and decay of each."""
    made = factory(optimizer_of(DEFAULTS | asked, NAMES))(NAMED)
    assert made.defaults.get("fused", True)
    return [(len(g["params"]), g["lr"], g["weight_decay"]) for g in made.param_groups]


def test_nothing_asked_is_torchs_own() -> None:
    assert groups() == [(2, 3e-4, 0.01)]
    assert groups(optimizer="sgd", lr=0.5) == [(2, 0.5, 0.0)]


def test_decay_of_matrices_and_rates_by_name() -> None:
    assert groups(weight_decay=0.1) == [(1, 3e-4, 0.1), (1, 3e-4, 0.0)]
    assert groups(rates=["embed*=0.5"], lr=0.25) == [(1, 0.125, 0.01), (0, 0.125, 0.0), (0, 0.25, 0.01), (1, 0.25, 0.0)]
    assert groups(optimizer="sgd", weight_decay=0.0, lr=1.0) == [(1, 1.0, 0.0), (1, 1.0, 0.0)]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"rates": ["embed*"]}, "--rate takes NAMES=FACTOR"),
        ({"rates": ["embed*=fast"]}, "not 'embed[*]=fast'"),
        ({"rates": ["=2"]}, "--rate takes"),
        ({"rates": ["embed*=-1"]}, "--rate takes"),
        ({"rates": ["head*=2"]}, "--rate head[*]: no parameter is called so; the first is embed.weight"),
        ({"weight_decay": -0.1}, "--weight-decay must be 0 or more, not -0.1"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(asked: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        optimizer_of(DEFAULTS | asked, NAMES)
