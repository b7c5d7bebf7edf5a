"""What rank 0 tells of texts comes to every rank as it was told."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from partitioner.sharding.mesh_axes import DP
from runtime.generate.requests import Continued, Request
from runtime.generate.rows import Call, Rows
from runtime.generate.sampling import Sampling
from runtime.generate.together import Asked, Heard, Together, Word, _read, _written


class Counting:
    """A decoder of two rows: each token is the number of tokens before it."""

    sizes = SimpleNamespace(rows=2, chunk=4)

    def is_anyone_busy(self, is_busy: bool) -> bool:
        return is_busy

    def read_sources(self, sources: object) -> None:
        assert not sources

    def chosen(self, call: Call, ready: Sequence[int], choose: object) -> dict[int, int]:
        return {n: int(call.start[n] + call.last[n] + 1) for n in ready}


@pytest.fixture
def together() -> Together:
    groups = SimpleNamespace(size=lambda axis: 1, coordinates={DP: 0})
    return Together(Counting(), groups)  # type: ignore[arg-type]


def wanted(prompt: tuple[int, ...], most: int, ends: frozenset[int] = frozenset()) -> Request:
    return Request(prompt=prompt, most=most, ends=ends)


def test_a_word_is_read_as_it_was_written() -> None:
    sampling = Sampling(temperature=0.1 + 0.2, top_k=3, top_p=1 / 3, repetition_penalty=1.1, seed=2**63 - 1)
    request = Request(prompt=(5, 6), most=7, sampling=sampling, ends=frozenset({1, 2}), number=4)
    word = Word({3: Asked(1, request), 4: Asked(0, wanted((1,), 2))}, (1, 2), True)
    assert _read(_written(word)) == word
    assert _written(Word()) == b""
    assert _read(b"") == Word()


def test_tokens_are_heard_after_the_call_that_made_them(together: Together) -> None:
    assert together.hear(Word({7: Asked(0, wanted((5, 5, 5), 2))}), 15) == Heard(False, 15, {})
    together.step()
    assert together.hear(Word()) == Heard(False, 0, {7: 3})
    together.step()
    assert together.hear(Word()) == Heard(False, 0, {7: 4})
    together.step()
    assert together.hear(Word(over=True)) == Heard(True, 0, {})


def test_texts_of_other_data_ranks_are_left_to_them(together: Together) -> None:
    together.hear(Word({7: Asked(1, wanted((5,), 2))}))
    together.step()
    assert together.hear(Word()).tokens == {}


def test_the_row_of_a_dropped_text_is_free_in_the_same_word(together: Together) -> None:
    together.hear(Word({1: Asked(0, wanted((5,), 90)), 2: Asked(0, wanted((5, 5), 90))}))
    together.step()
    assert together.hear(Word({3: Asked(0, wanted((5,) * 3, 90))}, (1,))).tokens == {1: 1, 2: 2}
    together.step()
    assert together.hear(Word(dropped=(99,))).tokens == {2: 3, 3: 3}


def test_of_two_equal_texts_the_one_that_is_meant_is_dropped() -> None:
    rows = Rows(1, 4)
    first, second = (Continued(wanted((5,), 9)) for _ in range(2))
    rows.waiting.extend((first, second))
    rows.drop(second)
    assert [text is first for text in rows.waiting] == [True]
