from __future__ import annotations

import pytest
import torch
from check import error, interpret, run_eagerly, traced
from models import SWEEP, TOKENS, VOCABULARY, Gpt, make
from torch import nn
from torch.nn import functional as F

from partitioner.errors import InputError
from partitioner.graph.resize_batch import resize
from partitioner.sharding.op_rules import rule_of
from partitioner.tracing.trace import trace
from runtime.verify.captured_graph import captured


@pytest.mark.parametrize("name", SWEEP)
def test_graph_equals_model_at_every_batch_size(name: str) -> None:
    model, graph = traced(name)
    for size in (1, 3):
        found = captured(model, graph, make(name, size)[1])
        assert found.error <= found.limit < 1e-4, found


@pytest.mark.parametrize("name", SWEEP)
def test_every_op_has_a_rule_and_the_loss_separates(name: str) -> None:
    graph = traced(name)[1]
    free = {*graph.constants, *graph.prelude}
    ops = [n for n in graph.module.graph.nodes if n.op == "call_function" and n.name not in free]
    assert all(rule_of(str(n.target)) for n in ops)
    assert graph.inseparable is None
    assert [n.name for n in ops] == [name for unit in graph.units for name in unit.nodes]


@pytest.mark.parametrize("name", SWEEP)
def test_no_square_mask_is_kept_where_a_flag_says_it(name: str) -> None:
    graph = traced(name)[1]
    attention = [n for n in graph.nodes.values() if n.target == torch.ops.aten.scaled_dot_product_attention.default]
    if name in ("gpt", "qwen3", "gpt2", "neox", "phi3"):
        assert len(attention) == len(graph.blocks) == 3
        assert all(n.args[3] is None and n.args[5] is True for n in attention)


@pytest.mark.parametrize("name", SWEEP)
def test_no_constant_is_there_twice(name: str) -> None:
    graph = traced(name)[1]
    made = [graph.nodes[n] for n in graph.constants if graph.nodes[n].op == "call_function"]
    assert len({(n.target, str(n.args), str(n.kwargs)) for n in made}) == len(made)
    assert made or name != "t5"


def test_aux_loss_is_refused_by_name() -> None:
    model, batch = make("mixtral", output_router_logits=True)
    assert "mixes samples" in str(trace(model, batch).inseparable)


class Net(nn.Module):
    """A classifier with one layer of choice in the middle."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), middle, nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.last(self.middle(self.first(x))), y)


def _classes(samples: int = 4) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(samples, 6), "y": torch.arange(samples) % 5}


class Center(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.sum(0) / len(x)


def test_a_sum_over_samples_is_refused_by_name() -> None:
    assert "in middle mixes samples" in str(trace(Net(Center()), _classes()).inseparable)


def test_a_term_that_no_sample_owns_counts_once() -> None:
    class Regularized(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x, y) + self.first.weight.square().sum()

    graph = trace(Regularized(nn.Identity()), _classes())
    assert graph.inseparable is None
    assert "batch_share" in graph.nodes


def test_batch_statistics_are_refused_by_name() -> None:
    graph = trace(Net(nn.BatchNorm1d(8, track_running_stats=False)), _classes())
    assert "middle mixes samples" in str(graph.inseparable)


def test_state_that_outlives_a_step_is_refused() -> None:
    with pytest.raises(InputError, match="middle.num_batches_tracked .*outlives a step"):
        trace(Net(nn.BatchNorm1d(8)), _classes())


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_data_dependent_branch_names_module_and_line() -> None:
    with pytest.raises(InputError, match=r"can't be traced in middle at .*test_trace.py:\d+ \(return x if x.sum"):
        trace(Net(Branch()), _classes())


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_loss_must_be_a_scalar() -> None:
    with pytest.raises(InputError, match="scalar loss"):
        trace(Vector(), {"x": torch.randn(4, 6)})


def test_model_is_left_as_it_was() -> None:
    model, batch = make("llama")
    before = {name: (id(p), p.device, p.dtype) for name, p in model.named_parameters()}
    trace(model, batch)
    assert before == {name: (id(p), p.device, p.dtype) for name, p in model.named_parameters()}
    assert model.training


def test_tied_parameters_are_one() -> None:
    graph = traced("gpt")[1]
    assert graph.parameters["embed.weight"].names == ("embed.weight", "head.weight")
    assert "head.weight" not in graph.parameters


def test_names_are_the_source_models() -> None:
    graph = traced("llama")[1]
    assert "model.layers.0.self_attn.q_proj.weight" in graph.parameters
    assert [u.name for u in graph.blocks] == [f"model.layers.{i}" for i in range(3)]


def test_meta_model_traces_alike() -> None:
    with torch.device("meta"):
        model = Gpt().train()
    real, batch = make("gpt")
    graph = trace(model, batch)
    assert str(graph.module.graph) == str(trace(real, batch).module.graph)


@pytest.mark.parametrize("name", ["gpt", "opt", "bert", "t5"])
def test_dropout_is_the_same_function_of_the_sample_under_any_batch(name: str) -> None:
    model, batch = make(name, 4, dropout=0.1)
    graph = trace(model, batch)
    total = interpret(graph, model, batch)
    assert error(total, run_eagerly(model.eval(), batch)) > 1e-3
    again = interpret(graph, model, batch)
    assert error(total, again) == 0


@pytest.mark.parametrize("name", SWEEP)
def test_attention_written_out_for_its_dropout_is_the_same(name: str) -> None:
    """Another kernel than the model's fused one: equal to float32 rounding."""
    model, graph = traced(name, 0.1)
    batch = make(name)[1]
    nodes = [n for n in graph.nodes.values() if n.target == torch.ops.partitioner.dropout.default]
    probabilities = [n.args[1] for n in nodes]
    try:
        for node in nodes:
            node.update_arg(1, 0.0)
        assert error(interpret(graph, model, batch), run_eagerly(model.eval(), batch)) < 1e-5
    finally:
        model.train()
        for node, probability in zip(nodes, probabilities, strict=True):
            node.update_arg(1, probability)


def test_dropout_sites_draw_different_masks() -> None:
    _, graph = make("gpt", dropout=0.5)[0], trace(*make("gpt", dropout=0.5))
    sites = [n for n in graph.nodes.values() if n.target == torch.ops.partitioner.dropout.default]
    assert len({(n.args[2], n.args[3]) for n in sites}) == len(sites) == 10
    assert len({u.kind for u in graph.blocks}) == 1


@pytest.mark.parametrize("name", SWEEP)
def test_a_resized_graph_is_the_graph_traced_at_that_size(name: str) -> None:
    """Shapes and kept storages of all that has a gradient, though identical blocks are evaluated once."""
    found, wanted = resize(traced(name)[1], 3), trace(*make(name, 3), compare=False)
    assert [n.name for n in found.module.graph.nodes] == [n.name for n in wanted.module.graph.nodes]
    rows = [[g.digraph.nodes[n] for n in g.digraph] for g in (found, wanted)]
    for a, b in zip(*rows, strict=True):
        assert a == b or not a["unit"]
    assert any(a["unit"] for a in rows[0])


class Ruleless(nn.Module):
    """Ends in an op that has no rule, over all but a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear, self.dim = nn.Linear(5, 7), dim

    def forward(self, x: torch.Tensor, scale: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = torch.renorm(scale, 2, self.dim, 1.0)
        return F.cross_entropy(torch.renorm(self.linear(x) * rows, 2, self.dim, 1.0), labels)


@pytest.mark.parametrize(("dim", "mixes"), [(0, False), (1, True)])
def test_an_op_without_a_rule_is_tried_out(dim: int, mixes: bool) -> None:
    batch = {"x": torch.randn(4, 5), "scale": torch.randn(4, 7), "labels": torch.arange(4)}
    graph = trace(Ruleless(dim), batch)
    assert rule_of("aten.renorm.default") is None
    assert (graph.inseparable is not None) == mixes
    if mixes:
        assert "renorm" in str(graph.inseparable)


class Einsums(nn.Module):
    """Attention whose heads are folded into the batch, positions split from constants, weights mixed by position."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.embed = heads, nn.Embedding(VOCABULARY, width)
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, VOCABULARY)
        self.mix = nn.Parameter(torch.randn(heads, TOKENS, TOKENS))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        b, t = tokens.shape
        rows, columns = torch.stack([torch.linspace(0, 1, t), torch.linspace(1, 2, t)]).unbind(0)
        q, k, v = self.qkv(self.embed(tokens) + (rows * columns)[:, None]).chunk(3, -1)
        q, k, v = (x.view(b, t, self.heads, -1).transpose(1, 2).reshape(b * self.heads, t, -1) for x in (q, k, v))
        y = torch.einsum("b i j, b j d -> b i d", torch.einsum("b i d, b j d -> b i j", q, k).softmax(-1), v)
        y = torch.einsum("htu,bhuc->bthc", self.mix, y.view(b, self.heads, t, -1)).flatten(2)
        return F.cross_entropy(self.head(y).transpose(1, 2), labels)


def test_einsum_keeps_samples_apart() -> None:
    tokens = torch.randint(VOCABULARY, (3, TOKENS))
    graph = trace(Einsums(), {"tokens": tokens, "labels": tokens})
    assert graph.inseparable is None
    flops = [graph.digraph.nodes[n.name]["forward_flops"] for n in graph.nodes.values() if "einsum" in str(n.target)]
    assert flops == [2.0 * 3 * 4 * TOKENS * TOKENS * 4] * 3
