from __future__ import annotations

from typing import Any

import pytest
import torch
from captured import WIDTH, Middle, Net, assert_equal, batch_of
from functions import (
    FOUR,
    Broken,
    Clipped,
    InPlace,
    Late,
    Noise,
    NoisyBackward,
    Normed,
    PerSample,
    Reads,
    Reverse,
    Round,
    Run,
    Several,
    Weighted,
    bound_early,
    scaled,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from partitioner import trace
from partitioner.errors import InputError
from partitioner.graph.tied_blocks import fold
from partitioner.layouts.from_plan import graph_digest


def _several(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
    a, b, where, three = Several.apply(h, block.norm.weight)
    return a * three + b.unsqueeze(-1) + where.unsqueeze(-1)


MIDDLES: dict[str, Middle] = {
    "rounds": lambda block, h, n: Round.apply(h),
    "rounds by a literal": lambda block, h, n: Round.apply(h, 4.0),
    "bound early": lambda block, h, n: bound_early(h, 2),
    "reverses": lambda block, h, n: Reverse.apply(h),
    "late context": lambda block, h, n: Late.apply(h),
    "several results": _several,
    "one of several": lambda block, h, n: Several.apply(h, h.detach())[1].unsqueeze(-1),
    "a weight": lambda block, h, n: Weighted.apply(h, block.up.weight, block.norm.bias),
    "no bias": lambda block, h, n: Weighted.apply(h, block.up.weight, None),
    "not linear": lambda block, h, n: Clipped.apply(h),
    "held": lambda block, h, n: Round.apply(h, FOUR),
    "without gradient": lambda block, h, n: h + Round.apply(h.detach()),
    "in no_grad": lambda block, h, n: h + _in_no_grad(h),
    "reentrant checkpoint": lambda block, h, n: checkpoint(block.norm, h, use_reentrant=True),
}


def _in_no_grad(h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return Round.apply(h)


@pytest.mark.parametrize("name", MIDDLES)
def test_loss_and_gradients_are_those_of_the_module(name: str) -> None:
    graph = assert_equal(Net(MIDDLES[name]), batch_of())
    assert graph.inseparable is None
    assert len(graph.blocks) == 6
    assert len({u.kind for u in graph.blocks}) == 1


def test_the_shortcut_is_taken_where_blocks_call_one_function() -> None:
    said: list[str] = []
    trace(Net(MIDDLES["rounds"]), batch_of(), said.append)
    assert "tracing: capturing, alike blocks once" in said


def test_functions_of_one_name_are_told_apart() -> None:
    """Blocks that differ in nothing but which Function they call: half of them turn gradients around."""
    kinds = [scaled(factor) for factor in (1.0, -2.0)]
    graph = assert_equal(Net(lambda block, h, n: kinds[n >= 3].apply(h)), batch_of())
    assert {str(n.target) for n in graph.nodes.values() if "Scale" in str(n.target)} == {
        "autograd.Function[scaled.<locals>.Scale]", "autograd.Function[scaled.<locals>.Scale#2]",
    }  # fmt: skip
    assert len({u.kind for u in graph.blocks}) > 1


def test_literals_are_told_apart() -> None:
    assert_equal(Net(lambda block, h, n: Round.apply(h, 2.0 if n < 4 else 3.0)), batch_of())


def test_the_same_model_has_the_same_digest_again() -> None:
    digests = {graph_digest(fold(trace(Net(lambda block, h, n: scaled(0.5).apply(h), 2), batch_of()))) for _ in "ab"}
    assert len(digests) == 1


def test_an_autograd_function_prints_under_its_name() -> None:
    graph = trace(Net(MIDDLES["rounds"], 2), batch_of())
    assert graph.module.code.count("Round(") == 2  # one a block


def test_it_is_kept_in_the_middle_of_autocast() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return (x @ x.transpose(-1, -2)).float()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient @ gradient.new_ones(gradient.shape[-1], WIDTH)

    def middle(block: nn.Module, h: torch.Tensor, number: int) -> torch.Tensor:
        return Product.apply(h).sum(-1, keepdim=True)

    with torch.autocast("cpu", torch.bfloat16):
        graph = trace(Net(middle, 1), batch_of())
    (call,) = [n.target for n in graph.nodes.values() if "Product" in str(n.target)]
    x = batch_of()["x"]
    with torch.autocast("cpu", torch.bfloat16):
        wanted = Product.apply(x)
    assert torch.equal(call(x), wanted)
    assert not torch.equal(call(x), Product.apply(x))


@pytest.mark.parametrize("function", [Normed, PerSample])
def test_a_backward_that_mixes_samples_does_not_separate(function: Any) -> None:
    graph = trace(Net(lambda block, h, n: function.apply(h), 1), batch_of())
    assert f"autograd.Function[{function.__name__}]" in str(graph.inseparable)


def test_gradients_on_meta_tensors_are_there_where_the_function_gives_them() -> None:
    graph = trace(Net(_several, 1), batch_of())
    (call,) = {n.target for n in graph.nodes.values() if str(n.target) == "autograd.Function[Several.0.1]"}
    x, y = (torch.empty(4, 3, WIDTH, device="meta", requires_grad=True) for _ in "ab")
    result = call(x, y)
    assert result.is_meta
    assert result.shape == (4, 3 * WIDTH + 3)
    result.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert y.grad is None


REFUSED: dict[str, tuple[Middle, str]] = {
    "in place": (lambda block, h, n: InPlace.apply(h * 1), "InPlace .* changes its arguments in place"),
    "draws": (lambda block, h, n: Noise.apply(h), "Noise .* draws random numbers"),
    "draws in backward": (lambda block, h, n: NoisyBackward.apply(h), "NoisyBackward .* draws random numbers"),
    "a module": (lambda block, h, n: Run.apply(h, block.norm), "Run .* is given a module"),
    "a closure": (lambda block, h, n: Run.apply(h, lambda x: block.norm(x)), "Run .* is given a module"),
    "a method": (lambda block, h, n: Run.apply(h, block.norm.forward), "Run .* is given a module"),
    "values": (lambda block, h, n: Reads.apply(h), "Reads .* can't run on fake tensors"),
    "a wrong gradient": (lambda block, h, n: Broken.apply(h), "Broken .* has a backward that can't run"),
    "vmap": (lambda block, h, n: torch.vmap(Late.apply)(h), "Late.* runs inside a transform of torch.func"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_kept_is_refused_by_name_and_place(name: str) -> None:
    middle, words = REFUSED[name]
    with pytest.raises(InputError, match=rf"autograd.Function \S*functions\.{words}") as caught:
        trace(Net(middle, 2), batch_of())
    assert "test_kept_functions.py:" in str(caught.value)
    assert "in blocks.0" in str(caught.value)


def test_a_parameter_that_a_function_reaches_behind_its_arguments_is_refused() -> None:
    outside = nn.Linear(WIDTH, WIDTH)

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x @ outside.weight

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient @ outside.weight.T

    with pytest.raises(InputError, match="Hidden"):
        trace(Net(lambda block, h, n: Hidden.apply(h), 1), batch_of())


def test_apply_is_torchs_own_again() -> None:
    before = torch.autograd.function._SingleLevelFunction.apply
    trace(Net(MIDDLES["rounds"], 1), batch_of())
    assert torch.autograd.function._SingleLevelFunction.apply == before
    assert not hasattr(torch.ops.partitioner_capture, "autograd_function")


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_of_what_needs_no_gradient_has_none() -> None:
    """As torch does it: a block whose inputs have no gradient is then not trained."""

    class Frozen(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            h = checkpoint(self.blocks[0], x, use_reentrant=True)
            return F.cross_entropy(self.last(self.first(h)).flatten(0, 1), y.flatten())

    assert_equal(Frozen(lambda block, h, n: h, 1), batch_of())
