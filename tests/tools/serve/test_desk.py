"""Texts wait for rows of data ranks: none is lost, no row is given twice."""

from __future__ import annotations

import random
import threading
import time

import pytest
from played_ranks import request

from runtime.generate.together import Word
from tools.serve.desk import Desk, New
from tools.serve.refusal import Refusal


def test_texts_go_to_the_data_rank_with_most_free_rows() -> None:
    desk = Desk(rows=2, data_ranks=2, queue=3)
    assert desk.ask([request("a", 5)] * 3) == [1, 2, 3]
    assert {n: a.data_rank for n, a in desk.take(0).asked.items()} == {1: 0, 2: 1, 3: 0}
    desk.ask([request("a", 5)] * 3)
    assert {n: a.data_rank for n, a in desk.take(0).asked.items()} == {4: 1}
    assert (desk.load.running, desk.load.waiting) == (4, 2)


def test_more_than_can_wait_are_refused_whole() -> None:
    desk = Desk(rows=1, data_ranks=1, queue=2)
    desk.ask([request("a", 5)])
    with pytest.raises(Refusal, match="full") as refusal:
        desk.ask([request("a", 5)] * 3)
    assert refusal.value.status == 503
    assert desk.load.waiting == 1
    desk.ask([request("a", 5)] * 2)


def test_the_row_of_a_text_that_ends_is_given_to_the_next() -> None:
    desk = Desk(rows=1, data_ranks=1, queue=2)
    desk.ask([request("a", 2), request("b", 1)])
    assert list(desk.take(0).asked) == [1]
    assert desk.heard({1: 7}) == [New(1, 7, "")]
    assert desk.take(0) == Word()
    assert desk.heard({1: 8}) == [New(1, 8, "length")]
    assert list(desk.take(0).asked) == [2]


def test_a_dropped_text_leaves_its_row_and_is_not_heard_of() -> None:
    desk = Desk(rows=1, data_ranks=1, queue=2)
    first, second, third = desk.ask([request("a", 9)] * 3)
    desk.take(0)
    desk.drop(first)
    desk.drop(second)
    desk.drop(first)
    word = desk.take(0)
    assert (word.dropped, list(word.asked)) == ((first,), [third])
    assert desk.heard({first: 5}) == []
    assert desk.take(0) == Word()


def test_nothing_to_do_is_waited_for() -> None:
    desk = Desk(rows=1, data_ranks=1, queue=0)
    start, used = time.monotonic(), time.process_time()
    assert desk.take(0.3) == Word()
    assert time.monotonic() - start >= 0.3
    assert time.process_time() - used < 0.1
    threading.Timer(0.1, desk.ask, ([request("a", 1)],)).start()
    start = time.monotonic()
    assert list(desk.take(10).asked) == [1]
    assert time.monotonic() - start < 5


def test_whatever_comes_no_text_is_lost() -> None:
    rng = random.Random(0)
    desk, open_, rows = Desk(rows=2, data_ranks=3, queue=5), dict[int, int](), dict[int, tuple[int, int]]()
    ended = set[int]()
    for _ in range(3000):
        what = rng.randrange(4)
        if what == 0:
            many = [rng.randrange(1, 4) for _ in range(rng.randrange(1, 3))]
            try:
                open_ |= dict(zip(desk.ask([request("a", n) for n in many]), many, strict=True))
            except Refusal:
                assert len(open_) + len(many) > 11
        elif what == 1 and open_:
            number = rng.choice(list(open_))
            desk.drop(number)
            del open_[number]
        else:
            word = desk.take(0)
            for number in word.dropped:
                rows.pop(number, None)
            rows |= {n: (a.data_rank, a.request.most) for n, a in word.asked.items()}
            for rank in range(3):
                assert sum(r == rank for r, _ in rows.values()) <= 2
            tokens = dict.fromkeys(rows, 5)
            rows = {n: (rank, left - 1) for n, (rank, left) in rows.items() if left > 1}
            done = {new.number for new in desk.heard(tokens) if new.finish}
            ended |= done
            open_ = {n: most for n, most in open_.items() if n not in done}
        assert desk.load.running + desk.load.waiting == len(open_)
    assert len(ended) > 300
