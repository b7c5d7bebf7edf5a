"""``trace``: an unmodified nn.Module and an example batch become a normalized training Graph that ends in the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from partitioner.batch_numbers import name_batch_numbers
from partitioner.blocks import find_units
from partitioner.capture import Captured, Example, alike_blocks, capture, example
from partitioner.capture_check import check_capture
from partitioner.check import check_graph
from partitioner.compiled import as_written
from partitioner.constants import merge_equal
from partitioner.counts import Count
from partitioner.draws import separate_units
from partitioner.errors import InputError
from partitioner.graph import Graph, gradient_free, placeholders
from partitioner.hooks import refuse_hooks
from partitioner.normalize import normal_samples
from partitioner.rehearse import CantRehearse
from partitioner.runs import Run
from partitioner.sample_choices import Traced, first_that_holds
from partitioner.size_laws import Numbers, note_sizes, numbers_in, uneven
from partitioner.unroll import UnlikeError, unroll
from partitioner.untouched import untouched

Progress = Callable[[str], None]


def trace(
    model: nn.Module, batch: Mapping[str, Any], progress: Progress = lambda text: None, compare: bool = True
) -> Graph:  # fmt: skip
    """The training graph of ``model(**batch)``, whose output is a scalar loss, or has one (``outputs.loss_of``).

    ``model`` lies on any device, meta included, and is left as it was, and so is the random state. ``batch`` maps
    argument names to example tensors, to plain values, which stay as they are, or to dicts, lists and tuples of them.
    Raises InputError, naming the module and source line, when the model can't be captured as it would run.
    ``progress`` is told what goes on, in words. The graph is compared with the module where that has values and is
    small enough (capture_check.py), and is refused where the two differ; a note says where they were not compared.
    ``compare=False`` leaves that to the caller. What is under ``torch.compile`` is traced as it was written, and named
    as without it.
    """
    with as_written(model) as plain:
        return _trace_plain(plain, batch, progress, compare)


def _trace_plain(model: nn.Module, batch: Mapping[str, Any], progress: Progress, compare: bool) -> Graph:
    progress("tracing: looking for blocks that run alike")
    refuse_hooks(model)
    given = example(batch)
    try:
        return _told_apart(model, batch, given, alike_blocks(model, given), [], progress, compare)
    except (CantRehearse, UnlikeError) as error:
        notes = [f"every block was traced by itself: {error}"]
        return _told_apart(model, batch, given, (), notes, progress, compare)


def _told_apart(
    model: nn.Module, batch: Mapping[str, Any], given: Example, runs: tuple[Run, ...], notes: list[str],
    progress: Progress, compare: bool,
) -> Graph:  # fmt: skip
    """The graph of ``model``, of which export does not see the blocks that ``runs`` skip, with its samples found."""
    progress(f"tracing: capturing, {'alike blocks once' if runs else 'every block by itself'}")
    ready = [capture(model, given, runs, notes)]
    progress(f"tracing: {len(ready[0].module.graph.nodes):,} ops captured, again with another batch size")

    def at_size(choice: Example, size: int) -> Traced:
        second = _resized(model, choice, size, runs)
        first = ready.pop() if ready else capture(model, choice, runs, notes)
        traced, sizes = _trace(model, choice, (first, second), size, runs, notes, progress)
        return replace(traced, graph=_compared(traced.graph, model, batch, sizes, progress)) if compare else traced

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


def _resized(model: nn.Module, choice: Example, size: int, runs: tuple[Run, ...]) -> Captured:
    try:
        return capture(model, choice.resized(size, choice.long), runs, [])
    except InputError as error:
        raise InputError(f"the model runs with {choice.samples} samples and not with {size}: {error}") from error


def _trace(
    model: nn.Module, batch: Example, captured: tuple[Captured, Captured], size: int, runs: tuple[Run, ...],
    notes: list[str], progress: Progress,
) -> tuple[Traced, tuple[int, int]]:  # fmt: skip
    """The graph of two captures, of ``batch`` and of one of ``size``: what differs follows from the batch."""
    progress("tracing: telling samples apart")
    first, second = captured
    graphs, sizes = (first.module.graph, second.module.graph), (batch.samples, size)
    seen = [numbers_in(graph) for graph in graphs]
    name_batch_numbers(*graphs, sizes, (first.buffers, second.buffers))
    counts, mixed = normal_samples(first.module, first.buffers, sizes[0])
    if mixed is not None:
        _check_growth(model, batch, seen, size, runs)
    others, _ = normal_samples(second.module, second.buffers, sizes[1])
    note_sizes(*graphs, sizes)
    for count, other in zip(counts, others, strict=True):
        note_sizes(count.module.graph, other.module.graph, sizes)
    said = tuple(dict.fromkeys((*notes, *_tables(batch))))
    graph = _graph(first, unroll(first.module.graph, runs), batch, counts, mixed and mixed.words, said)
    progress(f"tracing: {len(graph.nodes):,} ops in {len(graph.blocks)} blocks")
    return Traced(graph, mixed.read if mixed else frozenset()), sizes


def _check_growth(
    model: nn.Module, batch: Example, seen: list[list[Numbers]], size: int, runs: tuple[Run, ...]
) -> None:  # fmt: skip
    """What takes a batch apart may do so by halves or pairs: a third size tells, where the model runs with it."""
    third = (2 if size != 2 * batch.samples else 3) * batch.samples
    try:
        captured = capture(model, batch.resized(third, batch.long), runs, [])
    except InputError:
        return
    first, second = seen
    if where := uneven(first, second, numbers_in(captured.module.graph), (batch.samples, size, third)):
        raise InputError(
            f"{where} has sizes or numbers that do not grow evenly from {batch.samples} to {size} and {third} samples: "
            "let them be so many for each sample (keep two dimensions of samples apart, do not flatten them into one)"
        )


def _tables(batch: Example) -> list[str]:
    """What is said of inputs that are as long as the batch and carry no samples."""
    tensors = batch.flat.tensors.items()
    names = [n for n, t in tensors if t.dim() and t.shape[0] == batch.samples and n not in batch.long]
    return [f"the same for all samples, though as long as the batch: {', '.join(names)}"] if names else []


def _compared(
    graph: Graph, model: nn.Module, batch: Mapping[str, Any], sizes: tuple[int, int], progress: Progress
) -> Graph:  # fmt: skip
    progress("tracing: comparing the graph with the module")
    try:
        with untouched(model, lambda: None):
            said = check_capture(graph, model, batch, sizes)
    except (RuntimeError, IndexError, ValueError) as error:  # a graph that does not run at another size
        words = next(iter(str(error).splitlines()), "")
        raise InputError(f"what was traced does not run with another number of samples: {words}") from error
    return replace(graph, notes=(*graph.notes, said)) if said else graph


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
