"""Two Programs of one model, of few positions and of one, on the same caches: tokens in, logits out, on every rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from partitioner.graph.step_inputs import FRESH, LAST, START, TOKENS, is_kept
from partitioner.lowering.program import Program
from partitioner.sharding.layout import local_shape
from partitioner.sharding.mesh_axes import DP, PP
from runtime.execute.worker import Named, Worker
from runtime.generate.rows import Call
from runtime.mesh.groups import Groups
from runtime.ranks.limits import Limits
from runtime.ranks.watchdog import Watchdog
from runtime.state.shard_pieces import places
from runtime.train.answer_programs import AnswerPrograms

Choose = Callable[[Sequence[int], torch.Tensor], torch.Tensor]  # a token for each row, of (rows, classes)
Source = Mapping[str, torch.Tensor]  # of one text, without a dimension of samples


class Decoder:
    """Of one rank; ``worker`` makes what runs a Program with the rank's parameters."""

    def __init__(
        self, programs: AnswerPrograms, groups: Groups, worker: Callable[[Program], Worker],
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self.programs, self.sizes, self._groups = programs, programs.sizes, groups
        self._limits, self._called = limits, set[Worker]()
        self._workers = {programs.sizes.chunk: worker(programs.many), 1: worker(programs.one)}
        self._source = worker(programs.source) if programs.source else None
        self._kept = kept(programs, groups)
        self._last_rank = programs.one.stages[-1].rank

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model is given beside tokens."""
        return tuple(n for n in self.programs.source.inputs if n != FRESH) if self.programs.source else ()

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the model knows."""
        return self.programs.vocabulary

    @property
    def cache_bytes(self) -> int:
        """Of this rank."""
        return sum(t.numel() * t.element_size() for t in self._kept.values())

    @property
    def has_logits(self) -> bool:
        """Whether this rank has the last stage."""
        return self._groups.coordinates[PP] == self._last_rank

    def logits(self, call: Call) -> torch.Tensor | None:
        """Of each row's last position, (rows, classes), where the last stage is."""
        given = {TOKENS: call.tokens, START: call.start, LAST: call.last}
        made = self._run(self._workers[call.tokens.shape[1]], given)
        return made[0].flatten(1) if made else None

    def read_sources(self, sources: Mapping[int, Source]) -> None:
        """Of the rows that begin with a new text, those of the text before are forgotten.

        Where data ranks divide state all of them read when one does, for they gather it together.
        """
        if self._source is None or not self.is_anyone_busy(bool(sources)):
            return
        given: Named = {FRESH: torch.tensor([n in sources for n in range(self.sizes.rows)])}
        for name, like in self.programs.given.items():
            none = torch.zeros_like(like, device="cpu")
            rows = [sources[n][name].cpu() if n in sources else none for n in range(self.sizes.rows)]
            given[name] = torch.stack(rows)
        self._run(self._source, given)

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on in each row with what positions before have left of another, which has the same source."""
        places = torch.tensor(rows, device=self._groups.device)
        for name in self._kept.keys() & self.programs.samples.keys():
            self._kept[name].copy_(self._kept[name].index_select(self.programs.samples[name], places))

    def _run(self, worker: Worker, given: Named) -> list[torch.Tensor]:
        is_first = worker not in self._called
        self._called.add(worker)
        with watched(self._limits, is_first):
            return worker.losses([{n: value.to(self._groups.device) for n, value in given.items()} | self._kept])

    def chosen(self, call: Call, ready: Sequence[int], choose: Choose) -> dict[int, int]:
        """A token for each row that is ``ready``, the same on all ranks that share the data rank's place.

        ``choose`` is told the rows and their logits, where they lie, on the ranks of the last stage.
        """
        logits = self.logits(call)
        tokens = torch.zeros(len(ready), dtype=torch.int64, device=self._groups.device)
        if logits is not None and ready:
            tokens.copy_(choose(ready, logits[torch.tensor(ready, device=logits.device)]))
        if ready:
            agree(self._groups, self.programs.one, tokens)
        return dict(zip(ready, tokens.tolist(), strict=True))

    def is_anyone_busy(self, is_busy: bool) -> bool:
        """Whether a data rank is that must not be left alone: ranks that divide state gather it together."""
        if self.programs.one.shards == 1:
            return is_busy
        word = torch.tensor(int(is_busy), device=self._groups.device)
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self._groups.group(DP))
        return bool(word)

    def agreed(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor as it is on the first of the ranks that have the last stage, on the CPU."""
        shared = value.to(self._groups.device)
        agree(self._groups, self.programs.one, shared)
        return shared.cpu()


def watched(limits: Limits | None, is_first: bool) -> contextlib.AbstractContextManager[object]:
    """Ends the process where a call takes far too long."""
    if limits is None:
        return contextlib.nullcontext()
    return Watchdog(limits.first_step if is_first else limits.step, "a call that answers")


def agree(groups: Groups, program: Program, value: torch.Tensor) -> None:
    """Make a tensor what it is on the first of the ranks that have a Program's last stage."""
    for axis in program.mesh:
        if axis != DP and groups.size(axis) > 1:
            group = groups.group(axis)
            place = program.stages[-1].rank if axis == PP else 0
            dist.broadcast(value, dist.get_process_group_ranks(group)[place], group=group)


def kept(programs: AnswerPrograms, groups: Groups) -> Named:
    """Empty, the rank's parts of what its stages keep from call to call."""
    program = programs.one
    here = {name for stage in program.stages if stage.rank == groups.coordinates[PP] for name in stage.parameters}
    rows = [p for n, p in program.parameters.items() if n in here and is_kept(n)]
    at = places(program, groups.coordinates)
    shapes = {p.name: local_shape(p.shape, p.layout, at) for p in rows}  # each data rank's own: no ZeRO divides it
    return {p.name: torch.zeros(shapes[p.name], dtype=p.dtype, device=groups.device) for p in rows}
