"""A module computes in the types of a precision while it is traced, and is as it was afterwards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.errors import InputError
from partitioner.precision import OWN, PRESETS, preset
from partitioner.tracing.cast_parameters import computing_in


class Small(nn.Module):
    """A tied table, a buffer, a frozen scale, real inputs, and a norm of its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(8, 4), nn.LayerNorm(4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.register_buffer("table", torch.linspace(0, 1, 4))
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, weights: Tensor, y: Tensor) -> Tensor:
        hidden = self.norm(self.embed(x) * self.scale)
        self.seen = [weights.dtype, hidden.dtype, self.table.dtype, (hidden * self.table).dtype]
        logits = self.head(hidden + weights[..., None])
        return F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())


def batch() -> dict[str, Tensor]:
    tokens = torch.arange(6).view(2, 3)
    return {"x": tokens, "weights": torch.rand(2, 3), "y": tokens}


def state(model: nn.Module) -> list[object]:
    return [(n, id(p), p.dtype, p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)] + [
        type(m) for m in model.modules()
    ]


def test_parameters_and_inputs_are_cast_and_buffers_are_not() -> None:
    model = Small()
    before = state(model)
    with computing_in(model, PRESETS["bf16"]) as made:
        assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
        assert made.head.weight is made.embed.weight
        assert [name for name, p in made.named_parameters() if not p.requires_grad] == ["scale"]
        made(**batch())
        assert made.seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert state(model) == before


def test_modules_that_stay_compute_between_casts() -> None:
    model = Small()
    with computing_in(model, preset("bf16", ("norm",))) as made:
        assert made.norm.weight.dtype == torch.float32
        assert made.embed.weight.dtype == torch.bfloat16
        entering = torch.rand(2, 4).bfloat16()
        assert torch.equal(made.norm(entering), nn.LayerNorm(4)(entering.float()).bfloat16())
        assert made.norm(entering.float()).dtype == torch.float32
        made(**batch())
        assert made.seen[1] == torch.bfloat16
    assert type(model.norm) is nn.LayerNorm


def test_what_raises_inside_leaves_the_model_as_it_was() -> None:
    model = Small()
    before = state(model)
    with pytest.raises(ZeroDivisionError), computing_in(model, preset("bf16", ("norm",))):
        raise ZeroDivisionError
    assert state(model) == before


def test_a_graph_is_traced_in_its_precision() -> None:
    model = Small()
    before = state(model)
    graph = trace(model, batch(), precision=preset("bf16", ("norm",)))
    assert state(model) == before
    kinds = Counter(p.dtype for p in graph.parameters.values())
    assert kinds == {torch.bfloat16: 2, torch.float32: 2}
    assert graph.precision == preset("bf16", ("norm",))
    assert trace(model, batch()).precision == OWN
    made = [n.meta["val"].dtype for n in graph.nodes.values() if str(n.target) == "aten.linear.default"]
    assert made == [torch.bfloat16]


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="float32=nrom names no module of Small"):
        trace(Small(), batch(), precision=preset("bf16", ("nrom",)))


def test_without_values_nothing_is_copied() -> None:
    model = Small()
    before = state(model)
    with computing_in(model, PRESETS["bf16"], with_values=False) as made:
        assert {(p.device.type, p.dtype) for p in made.parameters()} == {("meta", torch.bfloat16)}
    assert state(model) == before


def test_whole_numbers_are_left_alone() -> None:
    model = Small()
    model.counts = nn.Parameter(torch.arange(3), requires_grad=False)
    with computing_in(model, PRESETS["bf16"]) as made:
        assert made.counts.dtype == torch.int64
