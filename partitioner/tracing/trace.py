"""``trace``: an unmodified nn.Module and an example batch become a normalized training Graph that ends in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import fx, nn

from partitioner.comparing.capture_check import check_capture
from partitioner.draws.keyed_draws import separate_units
from partitioner.errors import InputError
from partitioner.gc_pause import uncollected
from partitioner.graph.check import check_graph
from partitioner.graph.counts import Count
from partitioner.graph.graph import Graph, gradient_free, placeholders
from partitioner.normalize.constant_values import merge_equal
from partitioner.normalize.normalize import normal_samples
from partitioner.samples.batch_numbers import name_batch_numbers, note_sizes
from partitioner.tracing.capture import Captured, Example, alike_blocks, capture, example
from partitioner.tracing.find_blocks import find_units
from partitioner.tracing.record_calls import CantRehearse
from partitioner.tracing.repeated_modules import Run
from partitioner.tracing.third_capture import check_at
from partitioner.tracing.unroll_blocks import UnlikeError, unroll
from partitioner.user_code.compiled import as_written
from partitioner.user_code.hooks import refuse_hooks
from partitioner.user_code.untouched import untouched

MOST_UNCERTAIN = 3  # inputs as long as the batch that may stay as they are
Progress = Callable[[str], None]


def trace(
    model: nn.Module, batch: Mapping[str, Any], progress: Progress = lambda text: None, compare: bool = True,
    global_batch: int | None = None,
) -> Graph:  # fmt: skip
    """The training graph of ``model(**batch)``, whose output is a scalar loss, or has one (``outputs.loss_of``).

    ``model`` lies on any device, meta included, and is left as it was, and so is the random state. ``batch`` maps
    argument names to example tensors, to plain values, which stay as they are, or to dicts, lists and tuples of them.
    Raises InputError, naming the module and source line, when the model can't be captured as it would run.
    ``progress`` is told what goes on, in words. The graph is compared with the module where that has values and is
    small enough (capture_check.py), and is refused where the two differ; a note says where they were not compared.
    ``compare=False`` leaves that to the caller. With ``global_batch``, the samples of a step, what was seen to follow
    from the batch size is held against a capture of that size, without values (not of one: there what broadcasts
    is another op). What is under ``torch.compile`` is
    traced as it was written, and named as without it.
    """
    with as_written(model) as plain:
        return _trace_plain(plain, batch, progress, compare, global_batch)


def _trace_plain(
    model: nn.Module, batch: Mapping[str, Any], progress: Progress, compare: bool, global_batch: int | None
) -> Graph:
    progress("tracing: looking for blocks that run alike")
    refuse_hooks(model)
    given, notes = example(batch), list[str]()
    with uncollected():
        try:
            graph, sizes = _trace(model, given, alike_blocks(model, given), notes, progress, global_batch)
        except (CantRehearse, UnlikeError) as error:
            notes = [f"every block was traced by itself: {error}"]
            graph, sizes = _trace(model, given, (), notes, progress, global_batch)
    if not compare:
        return graph
    progress("tracing: comparing the graph with the module")
    with untouched(model, lambda: None):
        said = check_capture(graph, model, batch, sizes)
    return replace(graph, notes=(*graph.notes, said)) if said else graph


def _trace(
    model: nn.Module, batch: Example, runs: tuple[Run, ...], notes: list[str], progress: Progress,
    global_batch: int | None,
) -> tuple[Graph, tuple[int, int]]:  # fmt: skip
    """The graph of ``model``, of which export does not see the blocks that ``runs`` skip, and the sizes traced.

    Captured twice, at two batch sizes: what differs follows from the batch. A third time at ``global_batch``.
    """
    progress(f"tracing: capturing, {'alike blocks once' if runs else 'every block by itself'}")
    first = capture(model, batch, runs, notes)
    progress(f"tracing: {len(first.module.graph.nodes):,} ops captured, again with another batch size")
    second, more = _at_another_size(model, batch, runs)
    if global_batch not in (None, 1, batch.samples, more.samples):  # of one sample nothing is broadcast
        progress(f"tracing: once more with the {global_batch:,} samples of a step")
        check_at(global_batch, model, (first, second), (batch, more), runs)
    progress("tracing: telling samples apart")
    graphs, sizes = (first.module.graph, second.module.graph), (batch.samples, more.samples)
    name_batch_numbers(*graphs, sizes, (first.buffers, second.buffers))
    counts, mixed = normal_samples(first.module, first.buffers, sizes[0])
    others, _ = normal_samples(second.module, second.buffers, sizes[1])
    note_sizes(*graphs, sizes)
    for count, other in zip(counts, others, strict=True):
        note_sizes(count.module.graph, other.module.graph, sizes)
    graph = _graph(first, unroll(first.module.graph, runs), batch, counts, mixed, tuple(dict.fromkeys(notes)))
    progress(f"tracing: {len(graph.nodes):,} ops in {len(graph.blocks)} blocks")
    return graph, sizes


def _at_another_size(model: nn.Module, batch: Example, runs: tuple[Run, ...]) -> tuple[Captured, Example]:
    """A capture with more samples than ``batch`` has, and those.

    Every input whose first dimension is as long as the batch grows, unless the model can't run so: then as few of them
    as need be stay as they are (positions of a sequence as long as the batch). Some models take only even batches.
    """
    failure: InputError | None = None
    for names in _grown_inputs(batch.long):
        for size in (batch.samples + 1, 2 * batch.samples):
            grown = batch.resized(size, names)
            try:
                return capture(model, grown, runs, []), grown
            except InputError as error:
                failure = failure or error
    raise InputError(f"the model runs with {batch.samples} samples and not with {batch.samples + 1}: {failure}")


def _grown_inputs(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Inputs that may carry samples: all that are as long as the batch, then fewer."""
    for fewer in range(min(len(names), MOST_UNCERTAIN)):
        yield from combinations(names, len(names) - fewer)


def _graph(
    captured: Captured, nodes: fx.Graph, batch: Example, counts: tuple[Count, ...], mixed: str | None,
    notes: tuple[str, ...],
) -> Graph:  # fmt: skip
    merge_equal(nodes)
    units = find_units(nodes)
    separate_units(nodes, units)
    fixed, prelude = gradient_free(nodes)
    read = {*placeholders(nodes, "buffer"), *(n.removeprefix("buffer:") for c in counts for n in c.arguments)}
    inputs = placeholders(nodes, "input")
    graph = Graph(
        module=fx.GraphModule(nn.Module(), nodes), parameters=captured.parameters,
        buffers={name: b for name, b in captured.buffers.items() if name in read},
        inputs=captured.inputs, batch=batch.samples, units=units, constants=fixed, prelude=prelude,
        batch_layout={n.name: n.meta["samples"] for n in nodes.nodes if "samples" in n.meta}, inseparable=mixed,
        counts=counts, batched=tuple(n for n in captured.inputs if inputs[n].meta.get("slopes")),
        plain=batch.flat.plain, notes=notes,
    )  # fmt: skip
    check_graph(graph)
    return graph
