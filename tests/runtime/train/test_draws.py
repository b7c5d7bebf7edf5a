"""Random ops other than dropout draw the same under every plan, and as the eager module does on the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from plans import spawn
from torch import nn
from torch.nn import functional as F

from partitioner import Graph, lower, search, trace
from partitioner.draws.eager_draws import eager_draws
from runtime.state.parameters import gather
from runtime.verify.parity import engine_of, own_samples
from tools.verify.plan_families import cluster

VOCAB, WIDTH, SEQ, EXAMPLE, GLOBAL, STEPS, LIMIT = 12, 8, 6, 2, 4, 2, 1e-11
Batch = dict[str, torch.Tensor]
Pins = dict[str, str | int]


class Block(nn.Module):
    """Stochastic depth, noise on a gate, dropout of channels."""

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.keep = 1 - depth

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(self.norm(x))
        h = F.gelu(h) * (1 + 0.2 * torch.randn_like(h))
        h = F.dropout(F.dropout1d(self.down(h), 0.2, self.training), 0.1, self.training)
        return x + h * x.new_empty((len(x), 1, 1)).bernoulli_(self.keep).div_(self.keep)


class Net(nn.Module):
    """Noise on the embedding (each sample's, and one of all), labels dropped, choices made by probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.blocks = nn.ModuleList(Block(0.1 * n) for n in range(1, 5))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dropped = torch.rand(len(x), device=x.device) < 0.3
        h = self.embed(torch.where(dropped[:, None], 0, x))
        h = h + torch.rand_like(h) / math.sqrt(SEQ * WIDTH) + 0.1 * torch.randn(SEQ, WIDTH, dtype=h.dtype)
        for block in self.blocks:
            h = block(h)
        h = h * torch.bernoulli(h.sigmoid()) * (0.5 + torch.rand((), dtype=h.dtype))
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


def made(samples: int) -> tuple[Net, Batch]:
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    x, y = (torch.randint(VOCAB, (samples, SEQ), generator=generator) for _ in range(2))
    return Net().double(), {"x": x, "y": y}


Wanted = list[tuple[float, dict[str, torch.Tensor]]]


def eager(graph: Graph, seed: int) -> Wanted:
    """By step: the loss and every gradient of the module as it is, on the global batch."""
    module, batch = made(GLOBAL)
    found: Wanted = []
    for step in range(STEPS):
        module.zero_grad()
        with eager_draws(module, graph, seed, step, range(GLOBAL)) as draws:
            loss = module(**batch)
            loss.backward()
        assert not draws.unknown
        found.append(
            (float(loss.detach()), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        )
    assert abs(found[0][0] - found[1][0]) > 1e-4
    return found


def _check(rank: int, plans: dict[str, Pins]) -> None:
    module, batch = made(GLOBAL)
    graph = trace(*made(EXAMPLE), compare=False)
    start = {n: p.detach() for n, p in module.named_parameters()}
    wanted: Wanted = []
    for words, pins in plans.items():
        ranks = math.prod(int(pins.get(axis, 1)) for axis in ("tp", "dp", "pp"))
        plan = search(graph, cluster(ranks), GLOBAL, {"recompute": "off", "micro_batch": 1, **pins})
        program = lower(graph, plan)
        wanted = wanted or eager(graph, program.seed)
        engine = engine_of(program, start)
        own = own_samples(program, engine.groups, batch)
        for step, (loss, gradients) in enumerate(wanted):
            engine.steps_done = step
            assert float(engine.gradients(own)) == pytest.approx(loss, rel=LIMIT), f"loss of step {step} under {words}"
            for name, want in gradients.items():
                held = engine.parameters.get(name)
                found = gather(program, engine.groups, name, None if held is None else held.grad)
                assert found is not None
                off = float((found - want).abs().max() / want.abs().max())
                assert off < LIMIT, f"gradient of {name} in step {step} under {words}: {off}"


PLANS: dict[int, dict[str, Pins]] = {
    2: {
        "dp": {"dp": 2},
        "tp": {"tp": 2, "boundary": "whole"},
        "tp, sequence parallel": {"tp": 2, "boundary": "sharded"},
        "tp, micro-batches of two": {"tp": 2, "micro_batch": 2},
        "pp": {"pp": 2, "schedule": "1f1b"},
        "pp, recomputed": {"pp": 2, "schedule": "gpipe", "recompute": "on"},
        "pp, interleaved": {"pp": 2, "schedule": "interleaved", "virtual": 2},
    },
    4: {"tp and pp": {"tp": 2, "pp": 2, "boundary": "sharded"}},
}


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.parity)])
def test_draws_are_the_eager_modules_under_every_plan(ranks: int) -> None:
    spawn(_check, ranks, PLANS[ranks], seconds=110.0)
