"""Answers without a cache, where none can be derived: every token by all of its text, each length traced anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from partitioner.errors import InputError
from partitioner.graph.step_inputs import LAST, TOKENS
from partitioner.lowering.program import Program
from runtime.execute.worker import Worker
from runtime.generate.answering import Answers
from runtime.generate.decoder import Choose, Source, agree, watched
from runtime.generate.rows import Call
from runtime.train.answer_programs import AnswerMaker, AnswerSizes

MOST_KEPT = 64  # programs, one a length


class Recomputing:
    """What a Decoder is to its callers, of one rank."""

    def __init__(self, engine: Answers, maker: AnswerMaker, sizes: AnswerSizes) -> None:
        self.sizes, self._engine, self._maker = sizes, engine, maker
        self._texts: dict[int, list[int]] = {}
        self._sources: dict[int, Source] = {}
        self._programs: dict[int, tuple[Program, Worker]] = {}

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model is given beside tokens."""
        return tuple(n for n in self._program(self.sizes.length)[0].inputs if n not in (TOKENS, LAST))

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model knows: it says so itself."""
        return None

    def read_sources(self, sources: Mapping[int, Source]) -> None:
        """Of the rows that begin with a new text."""
        self._sources |= sources

    def chosen(self, call: Call, ready: Sequence[int], choose: Choose) -> dict[int, int]:
        """A token for each row that is ``ready``, the same on all ranks that share the data rank's place."""
        found = dict[int, int]()
        for row, (tokens, start, many) in enumerate(zip(call.tokens, call.start, call.read, strict=True)):
            self._texts[row] = [*self._texts.get(row, [])[: int(start)], *tokens[:many].tolist()]
        for row in ready:
            program, worker = self._program(len(self._texts[row]))
            given = {TOKENS: torch.tensor([self._texts[row]]), LAST: torch.tensor([len(self._texts[row]) - 1])}
            given |= {name: value[None] for name, value in self._sources.get(row, {}).items()}
            device = self._engine.groups.device
            with watched(self._engine.limits, is_first=True):
                made = worker.losses([{name: value.to(device) for name, value in given.items()}])
            token = torch.zeros(1, dtype=torch.int64, device=device)
            if made:
                token.copy_(choose([row], made[0].flatten(1)[:1]))
            agree(self._engine.groups, program, token)
            found[row] = int(token)
        return found

    def is_anyone_busy(self, is_busy: bool) -> bool:
        """Whether this data rank is."""
        return is_busy

    def _program(self, length: int) -> tuple[Program, Worker]:
        if length not in self._programs:
            program = self._maker.whole(length)
            if program.shards > 1:
                raise InputError("without a cache no state is gathered that ZeRO divides: answer from a checkpoint")
            while len(self._programs) >= MOST_KEPT:
                del self._programs[next(iter(self._programs))]
            self._programs[length] = program, self._engine.worker_of(program)
        return self._programs[length]
