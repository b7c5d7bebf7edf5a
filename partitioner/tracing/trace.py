"""``trace``: an unmodified nn.Module and an example batch become a normalized training Graph that ends in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from partitioner.comparing.capture_check import MOST_PARAMETERS, check_capture
from partitioner.draws.keyed_draws import separate_units
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.graph.check import check_graph
from partitioner.graph.counts import Count
from partitioner.graph.graph import Graph, gradient_free, placeholders
from partitioner.graph.nodes import buffer_name
from partitioner.normalize.constant_values import merge_equal
from partitioner.normalize.normalize import normal_samples
from partitioner.precision import OWN, Precision
from partitioner.samples.batch_numbers import name_batch_numbers
from partitioner.samples.size_laws import note_sizes
from partitioner.tracing.capture import Captured, Example, alike_blocks, capture, example
from partitioner.tracing.cast_parameters import computing_in
from partitioner.tracing.find_blocks import find_units
from partitioner.tracing.record_calls import CantRehearse
from partitioner.tracing.repeated_modules import Run
from partitioner.tracing.sample_choices import Traced, first_that_holds
from partitioner.tracing.third_capture import Seen, check_laws, numbers_in, same_ops
from partitioner.tracing.unroll_blocks import UnlikeError, unroll
from partitioner.user_code.compiled import as_written
from partitioner.user_code.hooks import refuse_hooks
from partitioner.user_code.untouched import Untouched

Progress = Callable[[str], None]


def trace(
    model: nn.Module, batch: Mapping[str, Any], progress: Progress = lambda text: None, compare: bool = True,
    global_batch: int | None = None, precision: Precision = OWN,
) -> Graph:  # fmt: skip
    """The training graph of ``model(**batch)``, whose output is a scalar loss, or has one (``outputs.loss_of``).

    ``model`` lies on any device, meta included, and is left as it was, and so is the random state. ``batch`` maps
    argument names to example tensors, to plain values, which stay as they are, or to dicts, lists and tuples of them.
    Raises InputError, naming the module and source line, when the model can't be captured as it would run.
    ``progress`` is told what goes on, in words. The graph is compared with the module where that has values and is
    small enough (capture_check.py), and is refused where the two differ; a note says where they were not compared.
    ``compare=False`` leaves that to the caller. With ``global_batch``, the samples of a step, what was seen to follow
    from the batch size is held against a capture of that size, without values (not of one: there what broadcasts
    is another op). What is under ``torch.compile`` is traced as it was written, and named as without it.
    ``precision``: the types in which parameters are read; buffers and the model's own casts stay as they are.
    """
    with as_written(model) as plain:
        refuse_hooks(plain)
        small = sum(p.numel() for p in plain.parameters()) <= MOST_PARAMETERS
        with computing_in(plain, precision, with_values=small):  # where nothing is compared, values are not read
            graph = _traced(_Tracing(plain, batch, progress, compare, global_batch, Untouched(plain)))
    return replace(graph, precision=precision)


def _traced(tracing: _Tracing) -> Graph:
    tracing.progress("tracing: looking for blocks that run alike")
    given = example(tracing.batch)
    try:
        with uncollected():
            runs = alike_blocks(tracing.model, given, tracing.before)
        return tracing.told_apart(given, runs, [])
    except (CantRehearse, UnlikeError) as error:
        return tracing.told_apart(given, (), [f"every block was traced by itself: {error}"])


@dataclass(frozen=True)
class _Tracing:
    """What is asked of one trace."""

    model: nn.Module
    batch: Mapping[str, Any]
    progress: Progress
    compare: bool
    global_batch: int | None
    before: Untouched

    def told_apart(self, given: Example, runs: tuple[Run, ...], notes: list[str]) -> Graph:
        """The graph of the model, of which export does not see the blocks that ``runs`` skip, its samples found."""
        self.progress(f"tracing: capturing, {'alike blocks once' if runs else 'every block by itself'}")
        with uncollected():
            ready = [self._captured(given, runs, notes)]
        self.progress(f"tracing: {len(ready[0].module.graph.nodes):,} ops captured, again with another batch size")

        def at_size(choice: Example, size: int) -> Traced:
            with uncollected():
                second = self._resized(choice, size, runs)
                first = ready.pop() if ready else self._captured(choice, runs, notes)
                traced = self._traced(choice, (first, second), size, runs, notes)
            return self._compared(traced, (choice.samples, size)) if self.compare else traced

        def attempt(choice: Example) -> Traced:
            failure: InputError | None = None
            for size in (choice.samples + 1, 2 * choice.samples):  # some models take only even batches
                try:
                    return at_size(choice, size)
                except InputError as error:
                    failure = failure or error
            assert failure is not None
            raise failure

        return first_that_holds(given, attempt)

    def _captured(self, batch: Example, runs: tuple[Run, ...], notes: list[str]) -> Captured:
        return capture(self.model, batch, runs, notes, self.before)

    def _resized(self, choice: Example, size: int, runs: tuple[Run, ...]) -> Captured:
        try:
            return self._captured(choice.resized(size), runs, [])
        except InputError as error:
            raise InputError(f"the model runs with {choice.samples} samples and not with {size}: {error}") from error

    def _traced(
        self, choice: Example, captured: tuple[Captured, Captured], size: int, runs: tuple[Run, ...], notes: list[str]
    ) -> Traced:  # fmt: skip
        """The graph of two captures, of ``choice`` and of ``size`` samples: what differs follows from the batch."""
        first, second = captured
        graphs, sizes = (first.module.graph, second.module.graph), (choice.samples, size)
        seen = numbers_in(first), numbers_in(second)
        if self.global_batch not in (None, 1, *sizes):  # of one sample nothing is broadcast
            self.progress(f"tracing: once more with the {self.global_batch:,} samples of a step")
            self._check_step(choice, seen, sizes, runs)
        self.progress("tracing: telling samples apart")
        name_batch_numbers(*graphs, sizes, (first.buffers, second.buffers))
        counts, mixed = normal_samples(first.module, first.buffers, sizes[0])
        if mixed is not None:
            self._check_growth(choice, seen, sizes, runs)
        others, _ = normal_samples(second.module, second.buffers, sizes[1])
        note_sizes(*graphs, sizes)
        for count, other in zip(counts, others, strict=True):
            note_sizes(count.module.graph, other.module.graph, sizes)
        said = tuple(dict.fromkeys((*notes, *_tables(choice))))
        graph = _graph(first, unroll(first.module.graph, runs), choice, counts, mixed and mixed.words, said)
        self.progress(f"tracing: {len(graph.nodes):,} ops in {len(graph.blocks)} blocks")
        return Traced(graph, mixed.read if mixed else frozenset())

    def _check_step(
        self, choice: Example, seen: tuple[Seen, Seen], sizes: tuple[int, int], runs: tuple[Run, ...]
    ) -> None:  # fmt: skip
        """Raises InputError where the model does not do with the samples of a step what it does with few."""
        assert self.global_batch is not None
        third = numbers_in(self._captured(choice.hollow(self.global_batch), runs, []))
        same_ops(seen[0], third, (sizes[0], self.global_batch))
        check_laws(*seen, third, (*sizes, self.global_batch))

    def _check_growth(
        self, choice: Example, seen: tuple[Seen, Seen], sizes: tuple[int, int], runs: tuple[Run, ...]
    ) -> None:  # fmt: skip
        """What takes a batch apart may do so by halves or pairs: a third size tells, where the model runs with it."""
        third = (2 if sizes[1] != 2 * sizes[0] else 3) * sizes[0]
        try:
            captured = self._captured(choice.hollow(third), runs, [])
        except InputError:
            return
        check_laws(*seen, numbers_in(captured), (*sizes, third))

    def _compared(self, traced: Traced, sizes: tuple[int, int]) -> Traced:
        self.progress("tracing: comparing the graph with the module")
        try:
            with self.before.after(lambda: None):
                said = check_capture(traced.graph, self.model, self.batch, sizes)
        except (RuntimeError, IndexError, ValueError) as error:  # a graph that does not run at another size
            words = next(iter(str(error).splitlines()), "")
            raise InputError(f"what was traced does not run with another number of samples: {words}") from error
        graph = traced.graph
        return replace(traced, graph=replace(graph, notes=(*graph.notes, said))) if said else traced


def _tables(batch: Example) -> list[str]:
    """What is said of inputs that are as long as the batch and carry no samples."""
    tensors = batch.flat.tensors.items()
    names = [n for n, t in tensors if t.dim() and t.shape[0] == batch.samples and n not in batch.long]
    return [f"the same for all samples, though as long as the batch: {', '.join(names)}"] if names else []


def _graph(
    captured: Captured, nodes: fx.Graph, batch: Example, counts: tuple[Count, ...], mixed: str | None,
    notes: tuple[str, ...],
) -> Graph:  # fmt: skip
    merge_equal(nodes)
    units = find_units(nodes)
    separate_units(nodes, units)
    fixed, prelude = gradient_free(nodes)
    counted = {n for c in counts for n in c.arguments}
    inputs, read = placeholders(nodes, "input"), placeholders(nodes, "buffer")
    graph = Graph(
        module=fx.GraphModule(nn.Module(), nodes), parameters=captured.parameters,
        buffers={n: b for n, b in captured.buffers.items() if n in read or buffer_name(n) in counted},
        inputs=captured.inputs, batch=batch.samples, units=units, constants=fixed, prelude=prelude,
        batch_layout={n.name: n.meta["samples"] for n in nodes.nodes if "samples" in n.meta}, inseparable=mixed,
        counts=counts, batched=tuple(n for n in captured.inputs if inputs[n].meta.get("slopes")),
        plain=batch.flat.plain, notes=notes,
    )  # fmt: skip
    check_graph(graph)
    return graph
