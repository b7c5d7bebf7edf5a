"""Texts as clients read them: in order, no further behind than allowed, no longer than there is time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from played_ranks import request

from tools.generate.text_coder import text_coder
from tools.serve import texts as texts_module
from tools.serve.desk import Desk
from tools.serve.refusal import Refusal
from tools.serve.texts import Answer, Part, Texts

Body = Callable[[Desk, Texts], Coroutine[Any, Any, None]]


def run(body: Body, seconds: float = 10.0) -> None:
    async def all_of() -> None:
        desk = Desk(2, 1, 2)
        await asyncio.wait_for(body(desk, Texts(desk, text_coder(None).decode, seconds)), 20)

    asyncio.run(all_of())


def come(desk: Desk, texts: Texts, tokens: dict[int, int]) -> None:
    """One call's."""
    desk.take(0)
    texts.told(desk.heard(tokens))


async def all_parts(answer: Answer) -> list[Part]:
    return [part async for part in answer.parts()]


def test_parts_come_in_order_and_say_why_each_text_has_ended() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 2), request("b", 3)], ["xy"])
        come(desk, texts, {1: 97, 2: 98})
        come(desk, texts, {1: 99, 2: ord("x")})
        come(desk, texts, {2: ord("y")})
        assert await all_parts(answer) == [
            Part(0, "a"), Part(0, "c"), Part(0, "", "length"), Part(1, "b"), Part(1, "", "stop")
        ]  # fmt: skip
        assert [text.tokens for text in answer.texts] == [2, 3]
        assert desk.load.running == 0

    run(body)


def test_a_text_that_a_stop_text_ends_leaves_its_row() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50)], ["b"])
        come(desk, texts, {1: 97})
        come(desk, texts, {1: 98})
        assert desk.take(0).dropped == (1,)
        assert (await all_parts(answer))[-1] == Part(0, "", "stop")

    run(body)


def test_the_token_that_ends_a_text_stands_in_none() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        wanted = request("a", 50)
        answer = texts.open([type(wanted)(prompt=wanted.prompt, most=50, ends=frozenset({99}))], [])
        come(desk, texts, {1: 97})
        come(desk, texts, {1: 99})
        assert await all_parts(answer) == [Part(0, "a"), Part(0, "", "stop")]
        assert answer.texts[0].tokens == 1

    run(body)


def test_a_reader_that_is_too_far_behind_is_lost() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        streamed, whole = texts.open([request("a", 50)], [], 3), texts.open([request("a", 50)], [])
        for n in range(4):
            assert not streamed.lost.is_set(), n
            come(desk, texts, {1: 97, 2: 97})
        assert streamed.lost.is_set()
        assert not whole.lost.is_set()

    run(body)


def test_who_reads_along_is_never_lost() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50)], [], 3)
        reading = asyncio.create_task(all_parts(answer))
        for _ in range(50):
            come(desk, texts, {1: 97})
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(await reading) == 51
        assert not answer.lost.is_set()

    run(body)


def test_a_text_whose_time_is_over_ends_as_it_is() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50), request("b", 50)], [])
        come(desk, texts, {1: 97})
        assert await all_parts(answer) == [Part(0, "a"), Part(0, "", "length"), Part(1, "", "length")]
        assert desk.take(0).dropped == (1, 2)

    run(body, 0.1)


def test_a_text_whose_time_is_over_before_it_begins_is_refused() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50)], [])
        with pytest.raises(Refusal, match=r"0\.1 s") as refusal:
            await all_parts(answer)
        assert refusal.value.status == 504
        assert desk.load.waiting == 0

    run(body, 0.1)


def test_what_nobody_reads_is_dropped() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50), request("b", 50)], [])
        desk.take(0)
        texts.close(answer)
        assert desk.take(0).dropped == (1, 2)
        come(desk, texts, {1: 97})

    run(body)


def test_who_does_not_read_what_there_is_when_time_is_over_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "READ_SECONDS", 0.1)

    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50)], [])
        come(desk, texts, {1: 97})
        await asyncio.wait_for(answer.lost.wait(), 5)

    run(body, 0.1)


def test_of_a_closed_answer_nothing_is_kept() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = weakref.ref(texts.open([request("a", 50)], []))
        texts.close(answer())  # type: ignore[arg-type]
        gc.collect()
        await asyncio.sleep(0)
        assert answer() is None

    run(body)


def test_the_end_is_awaited_for_a_while() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        begun, waits = texts.open([request("a", 50)], []), texts.open([request("a", 50)] * 2, [])
        come(desk, texts, {1: 97})
        texts.leave(0.1)
        with pytest.raises(Refusal, match="leaving"):
            texts.open([request("a", 1)], [])
        come(desk, texts, {1: 98})
        assert [part.text for part in await all_parts(begun)] == ["a", "b", ""]
        with pytest.raises(Refusal, match="leaving"):
            await all_parts(waits)

    run(body)


def test_where_ranks_fail_all_are_told() -> None:
    async def body(desk: Desk, texts: Texts) -> None:
        answer = texts.open([request("a", 50)], [])
        come(desk, texts, {1: 97})
        texts.fail()
        with pytest.raises(Refusal, match="failed"):
            await all_parts(answer)

    run(body)
