"""Beam search: of each text the likeliest few beginnings go on, in rows side by side, until none can still win.

The order in which beams are kept and ended, and the length penalty, are those of transformers' ``generate``.

    row 0    the cat     -->  the cat sat    <-- of row 0
    row 1    a cat       -->  the cat lay    <-- of row 0: what is kept of row 0 is copied
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from partitioner.errors import InputError
from runtime.generate.decoder import Decoder, Source
from runtime.generate.requests import Request
from runtime.generate.rows import Call


class Candidate(NamedTuple):
    """A beam of a text with one more token: its log probability so far, the beam's number, the token."""

    score: float
    beam: int
    token: int


class Ended(NamedTuple):
    """``score``: the log probability, divided by the length to the power of the length penalty."""

    score: float
    tokens: tuple[int, ...]
    finish: str


@dataclass
class Beams:
    """Of one text: ``running`` ones, best first, and those that have ended; ``number`` of each at the most."""

    request: Request
    number: int
    length_penalty: float
    running: list[tuple[float, tuple[int, ...]]] = field(default_factory=lambda: [(0.0, ())])
    ended: list[Ended] = field(default_factory=list[Ended])
    is_open: bool = True

    def go_on(self, candidates: Sequence[Candidate]) -> list[int]:
        """Keep the best of ``candidates``, which come best first; from which beam each that runs on goes on."""
        made = [(c, (*self.running[c.beam][1], c.token)) for c in candidates]
        length = len(made[0][1])
        ends = [c.token in self.request.ends or length >= self.request.most for c, _ in made]
        for (c, tokens), is_end in zip(made[: self.number], ends, strict=False):
            if is_end:
                why = "stop" if c.token in self.request.ends else "length"
                self.ended.append(Ended(c.score / length**self.length_penalty, tokens, why))
        self.ended = sorted(self.ended, key=lambda row: -row.score)[: self.number]
        kept = [row for row, is_end in zip(made, ends, strict=True) if not is_end][: self.number]
        self.running = [(c.score, tokens) for c, tokens in kept]
        worst = self.ended[-1].score if len(self.ended) == self.number else -math.inf
        self.is_open = bool(kept) and kept[0][0].score / length**self.length_penalty > worst
        return [c.beam for c, _ in kept]


class BeamSearch:
    """``beams`` of each text on the rows of a decoder."""

    def __init__(self, decoder: Decoder, beams: int, length_penalty: float) -> None:
        if decoder.programs.one.shards > 1:
            raise InputError("beam search gathers nothing of a state that ZeRO divides: answer from a checkpoint")
        self.decoder, self.beams, self.length_penalty = decoder, beams, length_penalty
        self.texts = decoder.sizes.rows // beams

    def all_of(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Ended]]:
        """The best of each, as many at once as there are rows, those with prompts of one length together."""
        by_length: dict[int, list[Request]] = {}
        for request in requests:
            by_length.setdefault(len(request.prompt), []).append(request)
        for alike in by_length.values():
            for n in range(0, len(alike), self.texts):
                yield from self._together(alike[n : n + self.texts])

    def _together(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Ended]]:
        texts = [Beams(request, self.beams, self.length_penalty) for request in requests]
        sources: dict[int, Source] = {}
        for n, request in enumerate(requests):
            if request.source:
                sources |= {n * self.beams + beam: request.source for beam in range(self.beams)}
        self.decoder.read_sources(sources)
        prompts = [list(request.prompt) for request in requests]
        read, size = 0, len(prompts[0])
        while size - read > 1:
            many = min(size - read - 1, self.decoder.sizes.chunk)
            self._call([prompt[read : read + many] for prompt in prompts for _ in range(self.beams)], read)
            read += many
        tokens = [prompt[-1:] for prompt in prompts for _ in range(self.beams)]
        while any(text.is_open for text in texts):
            found = self._candidates(texts, self._call(tokens, read))
            tokens = self._go_on(texts, found)
            read += 1
        yield from ((text.request, text.ended[0]) for text in texts)

    def _call(self, tokens: Sequence[list[int]], start: int) -> torch.Tensor | None:
        """Each row's next tokens, equally many; the logits of its last, where the last stage is."""
        many = len(tokens[0])
        n = 1 if many == 1 else self.decoder.sizes.chunk
        rows = [[*row, *[0] * (n - many)] for row in tokens]
        rows += [[0] * n] * (self.decoder.sizes.rows - len(rows))
        places = torch.full((len(rows),), start)
        return self.decoder.logits(Call(torch.tensor(rows), places, torch.full_like(places, many - 1), ()))

    def _candidates(self, texts: Sequence[Beams], logits: torch.Tensor | None) -> torch.Tensor:
        """Of each text (texts, candidates, 3): score, beam, token; the same on all ranks."""
        most = max(2, 1 + max(len(text.request.ends) for text in texts)) * self.beams
        found = torch.zeros(len(texts), most, 3, dtype=torch.float64)
        if logits is not None:
            log = logits.double().cpu().log_softmax(-1)
            for n, text in enumerate(texts):
                own = log[n * self.beams : n * self.beams + len(text.running)]
                if len(own):
                    scores = (own + torch.tensor([[score] for score, _ in text.running], dtype=torch.float64)).flatten()
                    best = scores.topk(min(most, len(scores)))
                    places = best.indices
                    rows = torch.stack([best.values, places // log.shape[1], places % log.shape[1]], -1)
                    found[n, : len(rows)] = rows
        return self.decoder.agreed(found)

    def _go_on(self, texts: Sequence[Beams], found: torch.Tensor) -> list[list[int]]:
        """Keep the best of each text; the next token of each row, behind what is kept of the beam it goes on from."""
        tokens, rows = list[list[int]](), list(range(self.decoder.sizes.rows))
        for n, (text, own) in enumerate(zip(texts, found, strict=True)):
            beams = list[int]()
            if text.is_open:
                beams = text.go_on([Candidate(float(s), int(b), int(t)) for s, b, t in own.tolist()])
            first = n * self.beams
            for beam in range(self.beams):
                rows[first + beam] = first + (beams[beam] if beam < len(beams) else 0)
                tokens.append([text.running[beam][1][-1]] if beam < len(beams) else [0])
        if rows != list(range(len(rows))):
            self.decoder.reorder(rows)
        return tokens
