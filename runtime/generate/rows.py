"""Texts in the rows of a batch: each row at a position of its own, a new text where one has ended.

    row 0    prompt prompt prompt answer answer | prompt answer answer
    row 1    prompt answer answer answer | prompt prompt answer

A row that has nothing to do runs along with any token: what it writes lies behind its text, where it is overwritten
before anything looks at it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from runtime.generate.requests import Continued


@dataclass
class Row:
    """``done``: positions of the text that are in the cache."""

    text: Continued | None = None
    done: int = 0

    @property
    def left(self) -> list[int]:
        """Tokens that no call has read."""
        if self.text is None:
            return []
        return [*self.text.request.prompt, *self.text.tokens][self.done :]


@dataclass(frozen=True)
class Call:
    """What a Program reads of all rows: ``tokens`` (rows, n), ``start`` and ``last`` (rows,), and how many tokens of
    each row are its text's."""

    tokens: torch.Tensor
    start: torch.Tensor
    last: torch.Tensor
    read: tuple[int, ...]


class Rows:
    """Of one data rank. ``chunk``: positions of a call that reads prompts."""

    def __init__(self, many: int, chunk: int) -> None:
        self.rows, self.chunk = [Row() for _ in range(many)], chunk
        self.waiting = deque[Continued]()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self.waiting and all(row.text is None for row in self.rows)

    def fill(self) -> dict[int, Continued]:
        """Give free rows what waits; those that got a text."""
        found = dict[int, Continued]()
        for n, row in enumerate(self.rows):
            if row.text is None and self.waiting:
                row.text, row.done = self.waiting.popleft(), 0
                found[n] = row.text
        return found

    def call(self) -> Call:
        """The next one, of one position where no row has more to read."""
        left = [row.left for row in self.rows]
        n = self.chunk if max(map(len, left)) > 1 else 1
        read = tuple(min(len(tokens), n) for tokens in left)
        tokens = [tokens[:many] + [0] * (n - many) for tokens, many in zip(left, read, strict=True)]
        start = [row.done if row.text else 0 for row in self.rows]
        last = [max(many - 1, 0) for many in read]
        return Call(torch.tensor(tokens), torch.tensor(start), torch.tensor(last), read)

    def ready(self, call: Call) -> list[int]:
        """Rows whose text gets a token by a call: all of it has been read then."""
        return [n for n, (row, many) in enumerate(zip(self.rows, call.read, strict=True)) if many == len(row.left) > 0]

    def took(self, call: Call, chosen: dict[int, int]) -> list[Continued]:
        """Go on behind a call, which chose a token for each row that was ready; the texts that got one."""
        found = list[Continued]()
        for n, (row, many) in enumerate(zip(self.rows, call.read, strict=True)):
            row.done += many
            if n in chosen and row.text is not None:
                row.text.add(chosen[n])
                found.append(row.text)
                if row.text.finish:
                    row.text, row.done = None, 0
        return found

    def drop(self, text: Continued) -> None:
        """Nobody waits for it any more."""
        if text in self.waiting:
            self.waiting.remove(text)
        for row in self.rows:
            if row.text is text:
                row.text, row.done = None, 0
