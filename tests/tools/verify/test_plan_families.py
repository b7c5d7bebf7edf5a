"""Families of plans: all axes for what separates over samples, those without dp and micro-batches for what does not."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.gpt import model
from partitioner import Graph, search, trace
from partitioner.errors import InputError
from partitioner.precision import OWN, Precision
from tools.models.load import load
from tools.verify.plan_families import cluster, families, left_out, possible


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(*model(vocab=32, hidden=16, heads=4, seq=8, layers=4, batch=2))


def test_every_axis_is_tried(graph: Graph) -> None:
    found = {f.name: f.pins for f in families(graph, 4, 8)}
    assert {"dp", "tp", "tp + sequence parallel", "pp gpipe", "pp interleaved", "tp x pp", "tp x dp"} <= found.keys()
    assert found["dp"]["dp"] == 4
    assert left_out(graph) == ""


@pytest.mark.parametrize(("ranks", "names"), [(2, 3), (4, 4)])
def test_what_mixes_samples_keeps_them_together_and_says_so(graph: Graph, ranks: int, names: int) -> None:
    mixed = replace(graph, inseparable="roll in blocks.0 mixes samples")
    found = list(families(mixed, ranks, 8))
    assert len(found) == names
    assert {(f.pins["dp"], f.pins["micro_batch"]) for f in found} == {(1, 8)}
    assert "roll in blocks.0 mixes samples" in left_out(mixed)
    assert left_out(mixed).startswith("left out: dp and more than one micro-batch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_models_of_every_precision_are_planned(dtype: torch.dtype) -> None:
    module, batch = model(vocab=32, hidden=16, heads=4, seq=8, layers=2, batch=2)
    found = search(trace(module.to(dtype), batch, compare=False), cluster(2), 4, {"tp": 2})
    assert found.parallelism.mesh["tp"] == 2


def test_what_mixes_samples_in_one_precision_is_left_out_there() -> None:
    """T5 looks, in float16 alone, whether anything overflows."""
    source = load("hf:t5", shrink=True)

    def graph_in(precision: Precision) -> Graph:
        return trace(source.module, source.batch, compare=False, precision=precision)

    tried = list(families(graph_in(OWN), 2, 4))
    found, said = possible(tried, functools.cache(graph_in), 4)
    assert {f.name for f in tried} - {f.name for f, _ in found} == {"dp, fp16"}
    assert len(said) == 1
    assert said[0].startswith("left out: dp, fp16, as samples can't be separated: ")
    assert "dp, bf16" in {f.name for f, _ in found}


class Branching(nn.Module):
    """BART's way to look for what overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.a(x).relu()
        if hidden.dtype == torch.float16 and not torch.isfinite(hidden).all():
            hidden = hidden.clamp(-1e4, 1e4)
        return self.b(hidden).square().mean()


def test_what_branches_on_values_in_one_precision_is_left_out_there_and_refused_as_its_own() -> None:
    module, batch = Branching(), {"x": torch.randn(2, 4, 8)}

    def graph_in(precision: Precision) -> Graph:
        return trace(module, batch, compare=False, precision=precision)

    tried = list(families(graph_in(OWN), 2, 4))
    found, said = possible(tried, functools.cache(graph_in), 4)
    assert {f.name for f in tried} - {f.name for f, _ in found} == {"dp, fp16"}
    assert len(said) == 1
    assert said[0].startswith("left out: dp, fp16: Branching can't be traced")
    module, batch = module.half(), {"x": batch["x"].half()}
    with pytest.raises(InputError, match="can't be traced"):
        possible(tried, graph_in, 4)
