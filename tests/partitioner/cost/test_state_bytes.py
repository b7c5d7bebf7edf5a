"""AdamW's state by the precision of a weight, divided by ZeRO's stages, and its update's bytes; counted by hand."""

from __future__ import annotations

import pytest
import torch
from hand_counted import cluster

from partitioner.cost.state_bytes import State, held_state, is_cast, optimizer_seconds, state, state_bytes
from partitioner.precision import OWN, PRESETS, Precision
from partitioner.software import Software

F32, BF16 = torch.float32, torch.bfloat16
BF16_COPIES = PRESETS["bf16"]


@pytest.mark.parametrize(
    ("dtype", "precision", "bytes_"),
    [
        (torch.float64, "own", (8, 8, 16)),
        (F32, "own", (4, 4, 8)),
        (F32, "fp32", (4, 4, 8)),
        (BF16, "own", (2, 2, 4)),
        (BF16, "bf16-pure", (2, 2, 4)),
        (BF16, "bf16", (2, 4, 12)),  # two moments and the copy that is updated, in float32
        (torch.float16, "fp16", (2, 4, 12)),
        (F32, "bf16", (4, 4, 8)),  # one that stays in float32 needs no copy
    ],
)
def test_of_one_parameter(dtype: torch.dtype, precision: str, bytes_: tuple[int, int, int]) -> None:
    assert state(dtype, PRESETS[precision]) == State(*bytes_)
    assert is_cast(dtype, PRESETS[precision]) == (bytes_[1] != dtype.itemsize)


def test_gradients_in_the_type_of_ops_beside_copies() -> None:
    short = Precision(compute="bfloat16", state="float32")
    assert state(BF16, short) == State(2, 2, 12)
    assert not is_cast(BF16, short)


@pytest.mark.parametrize(
    ("zero", "divided"),
    [(0, (4000, 4000, 8000)), (1, (4400, 4000, 800)), (2, (4400, 400, 800)), (3, (400, 400, 800))],
)
def test_zero_divides_over_ten_ranks(zero: int, divided: tuple[int, int, int]) -> None:
    assert held_state(1000, F32, OWN, zero, 10) == State(*divided)
    assert state_bytes(1000, F32, OWN, zero, 10) == sum(divided)
    assert held_state(1000, F32, OWN, zero, 1) == State(4000, 4000, 8000)


@pytest.mark.parametrize(("zero", "whole"), [(0, 18000), (1, 2000 + 4000 + 1200), (2, 2000 + 400 + 1200), (3, 1600)])
def test_zero_3_keeps_of_a_weight_its_copy_alone(zero: int, whole: int) -> None:
    assert state_bytes(1000, BF16, BF16_COPIES, zero, 10) == whole


def test_the_update_reads_and_writes_all_of_it() -> None:
    assert optimizer_seconds(1000, F32, OWN, cluster(memory=1.0)) == 2 * 16 * 1000
    assert optimizer_seconds(1000, BF16, BF16_COPIES, cluster(memory=10.0)) == 2 * 18 * 100
    half = cluster(memory=1.0, software=Software(efficiency=0.5))
    assert optimizer_seconds(1000, F32, OWN, half) == 2 * 2 * 16 * 1000
