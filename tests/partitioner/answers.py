"""Texts read by derived graphs a few positions at a time, held against the plain module run on them from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from partitioner import trace
from partitioner.comparing.eager_float64 import Widening, float64_by_default, wide, widened
from partitioner.comparing.graph_float64 import promote
from partitioner.generating.derive import Derivation
from partitioner.generating.lengths import answering, lengths
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import arguments
from partitioner.graph.step_inputs import FRESH, LAST, START, TOKENS, is_kept

Batch = dict[str, torch.Tensor]
CHUNKS = (7, 7, 1, 1, 5)
LIMIT = 1e-9
UNWRITTEN = 3.0  # stands in a cache where nobody has written: it must not be read, and would tell


def roughened(module: nn.Module) -> nn.Module:
    """In eval mode, every parameter moved from where it starts, so that attention is sharp and each of them tells."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module.eval()


def derived(
    module: nn.Module, batch: Mapping[str, torch.Tensor], length: int, rows: int = 2, source: int | None = None
) -> Derivation:  # fmt: skip
    """Of texts of up to ``length`` positions, ``rows`` at once."""
    with answering(module):
        return lengths(batch, length, lambda given: trace(module, given, compare=False)).derivation(rows, source)


class Answers:
    """Graphs of calls of each of ``sizes`` positions on the same caches, in float64; ``change`` may plant a fault in
    each."""

    def __init__(
        self, module: nn.Module, derivation: Derivation, sizes: Sequence[int] = CHUNKS,
        change: Callable[[Graph], None] = lambda graph: None,
    ) -> None:
        self.rows, self.sources = derivation.graph.batch, derivation.sources
        chunk = max(sizes)
        self.graphs = {n: derivation.answering(n, chunk) for n in set(sizes)}
        self.source = derivation.source() if derivation.sources else None
        self.kept_shapes = {n: p.shape for g in self.graphs.values() for n, p in g.parameters.items() if is_kept(n)}
        for graph in self.graphs.values():
            change(graph)
        self._wide = {n: promote(graph) for n, graph in self.graphs.items()}
        self._wide_source = promote(self.source) if self.source else None
        self._values = {n: wide(p.detach()) for n, p in module.named_parameters(remove_duplicate=False)}
        read = [*self._wide.values(), *([self._wide_source] if self._wide_source else [])]
        kept = {n: p for g in read for n, p in g.parameters.items() if is_kept(n)}
        self._values |= {n: torch.full(p.shape, UNWRITTEN).to(p.dtype) for n, p in kept.items()}

    def read_sources(self, sources: Batch, fresh: Sequence[bool]) -> None:
        """Those of the rows that are fresh."""
        if self._wide_source is not None:
            self._run(self._wide_source, {n: wide(t) for n, t in sources.items()} | {FRESH: torch.tensor(fresh)})

    def logits(self, tokens: torch.Tensor, start: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Of each row's last position, (rows, classes)."""
        return self._run(self._wide[tokens.shape[1]], {TOKENS: tokens, START: start, LAST: last})[:, 0]

    def _run(self, graph: Graph, given: Batch) -> Any:
        with torch.no_grad(), float64_by_default():
            return fx.Interpreter(graph.module).run(*arguments(graph, self._values, given))


class Plain:
    """The module itself in float64."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self._seen = widened(module).eval(), list[torch.Tensor]()
        if not hasattr(module, "config"):
            self.module.head.register_forward_hook(lambda _, __, made: self._seen.append(made))  # type: ignore[union-attr]

    def logits(self, tokens: torch.Tensor, sources: Batch) -> torch.Tensor:
        """Of every position, (texts, positions, classes)."""
        with torch.no_grad(), float64_by_default(), Widening():
            if not hasattr(self.module, "config"):
                self.module(tokens, tokens)
                return self._seen.pop()
            if sources:
                given = {n: wide(t) for n, t in sources.items()}
                return self.module(**given, decoder_input_ids=tokens, use_cache=False).logits
            return self.module(input_ids=tokens, use_cache=False).logits


@dataclass
class _Row:
    text: int | None = None
    done: int = 0


def worst(
    answers: Answers, plain: Plain, texts: Sequence[torch.Tensor], vocabulary: int, sources: Batch | None = None,
    chunks: Sequence[int] = CHUNKS,
) -> float:
    """The largest difference of logits, of texts that follow each other in the rows, each at a place of its own.

    Every row reads fewer tokens than a call has positions now and then: what stands behind them are tokens that count
    in other places. ``sources``: of each text.
    """
    sources, found, generator = sources or {}, 0.0, torch.Generator().manual_seed(11)
    wanted = [_recomputed(plain, text, {k: v[n : n + 1] for k, v in sources.items()}) for n, text in enumerate(texts)]
    waiting, rows = list(range(len(texts))), [_Row() for _ in range(answers.rows)]
    for turn, n in enumerate(_repeated(chunks)):
        fresh = [row.text is None and bool(waiting) for row in rows]
        for row in (row for row, new in zip(rows, fresh, strict=True) if new and waiting):
            row.text, row.done = waiting.pop(0), 0
        fresh = [new and row.text is not None for new, row in zip(fresh, rows, strict=True)]
        if all(row.text is None for row in rows):
            return found
        if sources and any(fresh):  # a row that is not fresh is shown another's, which it must not take
            own = [(row.text or 0) + (not new) for row, new in zip(rows, fresh, strict=True)]
            answers.read_sources({k: v[torch.tensor(own) % len(texts)] for k, v in sources.items()}, fresh)
        tokens = torch.randint(1, vocabulary, (len(rows), n), generator=generator)
        many = [0] * len(rows)
        for r, row in enumerate(rows):
            if row.text is not None:
                many[r] = max(1, min(len(texts[row.text]) - row.done, n - (turn + r) % 3))
                tokens[r, : many[r]] = texts[row.text][row.done : row.done + many[r]]
        start = torch.tensor([row.done for row in rows])
        for last in {tuple(max(m - 1, 0) for m in many), tuple(0 for _ in many)}:  # a call made again changes nothing
            got = answers.logits(tokens, start, torch.tensor(last))
            for r, row in enumerate(rows):
                if row.text is not None:
                    found = max(found, float((got[r] - wanted[row.text][row.done + last[r]]).abs().max()))
        for r, row in enumerate(rows):
            row.done += many[r]
            if row.text is not None and row.done == len(texts[row.text]):
                row.text, row.done = None, 0
    raise AssertionError


def _repeated(chunks: Sequence[int]) -> Iterator[int]:
    while True:
        yield from chunks


def _recomputed(plain: Plain, text: torch.Tensor, sources: Batch) -> torch.Tensor:
    """Of every position; those of a few as the last one of a text, without what comes later."""
    found = plain.logits(text[None], sources)[0]
    for many in {1, len(text) // 2, len(text) - 1} - {0}:
        alone = plain.logits(text[None, :many], sources)[0, -1]
        assert float((alone - found[many - 1]).abs().max()) < LIMIT, "the plain module itself looks at what comes later"
    return found


def texts_of(sizes: Sequence[int], vocabulary: int, seed: int = 2) -> list[torch.Tensor]:
    """Random tokens, 0 among them, but not as the first: a model that hides tokens 0 would see nothing there."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(vocabulary, (n,), generator=generator) for n in sizes]
    for text in made:
        text[0] = text[0].clamp(min=1)
    return made
