"""Bytes of pipeline ranks, counted by hand: state, micro-batches in flight, what comes and goes; ZeRO, tied weights.

A stage holds 10 float32 parameters, 40 + 40 + 80 bytes, keeps 100 of a micro-batch and hands on 7. Its forward holds
110 at most, its backward 150, its first backward 155 (its only rank: 157). A micro-batch of samples has 104.

    1f1b, pp 2, 4 micro-batches
    rank 0    0F0 0F1 0B0 0F2 0B1 0F3 0B2     0B3      0B1: two in flight, gradients there
    rank 1        1F0 1B0 1F1 1B1 1F2 1B2 1F3 1B3      1B1: one in flight
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hand_counted import chain, cluster, priced, split, stage
from torch import fx

from partitioner.cost.backward_peak import StagePeaks
from partitioner.cost.unit_cost import Held, Priced, Stash
from partitioner.precision import OWN, Precision
from partitioner.step.least_recompute import least_recomputed
from partitioner.step.rank_memory import RankMemory, StageBytes
from partitioner.step.split import Split, StageSums
from partitioner.step.stashes import Stashes

STATE, GRADIENT, KEPT, SENT, SAMPLES = 160, 40, 100, 7, 4 * 104
FORWARD, BACKWARD, FIRST, ALONE = 110, 150, 155, 157
FULL = (
    Stash(KEPT, StagePeaks(FORWARD, BACKWARD, FIRST, ALONE)),
    Stash(60, StagePeaks(FORWARD, BACKWARD, FIRST, ALONE)),
    Stash(30, StagePeaks(FORWARD, BACKWARD, FIRST, ALONE)),
)
STAGE = stage(
    parameters=(Held(10.0, torch.float32, ()),), input_bytes=7.0, output_bytes=7.0, blocks=2,
    stash={"none": Stashes.of(FULL[0]), "full": Stashes.of(*FULL)},
)  # fmt: skip


@functools.cache
def chain_in(precision: Precision = OWN) -> Priced:
    return priced(replace(chain(1), precision=precision), cluster())


def peaks(split: Split, precision: Precision = OWN) -> list[float]:
    """Of each pipeline rank, without the samples, which lie on all."""
    memory = RankMemory(chain_in(precision), split)
    found = memory.rank_peak_bytes(np.array(split.recomputed)).tolist()
    assert memory.sample_bytes == 104 * split.parallelism.micro_batches
    assert memory.peak_bytes(split.recomputed) == max(found)
    return [peak - memory.sample_bytes for peak in found]


def step(kind: str = "1f1b", virtual: int = 1, sums: StageSums = STAGE, **decisions: Any) -> Split:
    """Of two pipeline ranks and 4 micro-batches."""
    given = {"pp": 2, "many": 4, "schedule": kind, "virtual": virtual, **decisions}
    return split((sums,) * given["pp"] * virtual, **given)


# rank by rank: state; that is there of gradients; in flight; what the action at that moment holds beside
PEAKS = {
    # 0B1 and 1B1
    ("1f1b", 1): [STATE + 2 * KEPT + (BACKWARD - KEPT + SENT), STATE + KEPT + (BACKWARD - KEPT + SENT)],
    # the first backward: all in flight, no gradients yet
    ("gpipe", 1): [STATE - GRADIENT + 4 * KEPT + (FIRST - KEPT + SENT)] * 2,
    # 0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1: of stage 0 three, of stage 2 two, gradients of both there
    # 1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1: of stage 1 three
    ("interleaved", 2): [
        2 * STATE + 5 * KEPT + (BACKWARD - KEPT + SENT),
        2 * STATE + 3 * KEPT + (BACKWARD - KEPT + SENT),
    ],
    # 1B0 1F1 1B1 1W0: rank 1 lets go a micro-batch later
    ("zero_bubble", 1): [STATE + 2 * KEPT + (BACKWARD - KEPT + SENT)] * 2,
}


@pytest.mark.parametrize(("kind", "virtual"), PEAKS)
def test_schedules_fill_ranks(kind: str, virtual: int) -> None:
    assert peaks(step(kind, virtual)) == PEAKS[kind, virtual]
    assert peaks(step(kind, virtual, many=8))[0] == PEAKS[kind, virtual][0] + (4 * KEPT if kind == "gpipe" else 0)


def test_one_rank_alone() -> None:
    """Nothing is sent; where there is one micro-batch its backward is the first, and its gradients come with it."""
    alone = replace(STAGE, input_bytes=0.0, output_bytes=0.0)
    assert peaks(step(sums=alone, pp=1)) == [STATE + BACKWARD]
    assert peaks(step(sums=alone, pp=1, many=1)) == [max(STATE - GRADIENT + ALONE, STATE)]


def test_the_update_holds_all_gradients() -> None:
    small = Stash(1.0, StagePeaks(2.0, 3.0, 4.0, 4.0))
    sums = replace(STAGE, stash={"none": Stashes.of(small)}, input_bytes=0.0, output_bytes=0.0)
    assert peaks(step(sums=sums, pp=1, many=1)) == [STATE]


def test_what_is_received_and_sent_is_not_there_at_once() -> None:
    """A stage in the middle of three receives 7 and sends 90: the larger of them."""
    middle = replace(STAGE, output_bytes=90.0)
    found = peaks(split((STAGE, middle, replace(STAGE, input_bytes=90.0)), pp=3, many=4, mesh=MESH | {"pp": 3}))
    each = [STATE + n * KEPT + BACKWARD - KEPT for n in (3, 2, 1)]
    assert found == [each[0] + 7, each[1] + 90, each[2] + 90]


MESH = {"pp": 2, "dp": 2, "tp": 1}


@pytest.mark.parametrize(
    ("zero", "state"),
    [
        (0, 40 + 40 + 80),
        (1, 40 + 40 / 2 + 40 + 80 / 2),  # of weights what is gathered and what is updated
        (2, 40 + 40 / 2 + 40 / 2 + 80 / 2),
        (3, 40 / 2 + 40 / 2 + 80 / 2),
    ],
)
def test_zero_over_two_replicas(zero: int, state: float) -> None:
    """Ranks that sum gradients hold them for the whole run: no backward is the first."""
    first = replace(FULL[0], peaks=StagePeaks(FORWARD, BACKWARD, 1e6, 1e6))
    sums = replace(STAGE, stash={"none": Stashes.of(first)})
    found = peaks(step(sums=sums, mesh=MESH, zero=zero))
    assert found == [state + n * KEPT + (BACKWARD - KEPT + SENT) for n in (2, 1)]


def test_zero_over_some_of_the_replicas() -> None:
    """Of eight, two on cp, four share: optimizer states are quarters, however many replicas there are."""
    mesh, order = {"pp": 2, "dp": 4, "cp": 2, "tp": 1}, ("pp", "dp", "cp", "tp")
    acting = KEPT + BACKWARD - KEPT + SENT
    for group, part in ((0, 8), (4, 4), (16, 8)):
        found = peaks(step(mesh=mesh, order=order, zero=1, zero_group=group))
        assert found[1] == 40 + 40 / part + 40 + 80 / part + acting


def test_partial_gradients_and_buffers_are_there_all_the_time() -> None:
    first = replace(FULL[0], peaks=StagePeaks(FORWARD, BACKWARD, 1000.0, 1000.0))
    sums, here = replace(STAGE, stash={"none": Stashes.of(first)}), 2 * KEPT + (BACKWARD - KEPT + SENT)
    partial = replace(sums, parameters=(Held(10.0, torch.float32, ("tp",)),))
    assert peaks(step(sums=partial))[0] == STATE + here
    assert peaks(step(sums=sums))[0] == STATE - GRADIENT + 2 * KEPT + 1000 - KEPT + SENT
    wide = Precision(compute="float32", gradients="float64")  # added up in buckets of their own
    assert peaks(step(sums=sums), wide)[0] == 40 + 80 + 80 + here
    copied = Precision(compute="float32", gradients="float64", state="float64")
    assert peaks(step(sums=sums), copied)[0] == 40 + 80 + 3 * 80 + here


def table() -> fx.Node:
    return next(iter(chain_in().folded.parameter))


def test_gradients_of_tied_tables_are_there_all_the_time() -> None:
    """They are summed over the first and the last stage: of 40 bytes of gradients 24 come with the first backward."""
    first = replace(FULL[0], peaks=StagePeaks(FORWARD, BACKWARD, 1000.0, 1000.0))
    tied = replace(STAGE, tied_parameters={table(): Held(4.0, torch.float32, ())}, stash={"none": Stashes.of(first)})
    assert peaks(step(sums=tied)) == [STATE - 24 + n * KEPT + 1000 - KEPT + SENT for n in (2, 1)]
    alone = replace(tied, input_bytes=0.0, output_bytes=0.0)
    assert peaks(step(sums=alone, pp=1)) == [STATE - GRADIENT + 1000]


def test_a_rank_of_both_ends_holds_a_tied_table_once() -> None:
    """zbv lays stages 0 and 3 on rank 0, 1 and 2 on rank 1: of the four parts of 160 on rank 0 one is the other's."""
    tied, untied = replace(STAGE, tied_parameters={table(): Held(10.0, torch.float32, ())}), STAGE
    memory = [
        RankMemory(chain_in(), split(sums, pp=2, many=4, schedule="zbv", virtual=2))
        for sums in ((tied, untied, untied, tied), (untied,) * 4)
    ]
    assert [m.state.sum(1).tolist() for m in memory] == [[160, 160, 160, 0], [160] * 4]
    interleaved = RankMemory(chain_in(), split((tied, untied, untied, tied), pp=2, many=4, schedule="interleaved",
                                           virtual=2))  # fmt: skip
    assert interleaved.state.sum(1).tolist() == [160] * 4


def test_parts_are_those_of_the_fullest_moment() -> None:
    memory = RankMemory(chain_in(), step())
    acting = BACKWARD - KEPT + SENT
    assert memory.fullest((0, 0)) == (
        StageBytes(40, 40, 80, 2 * KEPT + SAMPLES, acting), StageBytes(40, 40, 80, KEPT + SAMPLES, acting),
    )  # fmt: skip
    assert [sum(part) for part in memory.fullest((0, 0))] == memory.rank_peak_bytes(np.array((0, 0))).tolist()
    gpipe = RankMemory(chain_in(), step("gpipe"))
    assert gpipe.fullest((0, 0))[0] == StageBytes(40, 0, 80, 4 * KEPT + SAMPLES, FIRST - KEPT + SENT)
    kept, acting_ = memory.action_bytes((0, 0))
    assert kept.tolist() == [KEPT, KEPT]
    assert acting_.tolist() == [[FORWARD + SENT, BACKWARD - KEPT + SENT, FIRST - KEPT + SENT]] * 2


@pytest.mark.parametrize(
    ("short", "counts"),
    [
        (0, (0, 0)),
        (1, (1, 0)),  # rank 0 keeps 60 of each of one more micro-batch
        (40, (1, 0)),
        (41, (2, 0)),  # 30
        (70, (2, 0)),
        (71, None),
    ],
)
def test_as_few_blocks_as_fit_are_recomputed(short: int, counts: tuple[int, int] | None) -> None:
    """With one block recomputed rank 0 holds 2 x 60 and 90 + 7 for a backward, 40 less; with both 70 less."""
    memory = RankMemory(chain_in(), step().recomputing("full", (2, 2)))
    assert least_recomputed(memory, memory.peak_bytes((0, 0)) - short) == counts


def test_a_rank_recomputes_first_where_most_is_freed() -> None:
    """Rank 0 has stages 0, whose blocks free 40 and 30, and 2, whose free 50 and 40: of the two 40 stage 0's first."""
    other = tuple(Stash(size, FULL[0].peaks) for size in (KEPT, 50, 10))
    stages = (STAGE, STAGE, replace(STAGE, stash={"none": Stashes.of(other[0]), "full": Stashes.of(*other)}), STAGE)
    plain = split(stages, pp=2, many=4, schedule="interleaved", virtual=2)
    memory = RankMemory(chain_in(), plain.recomputing("full", (0, 0, 0, 0)))
    taken = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    for before, after in itertools.pairwise(taken):
        needed = memory.rank_peak_bytes(np.array([before[0], 2, before[1], 2]))[0]
        counts = least_recomputed(memory, needed - 1)
        assert counts is not None
        assert (counts[0], counts[2]) == after
