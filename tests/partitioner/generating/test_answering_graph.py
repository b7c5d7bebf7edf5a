"""The comparison of derived graphs sees what could be wrong in one: each fault planted here makes other logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from answers import LIMIT, Answers, Plain, derived, roughened, texts_of, worst
from hand_decoders import MADE, VOCABULARY
from torch import nn

from partitioner.generating import answering_graph
from partitioner.generating.derive import Derivation
from partitioner.graph.graph import Graph
from partitioner.ops import cache_ops

own = torch.ops.partitioner
LENGTH = 24
SEEN = 1e-6
Wrong = Callable[..., torch.Tensor]


@cache
def case(name: str) -> tuple[nn.Module, Derivation, Plain]:
    module, batch = MADE[name]()
    roughened(module)
    return module, derived(module, batch, LENGTH), Plain(module)


def error(name: str, change: Callable[[Graph], None] = lambda graph: None, answers: type[Answers] = Answers) -> float:
    """Of two rows and three texts."""
    module, derivation, plain = case(name)
    made = answers(module, derivation, change=change)
    return worst(made, plain, texts_of((LENGTH, 15, 20), VOCABULARY), VOCABULARY)


def instead(target: Any, wrong: Wrong) -> Callable[[Graph], None]:
    """A change of a graph: ``wrong(*args)`` in the place of every op ``target``; there must be one."""

    def called(*args: Any) -> torch.Tensor:
        is_shape = any(isinstance(a, torch.Tensor) and a.is_meta for a in args)
        return (target if is_shape else wrong)(*args)

    def change(graph: Graph) -> None:
        nodes = [n for n in graph.module.graph.nodes if n.target == target]
        assert nodes
        for node in nodes:
            node.target = called

    return change


def cache_off_by_one(cache: torch.Tensor, x: torch.Tensor, places: torch.Tensor, sample: int, dim: int) -> torch.Tensor:
    return own.extend_cache(cache, x, (places + 1) % cache.shape[dim], sample, dim)


def stale_key(cache: torch.Tensor, x: torch.Tensor, places: torch.Tensor, sample: int, dim: int) -> torch.Tensor:
    """The first of a call's positions stays what it was."""
    slot, rows = places[:, 0], torch.arange(len(places))
    lying = cache.movedim((sample, dim), (0, 1))
    before = lying[rows, slot].clone()
    made = own.extend_cache(cache, x, places, sample, dim)
    lying[rows, slot] = before
    return made


def rows_changed(cache: torch.Tensor, x: torch.Tensor, places: torch.Tensor, sample: int, dim: int) -> torch.Tensor:
    return own.extend_cache(cache, x.flip(sample), places, sample, dim)


def dropped_head(cache: torch.Tensor, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Of keys and values (b, h, ...)."""
    x = x.clone()
    x[:, 0] = 0
    return own.extend_cache(cache, x, *rest)


def next_rows(table: torch.Tensor, start: torch.Tensor, *rest: Any) -> torch.Tensor:
    return own.at_positions(table, start + 1, *rest)


def later_seen(start: torch.Tensor, *rest: Any) -> torch.Tensor:
    return own.seen_slots(start + 1, *rest)


def all_seen(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return scores


def wider(more: int) -> Wrong:
    def wrong(start: torch.Tensor, n: int, slots: int, window: int, *rest: Any) -> torch.Tensor:
        assert window == 5
        return own.seen_slots(start, n, slots, window + more, *rest)

    return wrong


def with_later(start: torch.Tensor, n: int, *rest: Any) -> torch.Tensor:
    """All of a call's positions are seen by each, as if padding were none."""
    return own.seen_slots(start + n - 1, 1, *rest)


def scale_left_out(*args: Any) -> torch.Tensor:
    return own.cached_attention(*args[:-1], 1.0)


def mask_left_out(mask: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return own.hide_unseen(torch.zeros_like(mask), seen)


def position_before(x: torch.Tensor, last: torch.Tensor, *rest: Any) -> torch.Tensor:
    return own.last_position(x, (last - 1).clamp(min=0), *rest)


FAULTS = {
    "a cache off by one": ("tril_buffer", own.extend_cache.default, cache_off_by_one),
    "a stale key": ("tril_buffer", own.extend_cache.default, stale_key),
    "a stale key in a window": ("window", own.extend_cache.default, stale_key),
    "a stale token that hides": ("padded", own.extend_cache.default, stale_key),
    "another row's keys": ("tril_buffer", own.extend_cache.default, rows_changed),
    "a dropped head": ("tril_buffer", own.extend_cache.default, dropped_head),
    "a dropped head of two": ("grouped in one op", own.extend_cache.default, dropped_head),
    "a table's next row": ("complex_rotary", own.at_positions.default, next_rows),
    "a table's next row and column": ("alibi", own.at_positions.default, next_rows),
    "the next position seen": ("tril_buffer", own.seen_slots.default, later_seen),
    "later positions seen": ("tril_buffer", own.seen_slots.default, with_later),
    "later positions seen in one op": ("by_one_op", own.seen_slots.default, with_later),
    "nothing hidden": ("soft_cap", own.hide_unseen.default, all_seen),
    "a wider window": ("window_in_one_op", own.seen_slots.default, wider(1)),
    "a narrower window": ("window_in_one_op", own.seen_slots.default, wider(-1)),
    "no scale": ("by_one_op", own.cached_attention.default, scale_left_out),
    "no mask": ("alibi_in_one_op", own.hide_unseen.default, mask_left_out),
    "the position before": ("by_one_op", own.last_position.default, position_before),
}


@pytest.mark.parametrize("name", sorted({name for name, _, _ in FAULTS.values()}))
def test_without_a_fault_all_is_equal(name: str) -> None:
    assert error(name) <= LIMIT


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_op_is_seen(fault: str) -> None:
    name, target, wrong = FAULTS[fault]
    assert error(name, instead(target, wrong)) > SEEN


class StartNotAdvanced(Answers):
    """Every call begins where the one before it did."""

    before = None

    def logits(self, tokens: torch.Tensor, start: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        before, self.before = self.before, start
        return super().logits(tokens, start if before is None else before, last)


@pytest.mark.parametrize("name", ["tril_buffer", "window_in_one_op"])
def test_a_start_that_is_not_advanced_is_seen(name: str) -> None:
    assert error(name, answers=StartNotAdvanced) > SEEN


@pytest.mark.parametrize("name", ["window", "window_in_one_op"])
def test_a_ring_of_too_few_slots_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = answering_graph.slots
    monkeypatch.setattr(answering_graph, "slots", lambda *sizes: right(*sizes) - 1)
    assert error(name) > SEEN


def all_held(start: torch.Tensor, n: int, slots: int) -> torch.Tensor:
    """Slots that hold nothing are taken for the first position's."""
    last = (start + n - 1)[:, None]
    return (last - (last - torch.arange(slots, device=start.device)) % slots).clamp(min=0)


def first_round(start: torch.Tensor, n: int, slots: int) -> torch.Tensor:
    """A ring's slots are taken for the positions of its first round."""
    return torch.arange(slots, device=start.device).expand(len(start), -1)


@pytest.mark.parametrize(
    ("name", "wrong"), [("tril_buffer", all_held), ("by_one_op", all_held), ("window_in_one_op", first_round)]
)
def test_wrong_slots_are_seen(name: str, wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_ops, "slot_positions", wrong)
    assert error(name) > SEEN
