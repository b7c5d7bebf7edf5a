"""A server whose ranks are played by a thread: what a text is hangs on its prompt alone, letter by letter."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from runtime.generate.requests import Continued, Request
from tools.generate.text_coder import TextCoder, text_coder
from tools.serve.desk import Desk
from tools.serve.door import Door
from tools.serve.listening import Listening, bound
from tools.serve.questions import Served
from tools.serve.texts import Texts

NAME = "played"


def letter(prompt: Sequence[int], n: int) -> int:
    """The token of the ``n``-th place behind a prompt."""
    return 97 + (sum(prompt) * 7 + len(prompt) + n * n) % 26


def text_of(prompt: str, most: int, letters: Callable[[Sequence[int], int], int] = letter) -> str:
    return bytes(letters(list(prompt.encode()), n) for n in range(most)).decode(errors="replace")


@dataclass
class Played:
    port: int
    desk: Desk
    listening: Listening
    said: list[str]
    steps: int = 0
    failure: list[BaseException] = field(default_factory=list)
    stops: threading.Event = field(default_factory=threading.Event)
    waits: threading.Event = field(default_factory=threading.Event)  # no step while it is clear

    def play(self, letters: Callable[[Sequence[int], int], int], seconds: float) -> None:
        try:
            self._play(letters, seconds)
        except BaseException as error:
            self.failure.append(error)

    def _play(self, letters: Callable[[Sequence[int], int], int], seconds: float) -> None:
        running = dict[int, Continued]()
        while not self.listening.is_over:
            if not self.waits.wait(0.02):
                continue
            word = self.desk.take(0.02)
            for number in word.dropped:
                running.pop(number, None)
            running |= {number: Continued(asked.request) for number, asked in word.asked.items()}
            assert len(running) <= self.desk.rows
            if running:
                time.sleep(seconds)
                self.steps += 1
            tokens = {n: letters(text.request.prompt, len(text.tokens)) for n, text in running.items()}
            for number, token in tokens.items():
                running[number].add(token)
            running = {number: text for number, text in running.items() if not text.finish}
            self.listening.told(self.desk.heard(tokens))

    def idle(self, seconds: float = 5) -> bool:
        """Whether all rows get free."""
        end = time.monotonic() + seconds
        while (self.desk.load.running or self.desk.load.waiting) and time.monotonic() < end:
            time.sleep(0.01)
        return not self.desk.load.running and not self.desk.load.waiting


@contextmanager
def played(
    *,
    rows: int = 2,
    data_ranks: int = 1,
    queue: int = 4,
    length: int = 64,
    timeout: float = 20,
    unread: int = 1024,
    grace: float = 2,
    seconds: float = 0.0,
    ends: frozenset[int] = frozenset(),
    vocabulary: int = 256,
    letters: Callable[[Sequence[int], int], int] = letter,
    coder: TextCoder | None = None,
) -> Iterator[Played]:
    said, coder = list[str](), coder or text_coder(None)
    desk = Desk(rows, data_ranks, queue)
    texts = Texts(desk, coder.decode, timeout)
    own = bound("127.0.0.1", 0)
    door = Door(Served(NAME, length, vocabulary, ends), coder, desk, texts, unread, said.append)
    found = Played(own.getsockname()[1], desk, Listening(door.app(), texts, own, grace), said)
    found.waits.set()
    thread = threading.Thread(target=found.play, args=(letters, seconds))
    thread.start()
    try:
        yield found
    finally:
        found.waits.set()
        found.listening.leave()
        thread.join(30)
        assert not thread.is_alive()
        assert not found.failure


def request(prompt: str, most: int) -> Request:
    return Request(prompt=tuple(prompt.encode()), most=most)
