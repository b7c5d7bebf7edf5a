"""Random plans: the same for a seed, of every kind, and equal to the plain model."""

from __future__ import annotations

import functools
import re

import pytest
import torch

from examples.gpt import model
from partitioner import Graph, trace
from partitioner.errors import InputError
from partitioner.plan.executed import EXECUTED
from tools.main import main
from tools.verify.random_plans import random_plans

RANKS, BATCH = 4, 8
SEEDS = {  # 60 plans of 5 models
    "examples/gpt.py:model": 1, "hf:llama": 2, "hf:gpt2": 3, "hf:t5": 4, "hf:mixtral": 5,
}  # fmt: skip


@functools.cache
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(*model(vocab=32, hidden=32, heads=4, seq=8, layers=4, batch=3), compare=False)


def test_a_seed_draws_the_same_plans_of_every_kind() -> None:
    plans, refused = random_plans(graph(), RANKS, BATCH, 40, seed=7)
    again, _ = random_plans(graph(), RANKS, BATCH, 10, seed=7)
    ways = "no layout of |pin boundary=sharded|no plan of 4 devices|pins pp=4 and virtual=|choose another|pin virtual"
    assert [why for why in refused if not re.search(ways, why)] == []
    assert len(refused) < len(plans)
    assert [name for name, _ in again] == [name for name, _ in plans[:10]]
    assert [plan.decisions for _, plan in again] == [plan.decisions for _, plan in plans[:10]]
    found = [plan.parallelism for _, plan in plans]
    assert {(p.mesh["pp"], p.mesh["dp"], p.mesh["tp"]) for p in found} >= {(1, 2, 2), (2, 2, 1), (2, 1, 2), (4, 1, 1)}
    assert {p.recompute for p in found} == {*EXECUTED["recompute"].executed}
    assert {p.zero for p in found} == {0, 1, 2, 3}
    assert {p.schedule for p in found} == {"gpipe", "1f1b", "interleaved"}
    assert any("layouts pinned" in name for name, _ in plans)
    assert [name for name, _ in random_plans(graph(), RANKS, BATCH, 10, seed=8).plans] != [name for name, _ in again]


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(InputError, match=r"only \d+ of 99 random plans were found on 1 ranks"):
        random_plans(graph(), 1, 1, 99, seed=0)


def test_some_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("vocab=64", "hidden=32", "heads=4", "seq=16", "layers=4")
    assert main(["verify", "examples/gpt.py:model", "--ranks", "2", "--random", "6", "--set", *sizes]) == 0
    assert "6 plans drawn with seed 0" in capsys.readouterr().out


@pytest.mark.parity
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("spec", "seed"), SEEDS.items())
def test_sixty_are_equal(spec: str, seed: int) -> None:
    sizes = ["--set", "vocab=64", "hidden=32", "heads=4", "seq=16", "layers=4", "dropout=0.1"] if ".py" in spec else []
    assert main(["verify", spec, "--ranks", str(RANKS), "--random", "12", "--seed", str(seed), *sizes]) == 0
