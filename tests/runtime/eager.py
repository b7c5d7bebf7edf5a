"""Small models trained by plans, one gloo world for all of them, against the eager module on the whole batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from plans import spawn
from torch import nn

from partitioner import Graph, lower, search, trace
from partitioner.lowering.traffic import tally, traffic
from runtime.state.parameters import gather
from runtime.verify.parity import engine_of, own_samples
from tools.verify.plan_families import cluster

Batch = dict[str, torch.Tensor]
Make = Callable[[int], tuple[nn.Module, Batch]]
Pins = dict[str, str | int]
GLOBAL, EXAMPLE, LIMIT = 4, 2, 1e-9
PINS: dict[str, Pins] = {
    "dp": {"dp": 2},
    "tp": {"tp": 2, "boundary": "whole"},
    "tp sequence": {"tp": 2, "boundary": "sharded"},
    "tp recompute": {"tp": 2, "recompute": "on"},
    "tp recompute operators": {"tp": 2, "recompute": "operators"},
    "pp": {"pp": 2, "schedule": "1f1b"},
    "pp interleaved": {"pp": 2, "schedule": "interleaved", "virtual": 2},
}


def made(make: Make, samples: int) -> tuple[nn.Module, Batch]:
    """The model and a batch in float64, the same on every call; every parameter is moved from where it starts."""
    torch.manual_seed(0)
    module, batch = make(samples)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module, batch


def traced(make: Make) -> Graph:
    """The graph of an example batch that is not the global one."""
    return trace(*made(make, EXAMPLE), compare=False)


def eager(make: Make) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and every gradient of the module as it is, on the global batch."""
    module, batch = made(make, GLOBAL)
    loss = module(**batch)
    loss.backward()
    return float(loss), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def check(cases: Mapping[str, Make], plans: Mapping[str, Pins], ranks: int = 2) -> None:
    """Every model under every plan equals its eager module; all that differ are told together."""
    spawn(_check, ranks, dict(cases), dict(plans), seconds=110.0)


def _check(rank: int, cases: dict[str, Make], plans: dict[str, Pins]) -> None:
    wrong: list[str] = []
    for name, make in cases.items():
        graph, wanted = traced(make), eager(make)
        for words, pins in plans.items():
            wrong += [f"{name} under {words}: {problem}" for problem in _apart(graph, make, pins, wanted)]
    assert not wrong, "\n".join(wrong)


def _apart(graph: Graph, make: Make, pins: Pins, wanted: tuple[float, dict[str, torch.Tensor]]) -> list[str]:
    ranks = math.prod(int(pins.get(axis, 1)) for axis in ("tp", "dp", "pp"))
    program = lower(graph, search(graph, cluster(ranks), GLOBAL, {"recompute": "off", "micro_batch": 1, **pins}))
    module, batch = made(make, GLOBAL)
    start = {n: p.detach() for n, p in module.named_parameters(remove_duplicate=False)}
    engine = engine_of(program, start)
    engine.groups.log.keep = True
    own = own_samples(program, engine.groups, batch)
    loss = float(engine.gradients(own))
    found = [f"loss is {loss}, not {wanted[0]}"] if abs(loss - wanted[0]) > LIMIT * abs(wanted[0]) else []
    largest = max(float(g.abs().max()) for g in wanted[1].values())
    for name, parameter in program.parameters.items():
        if parameter.requires_grad != (name in wanted[1]):
            found.append(f"{name} {'has' if parameter.requires_grad else 'lacks'} a gradient, the module's otherwise")
        if not parameter.requires_grad:
            continue
        held = engine.parameters.get(name)
        grad = None if held is None else torch.zeros_like(held) if held.grad is None else held.grad
        whole = gather(program, engine.groups, name, grad)
        want = wanted[1].get(name, torch.zeros(parameter.shape, dtype=parameter.dtype))
        assert whole is not None
        if not torch.allclose(whole, want, LIMIT, LIMIT * largest):
            off = float((whole - want).abs().max() / largest)
            found.append(f"the gradient of {name} is {off:.2g} off")
    sent, predicted = tally(engine.groups.log.rows), tally(traffic(program, engine.groups.rank, clipped=False))
    return found + ([] if sent == predicted else [f"sent {sent - predicted}, predicted {predicted - sent}"])
