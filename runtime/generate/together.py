"""Texts that rank 0 is asked for, made by all ranks together: before each call it says what is new and what is not.

    rank 0: Word --hear--> every rank: ask, drop --step--> tokens --hear--> rank 0, those of all data ranks
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from partitioner.sharding.mesh_axes import DP
from runtime.generate.continued import Continuing
from runtime.generate.decoder import Decoder
from runtime.generate.requests import Continued, Request
from runtime.generate.sampling import Sampling
from runtime.mesh.groups import Groups
from runtime.ranks.process_group import is_first

BYTES, SIGNAL, MADE = 0, 1, 2  # places of what ranks tell each other: of the word, the signal, numbers and tokens


@dataclass(frozen=True)
class Asked:
    """A text for the data rank that makes it, which has a row free."""

    data_rank: int
    request: Request


@dataclass(frozen=True)
class Word:
    """Of rank 0 before a call: ``asked`` are new texts, by their numbers, from 1 on; ``dropped``: numbers of those that
    nobody waits for; ``over``: nothing follows."""

    asked: Mapping[int, Asked] = field(default_factory=dict[int, Asked])
    dropped: tuple[int, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Heard:
    """``signal``: the largest that any rank has got, 0 for none; ``tokens``: of the call before, by the number of their
    text, of all data ranks."""

    over: bool
    signal: int
    tokens: Mapping[int, int]


class Together:
    """Of one rank; all call ``hear`` and ``step`` in turn, whether there is anything to do or not."""

    def __init__(self, decoder: Decoder, groups: Groups) -> None:
        self._continuing, self._decoder = Continuing(decoder), decoder
        self.data_ranks, self._own = groups.size(DP), groups.coordinates[DP]
        self._texts = dict[int, Continued]()
        self._made = dict[int, int]()

    def hear(self, word: Word, signal: int = 0) -> Heard:
        """Tell and hear: ``word`` counts on rank 0 alone. Waits for all ranks."""
        rows = self._decoder.sizes.rows
        told = torch.zeros(MADE + 2 * rows * self.data_ranks, dtype=torch.int64)
        own = torch.tensor(list(_written(word) if is_first() else b""), dtype=torch.uint8)
        told[BYTES], told[SIGNAL] = len(own), signal
        for n, (number, token) in enumerate(self._made.items(), self._own * rows):
            told[MADE + 2 * n], told[MADE + 2 * n + 1] = number, token
        if dist.is_initialized():
            dist.all_reduce(told, dist.ReduceOp.MAX)
            if told[BYTES] and not is_first():
                own = torch.zeros(int(told[BYTES]), dtype=torch.uint8)
            if told[BYTES]:
                dist.broadcast(own, 0)
        said, pairs = _read(bytes(own.tolist())), told[MADE:].view(-1, 2).tolist()
        self._take(said)
        return Heard(said.over, int(told[SIGNAL]), {number: token for number, token in pairs if number})

    def step(self) -> None:
        """One call, where this data rank has anything to do."""
        self._made = {}
        if not self._decoder.is_anyone_busy(not self._continuing.rows.is_idle):
            return
        numbers = {text: number for number, text in self._texts.items()}
        for text in self._continuing.step():
            self._made[numbers[text]] = text.tokens[-1]
            if text.finish:
                del self._texts[numbers[text]]

    def _take(self, word: Word) -> None:
        for number in word.dropped:
            if (text := self._texts.pop(number, None)) is not None:
                self._continuing.rows.drop(text)
        for number, asked in word.asked.items():
            if asked.data_rank == self._own:
                self._texts[number] = self._continuing.ask(asked.request)


def _written(word: Word) -> bytes:
    """Nothing for a word that says nothing."""
    if word == Word():
        return b""
    asked = [[n, a.data_rank, _row(a.request)] for n, a in word.asked.items()]
    return json.dumps({"asked": asked, "dropped": word.dropped, "over": word.over}).encode()


def _row(request: Request) -> dict[str, Any]:
    assert request.stops is None
    assert request.source is None
    own = {"prompt": request.prompt, "most": request.most, "ends": sorted(request.ends), "number": request.number}
    return own | {"sampling": asdict(request.sampling)}


def _read(text: bytes) -> Word:
    if not text:
        return Word()
    given = json.loads(text)
    asked = {number: Asked(rank, _request(row)) for number, rank, row in given["asked"]}
    return Word(asked, tuple(given["dropped"]), given["over"])


def _request(row: dict[str, Any]) -> Request:
    sampling, ends = Sampling(**row["sampling"]), frozenset[int](row["ends"])
    return Request(
        prompt=tuple(row["prompt"]), most=row["most"], sampling=sampling, ends=ends, number=row["number"]
    )  # fmt: skip
