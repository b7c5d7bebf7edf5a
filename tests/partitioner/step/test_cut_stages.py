"""StageCuts of units whose seconds are given: the slowest stage as fast as can be; of those cuts the evenest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hand_counted import chain, cluster, priced

from partitioner.cost.op_seconds import ZERO, Seconds
from partitioner.cost.unit_cost import Priced
from partitioner.step.cut_stages import StageCuts


def timed(seconds: tuple[int, ...], embed: float = 0.0, head: float = 0.0) -> Priced:
    """Blocks of so many seconds, a third of them forward, between an embedding and a head."""
    found = priced(chain(len(seconds)), cluster())
    units = {
        unit: replace(found.unit(unit), compute=Seconds(n / 4, n / 2), communication=Seconds(0.0, n / 4))
        for unit, n in zip(found.folded.graph.units, (embed, *seconds, head), strict=True)
    }
    return replace(found, units=units)


def blocks(cut: tuple[tuple[object, ...], ...]) -> tuple[int, ...]:
    """How many blocks each stage has."""
    return tuple(sum(unit.is_block for unit in stage) for stage in cut)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("many", "stages", "plain", "slots"),
    [
        (6, 3, (2, 2, 2), (2, 2, 2)),
        (6, 4, (), (1, 2, 2, 1)),  # both ends
        (7, 4, (), (1, 2, 2, 2)),  # what is before the blocks
        (6, 8, (), (0, 1, 1, 1, 1, 1, 1, 0)),
        (6, 5, (), ()),
        (6, 9, (), ()),
    ],
)
def test_as_many_blocks_or_ends_in_the_place_of_one(
    many: int, stages: int, plain: tuple[int, ...], slots: tuple[int, ...]
) -> None:
    cuts = StageCuts(timed((1,) * many))
    assert blocks(cuts.as_many_blocks(stages)) == plain
    found = cuts.as_many_blocks(stages, end_slots=True)
    assert blocks(found) == slots
    assert sum(found, ()) == (cuts.units if slots else ())
    assert all(found)


@pytest.mark.parametrize(
    ("seconds", "stages", "found"),
    [
        ((1, 1, 1, 1), 2, (2, 2)),
        ((1, 1, 1, 3), 2, (3, 1)),
        ((3, 1, 1, 1), 2, (1, 3)),
        # the slowest: 5 5 1; by squares, or by what is nearest to their mean, it would be 2 3 6
        ((1, 1, 2, 1, 5, 1), 3, (4, 1, 1)),
        # 2 6 6; by squares 7 3 4
        ((1, 1, 5, 1, 2, 4), 3, (2, 2, 2)),
        # the slowest is 6 whatever becomes of the others: 2 2, not 1 3 nor 3 1
        ((6, 1, 1, 1, 1), 3, (1, 2, 2)),
        ((1, 1, 1, 1, 6), 3, (2, 2, 1)),
        # 7: then 2 2 2, of all ways to make three stages of six
        ((7, 1, 1, 1, 1, 1, 1), 4, (1, 2, 2, 2)),
        ((1, 1, 1, 1, 1, 1, 7), 4, (2, 2, 2, 1)),
        # of mirror images the one whose first stage, which keeps more micro-batches, is the shorter
        ((1, 1, 1), 2, (1, 2)),
        ((1, 2, 3), 3, (1, 1, 1)),
        ((1, 2, 3), 1, (3,)),
    ],
)
def test_the_slowest_is_fastest_then_all_are_even(
    seconds: tuple[int, ...], stages: int, found: tuple[int, ...]
) -> None:
    cuts = StageCuts(timed(seconds))
    assert blocks(cuts.evenest(stages)) == found
    cuts.evenest(len(seconds))
    assert blocks(cuts.evenest(stages)) == found, "after another number of stages"


def test_embedding_and_head_count_and_make_no_stage() -> None:
    """3 s with the embedding's or the head's 2; the embedding alone is no stage, however long it takes."""
    assert blocks(StageCuts(timed((1, 1, 1, 1), embed=2.0)).evenest(2)) == (1, 3)
    assert blocks(StageCuts(timed((1, 1, 1, 1), head=2.0)).evenest(2)) == (3, 1)
    assert blocks(StageCuts(timed((1, 1), embed=9.0)).evenest(2)) == (1, 1)
    cut = StageCuts(timed((1, 1), embed=9.0)).evenest(2)
    assert [[unit.name for unit in stage] for stage in cut] == [["embed", "blocks.0"], ["blocks.1", "head"]]


def test_too_few_blocks() -> None:
    cuts = StageCuts(timed((1, 1)))
    assert cuts.evenest(3) == ()
    assert len(cuts.evenest(2)) == 2


def test_pinned_stages() -> None:
    """Of embed, two blocks and head."""
    cuts = StageCuts(timed((1, 1)))
    assert [[unit.name for unit in stage] for stage in cuts.of_counts((3, 1), 2)] == []  # the head alone is no stage
    alone = cuts.of_counts((1, 2, 1), 3, end_slots=True)  # but where ends have slots
    assert [[unit.name for unit in stage] for stage in alone] == [["embed"], ["blocks.0", "blocks.1"], ["head"]]
    assert [[unit.name for unit in stage] for stage in cuts.of_counts((2, 2), 2)] == [["embed", "blocks.0"],
                                                                              ["blocks.1", "head"]]  # fmt: skip
    assert cuts.of_counts((2, 1), 2) == cuts.of_counts((4,), 2) == cuts.of_counts((2, 2), 1) == ()


def test_seconds_of_both_ways_count() -> None:
    """Compute and communication, forward and backward: any of them alone cuts before the long block."""
    plain = timed((1, 1, 1))
    units = plain.folded.graph.units
    for name in ("compute", "communication"):
        for seconds in (Seconds(5.0, 0.0), Seconds(0.0, 5.0)):
            fifth = Seconds(seconds.forward / 5, seconds.backward / 5)
            rows = {u: replace(plain.unit(u), **{"compute": ZERO, "communication": ZERO, name: fifth}) for u in units}
            rows[units[3]] = replace(rows[units[3]], **{name: seconds})
            assert blocks(StageCuts(replace(plain, units=rows)).evenest(2)) == (2, 1)
