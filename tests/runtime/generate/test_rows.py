"""Texts in rows: more texts than rows, of unequal lengths; each is read in order, once, at its own positions."""

from __future__ import annotations

import pytest
import torch

from runtime.generate.requests import Continued, Request
from runtime.generate.rows import Call, Rows


def text(prompt: tuple[int, ...], most: int, number: int = 0, **how: object) -> Continued:
    return Continued(Request(prompt=prompt, most=most, number=number, **how))  # type: ignore[arg-type]


class Reader:
    """Reads calls as a model would: a cache of each row's tokens by position, and the sum of them as its answer."""

    def __init__(self, rows: int) -> None:
        self.cache: list[dict[int, int]] = [{} for _ in range(rows)]
        self.sizes: list[int] = []

    def chosen(self, call: Call, ready: list[int]) -> dict[int, int]:
        self.sizes.append(call.tokens.shape[1])
        found: dict[int, int] = {}
        for row, tokens in enumerate(call.tokens.tolist()):
            start, last = int(call.start[row]), int(call.last[row])
            for i, token in enumerate(tokens):
                self.cache[row][start + i] = token
            seen = [self.cache[row][position] for position in range(start + last + 1)]
            if row in ready:
                found[row] = answer(seen)
        return found


def answer(seen: list[int]) -> int:
    """Of a text, hanging on every token and its place."""
    return sum((i + 1) * token for i, token in enumerate(seen)) % 97


def alone(prompt: tuple[int, ...], most: int, ends: frozenset[int] = frozenset()) -> list[int]:
    so_far = list(prompt)
    for _ in range(most):
        so_far.append(answer(so_far))
        if so_far[-1] in ends:
            break
    return so_far[len(prompt) :]


def run(texts: list[Continued], many: int, chunk: int) -> Reader:
    rows, reader = Rows(many, chunk), Reader(many)
    rows.waiting.extend(texts)
    for _ in range(1000):
        if rows.is_idle:
            return reader
        rows.fill()
        call = rows.call()
        rows.took(call, reader.chosen(call, rows.ready(call)))
    raise AssertionError("it never ends")


TEXTS = [((5,), 9), (tuple(range(1, 24)), 3), ((8, 2, 2), 1), (tuple(range(30, 37)), 12), ((1, 1), 4), ((9,) * 8, 6)]


@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("many", [1, 2, 4, 9])
def test_each_text_goes_on_as_if_it_were_alone(many: int, chunk: int) -> None:
    texts = [text(prompt, most) for prompt, most in TEXTS]
    reader = run(texts, many, chunk)
    assert [t.tokens for t in texts] == [alone(prompt, most) for prompt, most in TEXTS]
    assert {t.finish for t in texts} == {"length"}
    assert set(reader.sizes) <= {1, chunk}


def test_a_row_takes_the_next_text_where_one_ends() -> None:
    texts = [text((1,), 2), text((2,), 5), text((3,), 3)]
    reader = run(texts, 2, 4)
    assert len(reader.sizes) == 5  # the third runs beside the second


def test_prompts_are_read_by_many_positions_and_answers_by_one() -> None:
    reader = run([text(tuple(range(10)), 3)], 1, 4)
    assert reader.sizes == [4, 4, 4, 1, 1]


def test_a_call_holds_each_rows_own_tokens_and_place() -> None:
    rows = Rows(3, 4)
    rows.waiting.extend([text((1, 2, 3, 4, 5, 6), 2), text((7, 8), 2)])
    assert set(rows.fill()) == {0, 1}
    call = rows.call()
    assert call.tokens.tolist() == [[1, 2, 3, 4], [7, 8, 0, 0], [0, 0, 0, 0]]
    assert (call.start.tolist(), call.last.tolist(), call.read) == ([0, 0, 0], [3, 1, 0], (4, 2, 0))
    assert rows.ready(call) == [1]
    assert [t.tokens for t in rows.took(call, {1: 50})] == [[50]]
    call = rows.call()
    assert call.tokens.tolist() == [[5, 6, 0, 0], [50, 0, 0, 0], [0, 0, 0, 0]]
    assert (call.start.tolist(), call.last.tolist()) == ([4, 2, 0], [1, 0, 0])
    assert rows.ready(call) == [0, 1]
    assert call.tokens.dtype == call.start.dtype == torch.int64


def test_a_token_or_a_text_that_ends() -> None:
    end = alone((5,), 4)[2]
    by_token, by_text = text((5,), 9, ends=frozenset({end})), text((5,), 9, stops=lambda new: len(new) == 4)
    run([by_token, by_text], 2, 3)
    assert (by_token.tokens, by_token.finish) == (alone((5,), 9)[:3], "stop")
    assert (by_text.tokens, by_text.finish) == (alone((5,), 9)[:4], "stop")


def test_a_text_that_ends_with_its_last_token_stops() -> None:
    end = alone((5,), 3)[-1]
    both = text((5,), 3, ends=frozenset({end}))
    run([both], 1, 3)
    assert (len(both.tokens), both.finish) == (3, "stop")


def test_what_nobody_waits_for_leaves_its_row_and_the_queue() -> None:
    rows = Rows(1, 4)
    first, second, third = text((1,), 5), text((2,), 5), text((3,), 5)
    rows.waiting.extend([first, second, third])
    rows.fill()
    rows.drop(first)
    rows.drop(second)
    assert rows.fill() == {0: third}
    assert not rows.is_idle
    rows.drop(third)
    assert rows.is_idle
