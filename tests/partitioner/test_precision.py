"""Presets say what is cast, added up, copied and scaled; in float64 the same decisions hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from partitioner.errors import InputError
from partitioner.precision import OWN, PRESETS, Precision, preset


@pytest.mark.parametrize(
    ("name", "dtype", "gradient", "copy"),
    [
        ("own", "bfloat16", "bfloat16", None),
        ("fp32", "float32", "float32", None),
        ("bf16", "bfloat16", "float32", "float32"),
        ("bf16", "float32", "float32", None),  # what stays in float32 is its own copy
        ("fp16", "float16", "float32", "float32"),
        ("bf16-pure", "bfloat16", "bfloat16", None),
    ],
)
def test_of_a_parameter(name: str, dtype: str, gradient: str, copy: str | None) -> None:
    found = preset(name)
    assert (found.gradient_of(dtype), found.state_of(dtype)) == (gradient, copy)
    assert str(found) == name


def test_the_same_in_float64() -> None:
    for name, row in PRESETS.items():
        wide = row.promoted()
        assert [bool(getattr(wide, key)) for key in ("compute", "gradients", "state", "loss_scale")] == [
            bool(getattr(row, key)) for key in ("compute", "gradients", "state", "loss_scale")
        ], name
        assert {wide.compute, wide.gradients, wide.state} <= {"", "float64"}
    assert PRESETS["bf16"].promoted().state_of("float64") == "float64"
    assert OWN.promoted() == OWN


def test_in_words() -> None:
    assert str(preset("bf16", ("*.norm", "head"))) == "bf16, *.norm in float32, head in float32"
    assert str(Precision(compute="bfloat16", gradients="float32")) == "compute in bfloat16, gradients in float32"


@pytest.mark.parametrize(
    ("name", "float32", "words"),
    [
        ("bf61", (), "there is no precision bf61: the nearest is bf16"),
        ("fp32", ("*.norm",), r"precision fp32 computes nothing in less than float32: leave out \*\.norm"),
        ("own", ("*.norm",), "precision own computes nothing"),
    ],
)
def test_what_is_wrong_is_named(name: str, float32: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        preset(name, float32)


def test_a_precision_is_a_value() -> None:
    assert hash(PRESETS["bf16"]) == hash(replace(PRESETS["bf16"]))
