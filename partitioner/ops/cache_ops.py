"""Ops of ours that only answers need: what reads or writes a cache of keys, or is cut at each sequence's position.

    start (b,)        how many positions of each sequence came before
    n                 positions in this call: sequence i is at start[i], ..., start[i] + n - 1
    slots             of a cache, a ring: position p lies in slot p % slots

Where samples are merged with others (repeat, samples, granule) the dimension that holds them is taken apart.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_LIBRARY = torch.library.Library("partitioner", "FRAGMENT")
_LIBRARY.define("slot_places(Tensor start, int n, int slots) -> Tensor")
_LIBRARY.define("seen_slots(Tensor start, int n, int slots, int window, int[] dims, int rank, int[] merged) -> Tensor")
_LIBRARY.define("extend_cache(Tensor cache, Tensor x, Tensor places, int sample, int dim) -> Tensor")
_LIBRARY.define(
    "at_positions(Tensor table, Tensor start, int rank, int sample, int repeat, int inner, int query, int n, int key, "
    "int slots) -> Tensor"
)
_LIBRARY.define("hide_unseen(Tensor scores, Tensor seen) -> Tensor")
_LIBRARY.define("cached_attention(Tensor query, Tensor key, Tensor value, Tensor mask, int n, float? scale) -> Tensor")
_LIBRARY.define("store(Tensor memory, Tensor x, Tensor fresh, int sample) -> Tensor")
_LIBRARY.define("whole(Tensor x) -> Tensor")
_LIBRARY.define("done(Tensor x) -> Tensor")
_LIBRARY.define("last_position(Tensor x, Tensor last, int sample, int dim) -> Tensor")


def slot_positions(start: torch.Tensor, n: int, slots: int) -> torch.Tensor:
    """The position (b, slots) that each slot of a ring holds once positions up to start + n - 1 are in it; below 0
    where it is empty."""
    last = (start + n - 1)[:, None]
    return last - (last - torch.arange(slots, device=start.device)) % slots


def slot_places(start: torch.Tensor, n: int, slots: int) -> torch.Tensor:
    """The slots (b, n) of each sequence's n positions."""
    return (start[:, None] + torch.arange(n, device=start.device)) % slots


def seen_slots(
    start: torch.Tensor, n: int, slots: int, window: int, dims: list[int], rank: int, merged: list[int]
) -> torch.Tensor:
    """Which slots each position may look at: those of no later one, and of the last ``window`` alone where that is not
    0; as a mask of ``rank`` dimensions, samples, positions and slots along ``dims``, all others 1. ``merged``: how
    often samples are repeated, and each of them."""
    held = slot_positions(start, n, slots)[:, None]
    own = (start[:, None] + torch.arange(n, device=start.device))[:, :, None]
    found = (held >= 0) & (held <= own)
    found = found & (held > own - window) if window else found
    outer, inner = merged
    if outer * inner > 1:
        found = found[None, :, None].expand(outer, -1, inner, -1, -1).flatten(0, 2)
    shape = [1] * rank
    for dim, size in zip(dims, found.shape, strict=True):
        shape[dim] = size
    return found.permute(sorted(range(3), key=dims.__getitem__)).reshape(shape)


def extend_cache(cache: torch.Tensor, x: torch.Tensor, places: torch.Tensor, sample: int, dim: int) -> torch.Tensor:
    """Write x, of n positions along ``dim`` of sequences along ``sample``, into its ``places`` (b, n) of ``cache``; all
    of it."""
    if cache.is_meta or x.is_meta:
        return torch.empty_like(cache, device="meta")
    if len(places) == 1:
        return cache.index_copy_(dim, places[0], x)
    rows = torch.arange(len(places), device=places.device)[:, None]
    cache.movedim((sample, dim), (0, 1))[rows, places] = x.movedim((sample, dim), (0, 1))
    return cache


def at_positions(
    table: torch.Tensor, start: torch.Tensor, rank: int, sample: int, repeat: int, inner: int, query: int, n: int,
    key: int, slots: int,
) -> torch.Tensor:
    """Of a table by positions the rows (``query``) of each sequence's n, and the columns (``key``) that its slots hold.

    Dimensions are numbered as what it meets has them, of ``rank``; -1 for none. A table is the same for all samples, or
    has them, ``repeat`` times and each ``inner`` times, where that does.
    """
    table = table.reshape((1,) * (rank - table.dim()) + tuple(table.shape))
    b, size = len(start), table.shape[sample]
    table = table.unflatten(sample, (repeat, b, inner) if size > 1 else (1, 1, 1))
    moved = [sample + 1, *(d + 2 * (d > sample) for d in (query, key) if d >= 0)]
    table = table.movedim(moved, list(range(len(moved))))
    table = table.expand(b, *table.shape[1:])
    rows = (start[:, None] + torch.arange(n, device=start.device)).clamp(max=table.shape[1] - 1) if query >= 0 else None
    held = slot_positions(start, n, slots).clamp(min=0) if key >= 0 else None
    samples = torch.arange(b, device=start.device)
    if rows is not None and held is not None:
        found = table[samples[:, None, None], rows[:, :, None], held[:, None, :].clamp(max=table.shape[2] - 1)]
    else:
        places = rows if rows is not None else held
        assert places is not None
        found = table[samples[:, None], places.clamp(max=table.shape[1] - 1)]
    found = found.movedim(list(range(len(moved))), moved)
    grown = list(found.shape)
    grown[sample], grown[sample + 2] = repeat, inner
    return found.expand(grown).flatten(sample, sample + 2)


def hide_unseen(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Scores, the lowest number where a slot may not be seen."""
    return scores.masked_fill(~seen, -math.inf)


def cached_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, n: int, scale: float | None
) -> torch.Tensor:
    """Attention of n positions to what a cache holds, (.., slots, e) and (.., slots, v), of which heads may share one:
    queries are (.., heads n, e), each head's positions together. ``mask`` is (.., n, slots), the same for all such."""
    if query.is_meta:
        return query.new_empty((*query.shape[:-1], value.shape[-1]))
    heads = query.shape[-2] // n
    mask = mask if 1 in (heads, n) else torch.cat([mask] * heads, -2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def last_position(x: torch.Tensor, last: torch.Tensor, sample: int, dim: int) -> torch.Tensor:
    """Of each sequence along ``sample`` the position ``last`` (b,) along ``dim``, which stays, of 1."""
    if x.is_meta:
        return x.narrow(dim, 0, 1).clone()
    moved = x.movedim((sample, dim), (0, 1))
    return moved[torch.arange(len(last), device=last.device), last][:, None].movedim((0, 1), (sample, dim))


def store(memory: torch.Tensor, x: torch.Tensor, fresh: torch.Tensor, sample: int) -> torch.Tensor:
    """Write the samples of x that are ``fresh`` (b,) into ``memory``, of the same shape; all of it."""
    if memory.is_meta or x.is_meta:
        return torch.empty_like(memory, device="meta")
    memory.movedim(sample, 0)[fresh] = x.movedim(sample, 0)[fresh]
    return memory


def whole(x: torch.Tensor) -> torch.Tensor:
    """All of x, on ranks that have a part each."""
    return x.view_as(x)


def done(x: torch.Tensor) -> torch.Tensor:
    """A 0 once x is there."""
    return torch.zeros((), dtype=x.dtype, device=x.device)


OPS = (
    slot_places, seen_slots, store, done, whole, extend_cache, at_positions, hide_unseen, cached_attention,
    last_position,
)  # fmt: skip
for _op in OPS:
    _LIBRARY.impl(_op.__name__, _op, "CompositeImplicitAutograd")
