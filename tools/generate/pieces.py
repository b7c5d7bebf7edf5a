"""The text of tokens that come one by one, in pieces which nothing that follows can change.

Held back are the first bytes of a character of which others are to come, and what may be the beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNKNOWN = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet


class Pieces:
    """Of one text; ``stopped``: one of ``stops`` has come, and what stands before it was the end.

    Tokens are decoded from the one before the last piece on, since decoders take the space before a first word away.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self.stopped = False
        self._decode, self._stops = decode, stops
        self._tokens, self._given = list[int](), 0  # of these tokens so many are in pieces, or held
        self._held = ""

    def add(self, token: int) -> str:
        """What can be told now; "" for nothing."""
        self._tokens.append(token)
        known, found = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        if len(found) <= len(known) or found.endswith(UNKNOWN):
            return ""
        del self._tokens[: self._given]
        self._given = len(self._tokens)
        return self._before_stop(found[len(known) :])

    def rest(self) -> str:
        """What was held back, at the end of a text that no stop text has ended."""
        known, found = self._decode(self._tokens[: self._given]), self._decode(self._tokens)
        text = self._before_stop(found[len(known) :]) + self._held
        self._held = ""
        return text

    def _before_stop(self, new: str) -> str:
        text, self._held = self._held + new, ""
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            self.stopped = True
            return text[: min(found)]
        held = max((_begun(text, stop) for stop in self._stops), default=0)
        if held:
            self._held = text[-held:]
        return text[: len(text) - held]


def before_stop(text: str, stops: Sequence[str]) -> str:
    """A whole text up to the first of ``stops``."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _begun(text: str, stop: str) -> int:
    """With how many characters of ``stop`` a text ends."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
