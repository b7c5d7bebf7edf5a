"""State divided over dp: uneven rows, frozen, tied and scalar parameters; checkpoints of any plan under any other."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import Graph, lower, search, trace
from partitioner.comparing.graph_float64 import promote
from partitioner.errors import InputError
from partitioner.precision import PRESETS
from partitioner.user_code.compiled import written_parameters
from runtime.mesh.groups import Groups
from runtime.state.optimizer import factory
from runtime.state.parameters import materialize
from runtime.state.shard_pieces import cut
from runtime.state.whole_updates import check_updates
from runtime.train.engine import Engine
from runtime.verify.parity import own_samples, whole_tensors
from runtime.verify.trial import prepare, run_plan
from tests.runtime import plans
from tools.verify.plan_families import cluster

RANKS, BATCH = 4, 8
Pins = dict[str, str | int]


class Block(nn.Module):
    """A frozen product beside a small trained one, as LoRA has it; rows that no number of ranks here divides."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = (nn.Linear(a, b, bias=False) for a, b in ((10, 10), (10, 3), (3, 10)))
        self.base.weight.requires_grad_(False)
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * torch.tanh(self.base(x) + self.up(self.down(x)))


class Model(nn.Module):
    """Blocks between a table and a head that are one parameter; ``unread`` is read by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(13, 10), nn.LayerNorm(10), nn.Linear(10, 13, bias=False)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.unread = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), y.flatten())


def case(precision: str = "own", frozen_blocks: int = 0) -> tuple[Model, Graph, dict[str, Tensor]]:
    """With so many blocks, and the table and the head, that do not train."""
    torch.manual_seed(3)
    model, generator = Model(), torch.Generator().manual_seed(4)
    if frozen_blocks:
        model.embed.requires_grad_(False)
        model.blocks[:frozen_blocks].requires_grad_(False)
    x, y = (torch.randint(13, (BATCH, 6), generator=generator) for _ in range(2))
    example = {"x": x[:2], "y": y[:2]}
    return model, trace(model, example, compare=False, precision=PRESETS[precision]), {"x": x, "y": y}


PLANS: dict[str, tuple[str, Pins]] = {
    "1": ("own", {"dp": 4, "zero": 1, "micro_batch": 1}),
    "2, cast": ("bf16", {"dp": 4, "zero": 2, "micro_batch": 1}),
    "3": ("own", {"dp": 4, "zero": 3, "micro_batch": 1, "recompute": "on"}),
    "3 over 2": ("own", {"dp": 4, "zero": 3, "zero_group": 2, "micro_batch": 1}),
    "3 beside tp, scaled": ("fp16", {"dp": 2, "tp": 2, "zero": 3, "micro_batch": 2}),
    "1 beside pp": ("own", {"dp": 2, "pp": 2, "zero": 1, "micro_batch": 1, "schedule": "1f1b"}),
    "3 beside pp": ("bf16", {"dp": 2, "pp": 2, "zero": 3, "micro_batch": 1, "schedule": "interleaved"}),
}


OF_EIGHT: dict[str, tuple[str, Pins]] = {
    "3 beside parts of tp": ("own", {"dp": 2, "tp": 4, "tp_kv": 2, "zero": 3, "micro_batch": 2}),
    "1 beside parts of tp, cast": ("bf16", {"dp": 2, "tp": 4, "tp_kv": 2, "zero": 1, "micro_batch": 2}),
}


def _equal(rank: int, ranks: int, plans: dict[str, tuple[str, Pins]]) -> None:
    wrong: list[str] = []
    trials = {}
    for name, (precision, pins) in plans.items():
        model, graph, batch = case(precision)
        if precision not in trials:
            trials[precision] = prepare(model, graph, batch)
        plan = search(graph, cluster(ranks), BATCH, {"recompute": "off", **pins})
        found = run_plan(trials[precision], plan)
        if found is not None and (found.apart.largest > 1e-9 or found.unforeseen or found.real):
            wrong.append(f"ZeRO {name}: {found.apart.largest:.1e} {found.apart.worst} {found.unforeseen} {found.real}")
    assert wrong == []


def test_divided_state_trains_as_the_plain_model() -> None:
    plans.spawn(_equal, RANKS, RANKS, PLANS)


def _of_frozen_blocks(rank: int, ranks: int) -> None:
    """What no backward reads is not gathered for one."""
    model, graph, batch = case(frozen_blocks=2)
    trial = prepare(model, graph, batch)
    for pins in ({"zero": 3}, {"zero": 3, "zero_group": 2}, {"zero": 1}, {"zero": 3, "pp": 2}):
        plan = search(graph, cluster(ranks), BATCH, {"recompute": "off", "micro_batch": 1, **pins})
        found = run_plan(trial, plan)
        assert found is None or (found.apart.largest < 1e-9 and not found.unforeseen), (pins, found)


def test_weights_of_blocks_that_do_not_train_are_gathered_as_foreseen() -> None:
    plans.spawn(_of_frozen_blocks, RANKS, RANKS)


@pytest.mark.parity
def test_divided_state_beside_two_axes_of_layouts() -> None:
    plans.spawn(_equal, 8, 8, OF_EIGHT)


KEPT: list[Pins] = [
    {"dp": 4, "zero": 3, "zero_group": 2, "micro_batch": 1},
    {"dp": 2, "tp": 2, "zero": 1, "micro_batch": 2},
    {"dp": 2, "pp": 2, "zero": 0, "micro_batch": 2, "schedule": "1f1b"},
    {"dp": 4, "zero": 2, "micro_batch": 2},
    {"tp": 4, "tp_kv": 2, "zero": 0, "micro_batch": 4},
]


def _engine(pins: Pins, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> tuple[Engine, dict[str, Any]]:
    model, graph, batch = case("bf16")
    wide = promote(graph)
    program = lower(wide, search(graph, cluster(RANKS), BATCH, {"recompute": "off", **pins}))
    groups, own = Groups(program), written_parameters(model)
    start = {n: own[n].detach().double() for n in wide.parameters}
    held = materialize(program, groups.coordinates, lambda p, part: cut(start[p.name], part), "cpu")
    engine = Engine(program, groups, held, factory(optimizer, lr=1e-2), clip=0.5)
    return engine, own_samples(program, groups, batch)


def _goes_on(rank: int, folder: str) -> None:
    first, own = _engine(KEPT[0])
    for _ in range(2):
        first.step(own)
    first.save(folder)
    wanted = [float(first.step(own)) for _ in range(2)]
    after = whole_tensors(first.program, first.groups, dict(first.parameters))
    for pins in KEPT:
        engine, own = _engine(pins)
        assert engine.load(folder).step == 2
        assert [float(engine.step(own)) for _ in range(2)] == pytest.approx(wanted, rel=1e-9), pins
        found = whole_tensors(engine.program, engine.groups, dict(engine.parameters))
        for name, tensor in found.items():
            assert torch.allclose(tensor, after[name], rtol=1e-7, atol=1e-9), (pins, name)
        engine.save(f"{folder}/of {pins}")
        again, _ = _engine(KEPT[0])
        assert again.load(f"{folder}/of {pins}").step == 4


def test_a_checkpoint_of_divided_state_goes_on_under_any_plan(tmp_path: Path) -> None:
    plans.spawn(_goes_on, RANKS, str(tmp_path))


class Counting(torch.optim.Optimizer):
    """Its state is a number and a tensor."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["mean"] = 0.5 * state.get("mean", torch.zeros_like(p)) + p.grad
                p -= group["lr"] / state["step"] * state["mean"]


def _counts(rank: int, folder: str) -> None:
    first, own = _engine(KEPT[0], Counting)
    first.step(own)
    first.step(own)
    first.save(folder)
    wanted = [float(first.step(own)) for _ in range(2)]
    for pins in KEPT[1:3]:
        engine, own = _engine(pins, Counting)
        engine.load(folder)
        found = [state["step"] for state in engine.optimizer.state.values()]
        assert found
        assert all(type(n) is int and n == 2 for n in found)
        assert [float(engine.step(own)) for _ in range(2)] == pytest.approx(wanted, rel=1e-9)


def test_a_checkpoint_holds_numbers_of_an_optimizer(tmp_path: Path) -> None:
    plans.spawn(_counts, RANKS, str(tmp_path))


def _memory(rank: int) -> None:
    """Of each parameter a rank holds its rows; their memory is what FSDP2 gathers from."""
    engine, own = _engine({"dp": 4, "zero": 3, "micro_batch": 1})
    table, part = engine.parameters["embed.weight"], (4, 4, 4, 1)[rank]
    assert tuple(table.shape) == (part, 10)
    assert tuple(engine.parameters["blocks.0.up.weight"].shape) == ((3, 3), (3, 3), (3, 3), (1, 3))[rank]
    assert tuple(engine.parameters["blocks.0.gain"].shape) == ()
    assert tuple(engine.parameters["unread"].shape) == (5,)
    before = float(engine.gradients(own))
    with torch.no_grad():
        table.mul_(0.5)
    assert float(engine.gradients(own)) != pytest.approx(before, rel=1e-3)
    kept = {p.shape for group in engine.optimizer.param_groups for p in group["params"]}
    assert table.shape in kept


    for zero in (3, 1):
        engine, own = _engine({"dp": 4, "zero": zero, "micro_batch": 1})
        before, weight = float(engine.gradients(own)), engine.parameters["blocks.2.up.weight"]
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(math.nan if rank == 2 else 1.0)
        said = "first made by rank 0, micro-batch 0, .*: blocks.2.up.weight was so before"
        with pytest.raises(InputError, match=said):  # looked for by forwards alone, which leave weights gathered
            engine.step(own)
        with torch.no_grad():
            weight.copy_(kept)
        assert float(engine.gradients(own)) == before


def test_ranks_hold_rows() -> None:
    plans.spawn(_memory, RANKS)


def test_an_optimizer_of_whole_matrices_is_refused() -> None:
    _, graph, _ = case()
    for zero, refused in ((0, False), (1, True)):
        pins: Pins = {"dp": 2, "zero": zero, "recompute": "off"}
        program = lower(graph, search(graph, cluster(2), BATCH, pins))
        made = factory(torch.optim.Adafactor, lr=0.1)
        with pytest.raises(InputError, match="as a whole.*zero=0") if refused else nullcontext():
            check_updates(program, made, torch.device("cpu"))
