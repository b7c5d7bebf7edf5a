"""What a user keeps in a checkpoint comes back as it was, and nothing of it is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from small_engine import build, local, samples

from partitioner.errors import InputError
from runtime.checkpoint.plain_data import packed, unpacked

VALUES: list[Any] = [
    None, True, 3, -2.5, "text", [1, [2, "x"]], (1, (2,), []), {"a": {"b": None}}, b"\x00\xff",
    torch.arange(6).view(2, 3), torch.tensor(2.5), torch.tensor([1.0, -0.0], dtype=torch.bfloat16), torch.zeros(0, 3),
    torch.tensor([True, False]), {"rows": [{"generator": torch.Generator().manual_seed(1).get_state()}]},
]  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_it_comes_back(value: Any) -> None:
    assert _same(unpacked(json.loads(json.dumps(packed(value)))), value)


@pytest.mark.parametrize(("value", "words"), [({1: 2}, "data has a key 1"), ([{"f": print}], r"data\[0\].f is a b")])
def test_what_json_can_not_hold_is_refused(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        packed(value)


def test_an_engine_keeps_it(tmp_path: Path) -> None:
    program = small.program()
    engine = build(program)
    engine.step(local(program, engine, small.batch(samples(program))))
    engine.save(tmp_path, data={"position": (1, torch.arange(3))})
    found = build(program).load(tmp_path)
    assert found.step == 1
    assert _same(found.data, {"position": (1, torch.arange(3))})
