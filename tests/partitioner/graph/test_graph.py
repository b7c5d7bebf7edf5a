from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from check import traced
from models import SWEEP, make
from torch import fx, nn

from partitioner.graph.graph import Graph
from partitioner.graph.interpret import arguments, step_values

_COPIES = {"neox": 0.1, "t5": 0.1, **dict.fromkeys(("llama", "mistral", "opt", "bert", "gemma3", "mixtral"), 0.03)}


class Recorder(fx.Interpreter):
    """Runs a graph and notes the bytes that autograd saves, each storage once, less what is kept without a backward."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.free = {*graph.constants, *graph.prelude}
        self.known: set[int] = set()
        self.alive: list[object] = []
        self.bytes = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.alive.append(result)
        if n.op == "placeholder" or n.name in self.free:
            self.known.add(result.untyped_storage().data_ptr())
        return result

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.alive.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def _measure(graph: Graph, model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    weights = dict(model.named_parameters(remove_duplicate=False))
    given = arguments(graph, weights, step_values(graph, batch))
    recorder = Recorder(graph)
    with torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda t: t):
        recorder.run(*given)
    return recorder.bytes


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", SWEEP)
def test_saved_bytes_are_what_autograd_saves(name: str, dropout: float) -> None:
    """Less exact where a CPU kernel copies: a mask to float, a view in matmul (NeoX), math attention (T5's bias)."""
    model, graph = traced(name, dropout)
    predicted = sum(bytes_ for _, bytes_ in graph.digraph.nodes(data="saved_bytes"))
    measured = _measure(graph, model, make(name)[1])
    assert predicted == pytest.approx(measured, rel=_COPIES.get(name, 1e-4))


@pytest.mark.parametrize("name", SWEEP)
def test_digraph_holds_every_value(name: str) -> None:
    model, graph = traced(name)
    digraph = graph.digraph
    assert nx.is_directed_acyclic_graph(digraph)
    assert sum(b for _, b in digraph.nodes(data="parameter_bytes")) == sum(4 * p.numel() for p in model.parameters())
    layers = [layer for _, layer in digraph.nodes(data="layer") if layer is not None]
    assert sorted(set(layers)) == list(range(len(graph.blocks)))


def test_flops_are_the_formula() -> None:
    digraph = traced("gpt")[1].digraph
    b, s, d, layers, vocabulary, heads = 2, 16, 48, 3, 101, 6
    products = layers * 2 * b * s * 12 * d * d + 2 * b * s * d * vocabulary
    attention = layers * 0.5 * 2 * b * heads * s * s * 2 * (d // heads)
    assert sum(f for _, f in digraph.nodes(data="forward_flops")) == products + attention
    assert sum(f for _, f in digraph.nodes(data="backward_flops")) == 2 * (products + attention)


def test_a_node_says_where_it_stands() -> None:
    digraph = traced("llama")[1].digraph
    [node] = [
        data for _, data in digraph.nodes(data=True)
        if data["module"] == "model.layers.1.mlp.down_proj" and data["target"] == "aten.linear.default"
    ]  # fmt: skip
    assert node["unit"] == "model.layers.1"
    assert node["layer"] == 1
    assert node["module_path"][-2:] == ("model.layers.1.mlp", "model.layers.1.mlp.down_proj")
    assert (node["shape"], node["dtype"], node["bytes"]) == ((2, 16, 48), "float32", 2 * 16 * 48 * 4)
