"""The bound between a plan in its own data types and a plain loop: rounding is within it, half of a gradient is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.gpt import model
from partitioner import Graph, trace
from partitioner.precision import PRESETS
from runtime.verify.recipe_steps import HALVED, LR, Step, apart, plain_step, rounding

Traced = tuple[torch.nn.Module, Graph, dict[str, torch.Tensor]]


def traced(precision: str) -> Traced:
    torch.manual_seed(5)
    module, batch = model(layers=2, vocab=64, hidden=32, heads=2, seq=16)
    return module, trace(module, batch, compare=False, precision=PRESETS[precision]), batch


def step(precision: str) -> Step:
    return plain_step(*traced(precision))


def test_a_plain_step_is_of_the_recipe_and_leaves_float32() -> None:
    own, cast, scaled = step("own"), step("bf16"), step("fp16")
    for found in (cast, scaled):
        assert {g.dtype for g in found.gradients.values()} == {torch.float32}
        assert 0 < apart(found, own)[0] < HALVED  # it rounds, and no more
        for name, moved in found.moved.items():
            assert torch.equal(moved, -LR * found.gradients[name])
    assert apart(own, own)[0] == 0


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.norm1.bias", "tokens.weight"])
@pytest.mark.parametrize("factor", [0.5, 2.0, 0.0])
def test_what_loses_half_of_a_gradient_is_beyond_the_bound(name: str, factor: float) -> None:
    wanted = step("bf16")
    wrong = replace(wanted, gradients=wanted.gradients | {name: factor * wanted.gradients[name]})
    assert apart(wrong, wanted)[0] > HALVED
    assert apart(wrong, wanted)[1] == f"gradient of {name}"
    moved = replace(wanted, moved=wanted.moved | {name: factor * wanted.moved[name]})
    assert apart(moved, wanted)[1] == f"the update of {name}"


def test_what_rounding_takes_far_may_be_far() -> None:
    """Twice as far as it takes a plain loop; halves of most gradients are still seen."""
    case = traced("bf16")
    wanted = plain_step(*case)
    rounded, found = rounding(*case, wanted), dict(wanted.gradients)
    length = float(found["blocks.0.norm1.bias"].norm())
    for times, is_far in ((1.9, False), (2.1, True)):
        off = found["blocks.0.norm1.bias"] * times
        near = replace(wanted, gradients=found | {"blocks.0.norm1.bias": found["blocks.0.norm1.bias"] + off})
        assert (apart(near, wanted, rounded | {"blocks.0.norm1.bias": length})[0] > HALVED) is is_far
    halves = [replace(wanted, gradients=found | {n: 0.5 * g}) for n, g in found.items()]
    seen = [apart(half, wanted, rounded)[0] > HALVED for half in halves]
    assert sum(seen) >= 0.8 * len(seen)


def test_a_gradient_that_is_missing_or_no_number_is_infinitely_far() -> None:
    wanted = step("bf16")
    missing = replace(wanted, gradients={n: g for n, g in wanted.gradients.items() if n != "head.weight"})
    assert apart(missing, wanted) == (float("inf"), "gradient of head.weight")
    strange = replace(wanted, gradients=wanted.gradients | {"head.weight": wanted.gradients["head.weight"] * torch.nan})
    assert apart(strange, wanted) == (float("inf"), "gradient of head.weight")
