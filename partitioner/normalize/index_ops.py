"""Indexes written as what they are: slices, tables looked up, reshapes, and gathers where an index counts along.

    h[arange(b), place]    -->    gather(h, 1, place) of each sample by itself
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx

from partitioner.graph.dependence import constants, evaluate, input_free
from partitioner.graph.nodes import emit, shape_of

aten = torch.ops.aten
_INTEGERS = (torch.int64, torch.int32)
_COUNTING = (aten.argmax.default, aten.argmin.default, aten.argsort.default, torch.ops.partitioner.top_indices.default)


def slice_indexes(graph: fx.Graph, buffers: dict[str, torch.Tensor]) -> None:
    """A fixed index that counts along one dimension is a slice (Falcon's key and value heads)."""
    fixed = constants(graph)
    found: dict[fx.Node, tuple[int, fx.Node]] = {}
    for node in graph.nodes:
        if node.target == aten.index.Tensor and node not in fixed:
            places = [(dim, place) for dim, place in enumerate(node.args[1]) if place is not None]
            if len(places) == 1 and places[0][1] in fixed and len(shape_of(places[0][1])) == 1:
                found[node] = places[0]
    values = evaluate(graph, fixed, {place for _, place in found.values()}, buffers)
    for node, (dim, place) in found.items():
        source, wanted = node.args[0], values[place]
        assert isinstance(source, fx.Node)
        rows = (wanted % shape_of(source)[dim]).tolist() if not wanted.is_floating_point() else []
        if rows and wanted.dtype != torch.bool and rows == list(range(rows[0], rows[0] + len(rows))):
            with graph.inserting_before(node):
                new = emit(graph, node, aten.slice.Tensor, source, dim, rows[0], rows[-1] + 1)
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def plain_indexes(graph: fx.Graph, buffers: dict[str, torch.Tensor]) -> None:
    """Rows of a table picked by one index are an embedding; an index that only counts (vmap's masks) is a reshape.

    A table depends on no input: rows of what a batch makes are picked from that batch.
    """
    indexes = [n for n in graph.nodes if n.target == aten.index.Tensor and None not in n.args[1]]
    fixed = constants(graph)
    tables = input_free(graph)
    whole = [n for n in indexes if math.prod(shape_of(n)) == math.prod(shape_of(n.args[0]))]
    counting = [n for n in whole if set(n.args[1]) <= fixed]
    values = evaluate(graph, fixed, {place for n in counting for place in n.args[1]}, buffers)
    for node in indexes:
        source, places = node.args
        with graph.inserting_before(node):
            if node in counting and _is_grid(shape_of(source), [values[n] for n in places]):
                new = emit(graph, node, aten.reshape.default, source, list(shape_of(node)))
            elif len(places) == 1 and source in tables and _is_table(source, places[0]):
                new = _looked_up(graph, node, source, places[0])
            else:
                continue
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _is_grid(shape: tuple[int, ...], places: list[torch.Tensor]) -> bool:
    """Whether each index counts along a dimension of its own, in the order of the dimensions that it indexes."""
    last = -math.inf
    for size, place in zip(shape, places, strict=False):
        long = [d - place.dim() for d, n in enumerate(place.shape) if n > 1]
        if place.numel() != size or len(long) != 1 or long[0] <= last or place.flatten().tolist() != list(range(size)):
            return False
        last = long[0]
    return True


def _is_table(node: fx.Node, place: fx.Node) -> bool:
    return node.meta["val"].is_floating_point() and place.meta["val"].dtype in _INTEGERS


def _looked_up(graph: fx.Graph, node: fx.Node, source: fx.Node, place: fx.Node) -> fx.Node:
    """Rows of any number of dimensions, as rows of one."""
    rows, *rest = shape_of(source)
    place = _positive(graph, node, place, rows)
    table = source if len(rest) == 1 else emit(graph, node, aten.reshape.default, source, [rows, math.prod(rest)])
    found = emit(graph, node, aten.embedding.default, table, place)
    return found if len(rest) == 1 else emit(graph, node, aten.reshape.default, found, [*shape_of(place), *rest])


def _positive(graph: fx.Graph, node: fx.Node, place: fx.Node, size: int) -> fx.Node:
    """An index in int64, negative ones counted from the end, as an index op counts and a gather does not."""
    if place.meta["val"].dtype != torch.int64:
        place = emit(graph, node, aten.to.dtype, place, torch.int64)
    if place.target in _COUNTING or (place.op == "placeholder" and place.meta["kind"] == "input"):
        return place
    behind = emit(graph, node, aten.add.Tensor, place, size)
    return emit(graph, node, aten.where.self, emit(graph, node, aten.lt.Scalar, place, 0), behind, place)


@dataclass(frozen=True)
class _Aligned:
    """An index op of which some indexes count along a dimension of what all broadcast to.

    ``tied`` are (dimension of the source, dimension of the broadcast) of those; ``picks`` the others, by dimension.
    """

    source: fx.Node
    wide: tuple[int, ...]
    tied: tuple[tuple[int, int], ...]
    picks: tuple[tuple[int, fx.Node], ...]
    first: int

    @property
    def rest(self) -> list[int]:
        """Dimensions of the source that no index stands for."""
        known = {dim for dim, _ in (*self.tied, *self.picks)}
        return [dim for dim in range(len(shape_of(self.source))) if dim not in known]

    @property
    def free(self) -> list[int]:
        """Dimensions of the broadcast that no index counts along."""
        return [w for w in range(len(self.wide)) if w not in {place for _, place in self.tied}]


def aligned_indexes(graph: fx.Graph, buffers: dict[str, torch.Tensor]) -> None:
    """Where an index counts along a dimension, the others pick from each of its elements by itself: a gather."""
    fixed = constants(graph)
    indexes = [n for n in graph.nodes if n.target == aten.index.Tensor and n not in fixed]
    mixed = [n for n in indexes if any(p in fixed for p in n.args[1]) and not all(p in fixed for p in n.args[1] if p)]
    values = evaluate(graph, fixed, {p for n in mixed for p in n.args[1] if p in fixed}, buffers)
    for node in mixed:
        found = _aligned(node, values)
        if found is not None:
            with graph.inserting_before(node):
                new = _gathered(graph, node, found)
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _aligned(node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> _Aligned | None:
    source, places = node.args
    assert isinstance(source, fx.Node)
    given = [(dim, place) for dim, place in enumerate(places) if place is not None]  # type: ignore[arg-type]
    if any(place.meta["val"].dtype not in _INTEGERS for _, place in given):
        return None
    wide = tuple(torch.broadcast_shapes(*(shape_of(place) for _, place in given)))
    along = {dim: _counts_along(values.get(place), shape_of(source)[dim], wide) for dim, place in given}
    tied = tuple(sorted(((dim, w) for dim, w in along.items() if w is not None), key=lambda row: row[1]))
    picks = tuple((dim, place) for dim, place in given if along[dim] is None)
    if not tied or len(picks) != 1 or len({w for _, w in tied}) < len(tied):
        return None
    dims = [dim for dim, _ in given]
    return _Aligned(source, wide, tied, picks, dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0)


def _counts_along(place: torch.Tensor | None, size: int, wide: tuple[int, ...]) -> int | None:
    """The dimension of ``wide`` along which an index counts from 0 to ``size``; None where it does otherwise."""
    if place is None or place.numel() != size or place.flatten().tolist() != list(range(size)):
        return None
    long = [d + len(wide) - place.dim() for d, n in enumerate(place.shape) if n > 1]
    return long[0] if len(long) == 1 and wide[long[0]] == size else None


def _gathered(graph: fx.Graph, node: fx.Node, a: _Aligned) -> fx.Node:
    """Counted dimensions first, then the one picked from, then the rest; in the end as the index op has them."""
    ((picked, place),) = a.picks
    sizes, tied, many = shape_of(a.source), [w for _, w in a.tied], math.prod(a.wide[w] for w in a.free)
    rest = [sizes[dim] for dim in a.rest]
    source = emit(graph, node, aten.permute.default, a.source, [*(dim for dim, _ in a.tied), picked, *a.rest])
    place = _positive(graph, node, place, sizes[picked])
    short = [1] * (len(a.wide) - len(shape_of(place)))
    place = emit(graph, node, aten.reshape.default, place, [*short, *shape_of(place)]) if short else place
    if shape_of(place) != a.wide:
        place = emit(graph, node, aten.expand.default, place, list(a.wide))
    place = emit(graph, node, aten.permute.default, place, [*tied, *a.free])
    counted = [a.wide[w] for w in tied]
    place = emit(graph, node, aten.reshape.default, place, [*counted, many, *[1] * len(rest)])
    place = emit(graph, node, aten.expand.default, place, [*counted, many, *rest]) if rest else place
    found = emit(graph, node, aten.gather.default, source, len(tied), place)
    found = emit(graph, node, aten.reshape.default, found, [*counted, *(a.wide[w] for w in a.free), *rest])
    made = [*tied, *a.free, *(len(a.wide) + n for n in range(len(rest)))]
    ahead = sum(dim < a.first for dim in a.rest)
    behind = [len(a.wide) + n for n in range(len(rest))]
    wanted = [*behind[:ahead], *range(len(a.wide)), *behind[ahead:]]
    return emit(graph, node, aten.permute.default, found, [made.index(dim) for dim in wanted])
