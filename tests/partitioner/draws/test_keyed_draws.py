"""What is drawn by key, and where; every op of torch that draws is, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from partitioner import Graph, trace
from partitioner.draws.random_calls import is_random
from partitioner.errors import InputError
from partitioner.ops.own_ops import own

Map = Callable[[torch.Tensor], torch.Tensor]
SAMPLES, SEQ, WIDTH = 4, 6, 8


class Net(nn.Module):
    def __init__(self, call: Map) -> None:
        super().__init__()
        self.linear, self.inner = nn.Linear(WIDTH, WIDTH), nn.Module()
        self.inner.forward = call

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.inner(self.linear(x)).flatten(0, 1), y.flatten())


def batch(samples: int = SAMPLES) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(samples, SEQ, WIDTH), "y": torch.randint(WIDTH, (samples, SEQ))}


def traced(call: Map, samples: int = SAMPLES) -> Graph:
    return trace(Net(call), batch(samples))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: x + torch.multinomial(x[0].softmax(-1), 1), "inner .*multinomial.default, which can't be drawn"),
        (lambda x: F.rrelu(x, training=True), r"inner \(.*test_keyed_draws.py.*aten.rrelu.default"),
        (lambda x: x + torch.poisson(x.abs().detach()), "aten.poisson.default"),
        (lambda x: x + torch.empty_like(x).random_(), "aten.random_.default"),
        (lambda x: torch.native_dropout(x, 0.5, True)[0], "aten.native_dropout.default"),
        (lambda x: x + torch.rand(SEQ, WIDTH, generator=GENERATOR), "of its own: leave out generator="),
        (lambda x: x + torch.empty_like(x).normal_(generator=GENERATOR), "a torch.Generator of its own"),
        (lambda x: x[torch.randperm(len(x))], r"inner \(.*permutes samples by torch.randperm"),
    ],
)  # fmt: skip
def test_what_has_no_key_is_refused_by_name(call: Map, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        traced(call)
    assert "\n" not in str(error.value)


GENERATOR = torch.Generator()


def test_no_op_that_draws_is_left_in_a_graph() -> None:
    graph = traced(lambda x: F.dropout(x + torch.rand_like(x), 0.1) * torch.empty(SEQ, 1).bernoulli_(0.5))
    assert not any(is_random(n.target, n.args, n.kwargs) for n in graph.nodes.values())


def test_every_op_that_torch_says_draws_is_known_as_random() -> None:
    """By its tag or by a generator among its arguments; but for those that fill an ``out`` or run backward."""
    found: set[str] = set()
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        op = getattr(getattr(torch.ops.aten, base, None), overload or "default", None) if space == "aten" else None
        if op is not None and any("Generator" in str(a.type) for a in op._schema.arguments):
            assert torch.Tag.nondeterministic_seeded in op.tags, name
            found.add(base)
    assert len(found) > 20
    assert not is_random(torch.ops.aten.scaled_dot_product_attention.default, (None, None, None), {})
    assert is_random(torch.ops.aten.scaled_dot_product_attention.default, (None, None, None, None, 0.1), {})


@pytest.mark.parametrize("samples", [SEQ, WIDTH, 2 * SEQ])
def test_positions_as_many_as_samples_are_not_taken_for_samples(samples: int) -> None:
    graph = traced(lambda x: x + torch.rand(SEQ, WIDTH) * F.dropout(torch.ones(SEQ, WIDTH), 0.5), samples)
    draws = [n for n in graph.nodes.values() if n.target == own.draw.default]
    assert [n.args[4] for n in draws] == [[SEQ, WIDTH]] * 2
    assert graph.inseparable is None


def test_draws_that_no_parameter_feeds_are_keyed_apart_from_every_unit() -> None:
    graph = traced(
        lambda x: F.dropout(F.dropout(x + torch.rand_like(x) + torch.rand_like(x) + torch.rand(()), 0.1), 0.1)
    )
    draws = [n for n in graph.nodes.values() if n.target == own.draw.default]
    drops = [n for n in graph.nodes.values() if n.target == own.dropout.default]
    keys = [(n.args[0], n.args[3]) for n in draws] + [(n.args[2], n.args[3]) for n in drops]
    seeds = {(*key.args, number) for key, number in keys}  # the input, the unit, the site
    assert len(seeds) == len(draws) + len(drops) == 5
    assert {n.name for n in draws} <= {*graph.prelude}
    inputs = {n.meta["source"]: n for n in graph.nodes.values() if n.op == "placeholder" and n.meta["kind"] == "input"}
    assert inputs["step_key"].meta["val"].shape == ()
    assert {n.args[0] for n in draws} & set(inputs.values()) == set()


def test_a_model_that_draws_nothing_reads_no_key() -> None:
    graph = traced(lambda x: F.dropout(x, 0.0))
    assert {n.meta["source"] for n in graph.nodes.values() if n.op == "placeholder"}.isdisjoint(
        {"sample_keys", "step_key"}
    )
