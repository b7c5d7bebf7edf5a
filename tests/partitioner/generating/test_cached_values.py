"""What is kept of each text: as few bytes as there are on the way to where it is looked at, of as few positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from answers import Batch, derived
from hand_decoders import HEADS, MADE, WIDTH, WINDOW, Block, made
from torch import Tensor

from partitioner.generating.cached_values import slots
from partitioner.generating.derive import sample_dimensions
from partitioner.graph.step_inputs import is_kept
from tools.models.load import load

ROWS, LENGTH, CHUNK = 3, 40, 7
ALL, NEAR, EACH = LENGTH + CHUNK - 1, WINDOW + CHUNK - 1, WIDTH // HEADS
Kept = list[tuple[tuple[int, ...], torch.dtype]]


def kept(module: Any, batch: Batch, chunk: int = CHUNK) -> Kept:
    """Shapes and types of caches; a call of one position has the same, by the same names."""
    derivation = derived(module, batch, LENGTH, ROWS)
    many, one = (
        {n: (p.shape, p.dtype) for n, p in derivation.answering(n, chunk).parameters.items() if is_kept(n)}
        for n in (chunk, 1)
    )
    assert many == one
    assert all(not p.requires_grad for p in derivation.answering(1, chunk).parameters.values())
    samples = sample_dimensions(derivation.answering(1, chunk))
    assert all(shape[samples[n]] == ROWS for n, (shape, _) in many.items())
    return list(many.values())


def test_slots_of_a_ring() -> None:
    assert slots(40, 40, 7) == 46
    assert slots(400, 40, 7) == 46
    assert slots(8, 40, 7) == 14
    assert slots(8, 40, 1) == 8
    assert slots(1, 40, 1) == 1


@pytest.mark.parametrize("chunk", [1, 5, 12])
def test_windows_make_rings_of_window_and_chunk(chunk: int) -> None:
    float32 = torch.float32
    near = WINDOW + chunk - 1
    keys, values = ((ROWS, HEADS, EACH, near), float32), ((ROWS, HEADS, near, EACH), float32)
    assert kept(*MADE["window"](), chunk) == [keys, values] * 2


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("grouped", (ROWS, 2, ALL, EACH)), ("multi query", (ROWS, 1, ALL, EACH)),
        ("grouped in one op", (ROWS, 2, ALL, EACH)), ("multi query in one op", (ROWS, 1, ALL, EACH)),
        ("by_one_op", (ROWS, HEADS, ALL, EACH)), ("window_in_one_op", (ROWS, HEADS, NEAR, EACH)),
    ],
)  # fmt: skip
def test_heads_of_keys_alone_are_kept(name: str, shape: tuple[int, ...]) -> None:
    """Not their copies for each head of queries."""
    found = kept(*MADE[name]())
    assert len(found) == 4
    assert all(tuple(n for n in one if n != 1) == tuple(n for n in shape if n != 1) for one, _ in found)


def test_what_hides_is_kept_as_it_is_read() -> None:
    """Of tokens that hide, one truth value a position."""
    found = kept(*MADE["padded"]())
    (truths,) = {shape for shape, dtype in found if dtype == torch.bool}
    assert truths == (ROWS, 1, 1, ALL)


def mixed(block: Block, x: Tensor, tokens: Tensor) -> Tensor:
    """The same keys under two masks, other values."""
    q, k, v = block.heads(x)
    s = x.shape[1]
    apart = block.apart[:s, :s]
    turned = k.mT
    near = (q @ turned).masked_fill((apart < 0) | (apart >= WINDOW), -1e9).softmax(-1)
    far = (q @ turned).masked_fill(apart < 0, -1e9).softmax(-1)
    return block.together(near @ v + far @ v.square())


def test_what_is_looked_at_twice_reaches_as_far_as_the_farther() -> None:
    sizes = [max(shape) for shape, _ in kept(*made(mixed))]
    assert sizes == [ALL] * 6


def test_keys_are_kept_in_their_own_type() -> None:
    module, batch = MADE["by_one_op"]()
    assert {dtype for _, dtype in kept(module.bfloat16(), batch)} == {torch.bfloat16}


LAYERS = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "settings", "positions"),
    [("mistral", {"sliding_window": 8}, [14] * 4), ("gemma2", {"sliding_window": 8}, [14, 14, ALL, ALL]),
     ("llama", {}, [ALL] * 4)],
)  # fmt: skip
def test_models_of_transformers(name: str, settings: dict[str, object], positions: list[int]) -> None:
    source = load(f"hf:{name}", LAYERS | settings, seq=24, batch=2, shrink=True)
    found = [shape for shape, _ in kept(source.module, source.batch)]
    each = source.module.config.head_dim or 8
    assert [tuple(n for n in shape if n != 1) for shape in found] == [(ROWS, 2, many, each) for many in positions]
