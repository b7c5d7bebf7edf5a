"""The texts that clients wait for, in the event loop: tokens of ranks become pieces, read at each client's own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from runtime.generate.requests import Request
from tools.generate.pieces import Pieces
from tools.serve.desk import Desk, New
from tools.serve.refusal import Refusal, failed, leaving, too_late

READ_SECONDS = 10.0  # for a client to read what has come, when its time is over
STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Part:
    """Of one text: a piece of it, or why it has ended."""

    index: int
    text: str
    finish: str = ""


@dataclass(eq=False)
class Text:
    """``tokens``: how many have come, without the one that ends a text."""

    index: int
    pieces: Pieces
    tokens: int = 0
    finish: str = ""
    unread: deque[Part] = field(default_factory=deque[Part])

    def give(self, token: int, finish: str) -> None:
        """The next token, and why it is the last one; it stands in no text where it ends one."""
        piece = ""
        if finish != STOP:
            self.tokens += 1
            piece = self.pieces.add(token)
        if self.pieces.stopped:
            finish = STOP
        if finish:
            self.end(finish, piece)
        elif piece:
            self.unread.append(Part(self.index, piece))

    def end(self, finish: str, piece: str = "") -> None:
        """Nothing follows."""
        if not self.pieces.stopped:
            piece += self.pieces.rest()
        if piece:
            self.unread.append(Part(self.index, piece))
        self.finish = STOP if self.pieces.stopped else finish
        self.unread.append(Part(self.index, "", self.finish))


class Answer:
    """The texts of one question. ``lost``: its client does not read, or not in time."""

    def __init__(self, texts: Sequence[Text], most_unread: int | None) -> None:
        self.texts, self.lost = tuple(texts), asyncio.Event()
        self._most, self._changed = most_unread, asyncio.Event()
        self._failure: Refusal | None = None
        self.timer: asyncio.TimerHandle | None = None  # of what is next to be done to it

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self._failure is not None or all(text.finish for text in self.texts)

    async def parts(self) -> AsyncIterator[Part]:
        """As they come; raises Refusal where texts end without an answer."""
        while True:
            self._changed.clear()
            for text in self.texts:
                while text.unread:
                    yield text.unread.popleft()
            if self._failure is not None:
                raise self._failure
            if self.is_over and not any(text.unread for text in self.texts):
                return
            await self._changed.wait()

    def changed(self) -> None:
        """Something has come."""
        self._changed.set()
        if self._most is not None and sum(len(text.unread) for text in self.texts) > self._most:
            self.lost.set()

    def fail(self, why: Refusal) -> None:
        """No more comes, unless all has."""
        if not self.is_over:
            self._failure = why
        self._changed.set()

    def cut_short(self, why: Refusal) -> None:
        """Texts end as they are; where none has begun the client is told why."""
        if not any(text.tokens for text in self.texts):
            self.fail(why)
            return
        for text in self.texts:
            if not text.finish:
                text.end(LENGTH)
        self._changed.set()


class Texts:
    """All of them. ``decode`` makes text of tokens; ``seconds``: in which a question is to be answered."""

    def __init__(self, desk: Desk, decode: Callable[[Sequence[int]], str], seconds: float) -> None:
        self._desk, self._decode, self._seconds = desk, decode, seconds
        self._open = dict[int, tuple[Answer, Text]]()
        self._why_not: Refusal | None = None

    @property
    def leaves(self) -> bool:
        """Whether no more are taken."""
        return self._why_not is not None

    def open(self, requests: Sequence[Request], stops: Sequence[str], most_unread: int | None = None) -> Answer:
        """Ask for texts; raises Refusal where they can't wait. To be closed when nobody reads them any more."""
        if self._why_not is not None:
            raise self._why_not
        numbers = self._desk.ask(requests)
        answer = Answer([Text(n, Pieces(self._decode, stops)) for n in range(len(requests))], most_unread)
        for number, text in zip(numbers, answer.texts, strict=True):
            self._open[number] = answer, text
        loop, why = asyncio.get_running_loop(), too_late(self._seconds)
        answer.timer = loop.call_later(self._seconds, self._cut_short, answer, why)
        return answer

    def close(self, answer: Answer) -> None:
        """Nobody reads it any more."""
        if answer.timer is not None:
            answer.timer.cancel()
        for number in [n for n, (other, _) in self._open.items() if other is answer]:
            del self._open[number]
            self._desk.drop(number)

    def told(self, news: Sequence[New]) -> None:
        """The tokens of a call."""
        for new in news:
            if new.number not in self._open:
                continue
            answer, text = self._open[new.number]
            text.give(new.token, new.finish)
            answer.changed()
            if text.finish:
                del self._open[new.number]
                self._desk.drop(new.number)

    def leave(self, seconds: float) -> None:
        """Take no more texts, and end those that there are within so long."""
        self._why_not = leaving()
        asyncio.get_running_loop().call_later(seconds, self._end_all)

    def fail(self) -> None:
        """No token comes any more."""
        self._why_not = failed()
        for answer, _ in self._open.values():
            answer.fail(self._why_not)

    def _end_all(self) -> None:
        for answer in {answer for answer, _ in self._open.values()}:
            self._cut_short(answer, leaving())

    def _cut_short(self, answer: Answer, why: Refusal) -> None:
        self.close(answer)
        if not answer.is_over:
            answer.cut_short(why)
        answer.timer = asyncio.get_running_loop().call_later(READ_SECONDS, answer.lost.set)
