"""Selective contexts keep what a node makes: its products and attention, what runs as one op, its choices; no views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from partitioner.ops.own_ops import own
from runtime.mesh.kept_results import KINDS, as_one, contexts, kept
from tests.runtime.op_counts import counting

Run = Callable[..., torch.Tensor]


def counted(run: Run, *inputs: torch.Tensor) -> tuple[Counter[str], list[torch.Tensor]]:
    """Ops of a backward, and the gradients, of a function under selective contexts."""
    given = [x.detach().clone().requires_grad_() for x in inputs]
    made = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    with counting() as ops:
        made.square().sum().backward()
    return ops, [x.grad for x in given if x.grad is not None]


def plain(run: Run, *inputs: torch.Tensor) -> list[torch.Tensor]:
    given = [x.detach().clone().requires_grad_() for x in inputs]
    run(*given).square().sum().backward()
    return [x.grad for x in given if x.grad is not None]


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(x.tanh(), weight).tanh()


@pytest.mark.parametrize("product", [F.linear, lambda x, w: x @ w.t(), lambda x, w: torch.einsum("bsk,nk->bsn", x, w)])
def test_a_kept_product_does_not_run_again(product: Run) -> None:
    """Its backward has two products; run again it has three."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4)

    def run(x: torch.Tensor, weight: torch.Tensor, product: Run) -> torch.Tensor:
        return product(x.tanh(), weight).tanh().sin()

    held = kept(product, "product")
    ops, found = counted(lambda x, w: run(x, w, held), x, weight)
    again, others = counted(lambda x, w: run(x, w, product), x, weight)
    wanted = plain(lambda x, w: run(x, w, product), x, weight)
    assert ops["mm"] + ops["bmm"] == again["mm"] + again["bmm"] - 1 == 2
    assert ops["tanh"] == again["tanh"] == 2
    assert same(found, wanted)
    assert same(others, wanted)


def test_attention_is_kept_with_what_is_hidden_in_it() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(2, 2, 8, 4) for _ in range(3)]

    def run(attention: Run, *rows: torch.Tensor) -> torch.Tensor:
        return attention(*(x.tanh() for x in rows)).sin()

    ops, found = counted(lambda *r: run(kept(F.scaled_dot_product_attention, "attention"), *r), *rows)
    assert not [name for name in ops if "attention" in name and "backward" not in name]
    assert same(found, plain(lambda *r: run(F.scaled_dot_product_attention, *r), *rows))


def test_what_is_no_op_of_torch_runs_as_one() -> None:
    """A collective, say: its own ops are not seen, and it runs once."""
    runs: list[int] = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            def double(x: torch.Tensor) -> list[torch.Tensor]:
                runs.append(1)
                return [x * 2]

            return as_one(double, x)[0]

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * 2

    x = torch.randn(3)
    ops, found = counted(lambda x: kept(Doubled.apply, "collective")(x.tanh()).sin(), x)
    assert len(runs) == 1
    assert ops["as_one"] == 0
    assert same(found, plain(lambda x: (2 * x.tanh()).sin(), x))


def test_a_choice_is_made_once() -> None:
    scores = torch.randn(3, 5)

    def run(choose: Run, x: torch.Tensor) -> torch.Tensor:
        probabilities = x.softmax(-1)
        return probabilities.gather(1, choose(probabilities, 2, 1)).sin()

    ops, found = counted(lambda x: run(kept(own.top_indices, "choice"), x), scores)
    assert ops["topk"] == 0
    assert counted(lambda x: run(own.top_indices, x), scores)[0]["topk"] == 1
    assert same(found, plain(lambda x: run(own.top_indices, x), scores))


def test_other_ops_of_a_kept_node_run_again() -> None:
    """A node that is kept as a product keeps no activation inside it."""
    x = torch.randn(2, 4)
    ops, _ = counted(lambda x: kept(lambda x: x.exp().exp(), "product")(x).tanh(), x)
    assert ops["exp"] == 2
    assert {"product", "attention", "collective", "choice"} == KINDS
