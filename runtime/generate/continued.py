"""The loop that continues texts: rows are filled, a call is run, tokens are chosen, whoever listens is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from runtime.generate.decoder import Decoder
from runtime.generate.recomputing import Recomputing
from runtime.generate.requests import Continued, Request
from runtime.generate.rows import Rows
from runtime.generate.sampling import choose


class Continuing:
    """The texts of one data rank; every rank that shares its place is told the same, in the same order."""

    def __init__(self, decoder: Decoder | Recomputing) -> None:
        self.decoder = decoder
        self.rows = Rows(decoder.sizes.rows, decoder.sizes.chunk)

    def ask(self, request: Request) -> Continued:
        """Ask for a text; it comes by and by."""
        text = Continued(request)
        self.rows.waiting.append(text)
        return text

    def step(self) -> list[Continued]:
        """One call; the texts that got a token."""
        fresh = self.rows.fill()
        self.decoder.read_sources({n: text.request.source for n, text in fresh.items() if text.request.source})
        call = self.rows.call()
        ready = self.rows.ready(call)
        return self.rows.took(call, self.decoder.chosen(call, ready, self._next))

    def _next(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """The next token of the text in each of ``rows``, by its logits; drawn on the CPU, one text after another."""
        texts = [text for n in rows if (text := self.rows.rows[n].text) is not None]
        if all(text.request.sampling.is_likeliest for text in texts):
            return logits.argmax(-1)
        each = zip(logits.cpu(), texts, strict=True)
        return torch.tensor([
            choose(row, [*text.request.prompt, *text.tokens], text.request.sampling, text.request.number)
            for row, text in each
        ])  # fmt: skip

    def all_of(self, requests: Iterable[Request]) -> Iterator[Continued]:
        """Texts as they go on, one token at a time."""
        for request in requests:
            self.ask(request)
        while self.decoder.is_anyone_busy(not self.rows.is_idle):
            yield from self.step()
