"""Between the thread that clients talk to and the one that steps: texts wait here until a data rank has a row free.

    ask, drop  -->  waiting --take--> running on a data rank --heard--> ended
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.generate.requests import Continued, Request
from runtime.generate.together import Asked, Word
from tools.serve.refusal import full


@dataclass(frozen=True)
class New:
    """A token of a text, and why it is the last one, "" where it is not."""

    number: int
    token: int
    finish: str


@dataclass(frozen=True)
class Load:
    """How many texts are in rows, and how many wait for one."""

    running: int
    waiting: int


class Desk:
    """``rows`` of each of ``data_ranks``; up to ``queue`` texts wait while these are taken."""

    def __init__(self, rows: int, data_ranks: int, queue: int) -> None:
        self.rows, self.most = rows * data_ranks, rows * data_ranks + queue
        self._free = [rows] * data_ranks
        self._waiting = deque[tuple[int, Request]]()
        self._running = dict[int, tuple[int, Continued]]()  # by number: the data rank, and what came so far
        self._dropped, self._last = list[int](), 0
        self._changed = threading.Condition()

    @property
    def load(self) -> Load:
        """At this moment."""
        with self._changed:
            return Load(len(self._running), len(self._waiting))

    def ask(self, requests: Sequence[Request]) -> list[int]:
        """The numbers of new texts; raises Refusal where not all of them can wait."""
        with self._changed:
            if len(self._running) + len(self._waiting) + len(requests) > self.most:
                raise full()
            numbers = [self._last + 1 + n for n in range(len(requests))]
            self._waiting.extend(zip(numbers, requests, strict=True))
            self._last += len(requests)
            self._changed.notify()
            return numbers

    def drop(self, number: int) -> None:
        """Nobody waits for a text any more; nothing where it has ended."""
        with self._changed:
            if number in self._running:
                self._free[self._running.pop(number)[0]] += 1
                self._dropped.append(number)
                self._changed.notify()
            self._waiting = deque((n, request) for n, request in self._waiting if n != number)

    def take(self, seconds: float) -> Word:
        """What ranks are to be told before the next call; where there is nothing to do, at the latest after so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._running or self._waiting or self._dropped, seconds)
            dropped, self._dropped = tuple(self._dropped), []
            asked = dict[int, Asked]()
            while self._waiting and max(self._free):
                rank = self._free.index(max(self._free))
                number, request = self._waiting.popleft()
                self._free[rank] -= 1
                self._running[number] = rank, Continued(request)
                asked[number] = Asked(rank, request)
            return Word(asked, dropped)

    def heard(self, tokens: Mapping[int, int]) -> list[New]:
        """The tokens of a call, without those that nobody waits for; the rows of texts that end are free."""
        found = list[New]()
        with self._changed:
            for number, token in tokens.items():
                if number not in self._running:
                    continue
                rank, text = self._running[number]
                text.add(token)
                found.append(New(number, token, text.finish))
                if text.finish:
                    del self._running[number]
                    self._free[rank] += 1
        return found
