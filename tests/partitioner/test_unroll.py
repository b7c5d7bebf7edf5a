from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from check import error, interpret, run_eagerly
from models import Gpt, GptBlock, make
from torch import fx, nn
from torch.nn import functional as F

from partitioner import trace
from partitioner.batch import resize
from partitioner.fold import fold
from partitioner.graph import Graph
from partitioner.recall import graph_digest
from partitioner.runs import Run
from partitioner.unroll import UnlikeError, unroll
from tools.models import load

_MODULE = importlib.import_module("partitioner.trace")
Batch = dict[str, torch.Tensor]


class Traced:
    """A model traced with and without the shortcut, and the (blocks, children a block) of each run that was taken."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        taken: list[tuple[Run, ...]] = []

        def noted(graph: fx.Graph, runs: tuple[Run, ...]) -> fx.Graph:
            result = unroll(graph, runs)
            taken.append(runs)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_MODULE, "unroll", noted)
            self.graph = trace(model, batch)
            patch.setattr(_MODULE, "alike_blocks", lambda *arguments: ())
            self.whole = trace(model, batch)
        assert len(taken) == 2
        assert not taken[1]
        self.runs = [(len(run.blocks), len(run.blocks[0])) for run in taken[0]]


def _rows(graph: Graph) -> list[tuple[object, ...]]:
    """All that is known of each node."""
    rows: list[tuple[object, ...]] = []
    for node in graph.module.graph.nodes:
        value: Any = node.meta.get("val")
        strides = value.stride() if isinstance(value, torch.Tensor) else None
        words = (node.op, node.name, str(node.target), str(node.args), str(node.kwargs), str(value), strides)
        rows.append((*words, *(node.meta.get(key) for key in ("modules", "source", "kind", "trains"))))
    return rows


def _assert_same(found: Graph, wanted: Graph) -> None:
    assert _rows(found) == _rows(wanted)
    assert list(found.parameters.items()) == list(wanted.parameters.items())
    assert list(found.buffers) == list(wanted.buffers)
    assert all(torch.equal(b, wanted.buffers[n]) for n, b in found.buffers.items() if not b.is_meta)
    for name in ("inputs", "batch", "units", "constants", "prelude", "batch_layout", "inseparable"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert graph_digest(fold(found)) == graph_digest(fold(wanted))
    assert dict(found.digraph.nodes) == dict(wanted.digraph.nodes)  # saved bytes too: the same storages


_SIX, _FIVE = [(6, 1)], [(5, 1)]
_CASES: list[tuple[str, dict[str, object], list[tuple[int, int]]]] = [
    ("gpt", {"layers": 5}, _FIVE),
    ("gpt2", {"n_layer": 5}, _FIVE),
    *((name, {"num_hidden_layers": 5}, _FIVE) for name in ("llama", "qwen3", "mistral", "opt", "neox", "phi3", "vit")),
    *((name, {"num_hidden_layers": 5}, _FIVE) for name in ("mixtral", "bert")),
    ("gemma2", {"num_hidden_layers": 8}, [(4, 2)]),
    ("gemma3", {"num_hidden_layers": 6}, _FIVE),  # five of one kind, then one of another
    ("t5", {"num_layers": 6}, _FIVE * 2),  # the first block has a position bias to make
    ("whisper", {"encoder_layers": 4, "decoder_layers": 5}, [(4, 1), (5, 1)]),
]


@pytest.mark.parametrize(("name", "changes", "runs"), _CASES, ids=[c[0] for c in _CASES])
def test_the_graph_is_that_of_the_whole_model(
    name: str, changes: dict[str, object], runs: list[tuple[int, int]]
) -> None:
    traced = Traced(*make(name, dropout=0.0 if name in ("llama", "gemma2") else 0.1, **changes))
    assert traced.runs == runs
    _assert_same(traced.graph, traced.whole)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("examples/gpt.py:model", {"layers": 5, "dropout": 0.1}),
        ("hf:llama", {"num_hidden_layers": 5}),
    ],
)
def test_models_on_meta(spec: str, settings: dict[str, object]) -> None:
    small = spec.startswith("hf:")
    source = load(spec, settings, meta=True, shrink=small)
    traced = Traced(source.module, source.batch)
    assert traced.runs == _FIVE
    _assert_same(traced.graph, traced.whole)


@pytest.mark.parametrize("name", ["gpt", "llama", "t5"])
def test_loss_and_gradients_are_the_models(name: str) -> None:
    depth = {"gpt": "layers", "llama": "num_hidden_layers", "t5": "num_layers"}[name]
    model, batch = make(name, 3, **{depth: 6})
    graph = resize(trace(model, batch), 3)
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-6


class Deep(Gpt):
    """Gpt whose blocks are made, and run, to order."""

    def __init__(self, block: Callable[[int], nn.Module], layers: int = 6) -> None:
        super().__init__(layers=0)
        self.blocks = nn.ModuleList(block(index) for index in range(layers))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.run(self.embed(tokens))
        return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), labels)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(GptBlock):
    """A block that knows its number and may ask for it."""

    def __init__(self, layer_idx: int, factor: Callable[[int], float] = lambda index: 1.0) -> None:
        super().__init__(48, 6, 0.0)
        self.layer_idx, self.factor = layer_idx, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.factor(self.layer_idx))


def _deep(model: nn.Module) -> tuple[nn.Module, Batch]:
    return model.train(), make("gpt")[1]


def _traced(model: nn.Module) -> list[tuple[int, int]]:
    """The runs that were taken, the graph proven right."""
    traced = Traced(*_deep(model))
    _assert_same(traced.graph, traced.whole)
    return traced.runs


@pytest.mark.parametrize(
    ("factor", "layers", "runs"),
    [
        (lambda index: 1.0, 6, [(6, 1)]),
        (lambda index: 1.0 + index, 6, []),
        (lambda index: 2.0 if index == 3 else 1.0, 6, []),
        (lambda index: 2.0 if index == 3 else 1.0, 10, [(6, 1)]),
        (lambda index: 2.0 if index % 3 == 2 else 1.0, 13, [(4, 3)]),
    ],
)
def test_a_layers_number_counts_where_it_changes_what_is_computed(
    factor: Callable[[int], float], layers: int, runs: list[tuple[int, int]]
) -> None:
    assert _traced(Deep(lambda index: Block(index, factor), layers)) == runs


class Wide(Block):
    """A block of another kind."""


def test_layers_of_two_kinds_are_captured_one_by_one() -> None:
    assert _traced(Deep(lambda index: Wide(index) if index % 2 else Block(index), 8)) == []


class Scaled(Block):
    """A block that takes a second argument."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x * scale)


class Mixed(Deep):
    """Blocks that all take one value, or one of them another."""

    alike = True

    def run(self, x: torch.Tensor) -> torch.Tensor:
        scales = x.detach()[..., :8].split(1, -1)
        for index, block in enumerate(self.blocks):
            x = block(x, scales[int(index == 3 and not self.alike)])
        return x


class Apart(Mixed):
    alike = False


def test_blocks_that_take_different_arguments_are_captured_one_by_one() -> None:
    assert _traced(Mixed(Scaled)) == _SIX
    assert _traced(Apart(Scaled)) == []


class Masked(Block):
    """A block that multiplies by a buffer of its own."""

    def __init__(self, layer_idx: int, value: float = 1.0) -> None:
        super().__init__(layer_idx)
        self.register_buffer("mask", torch.full((16, 1), value))
        self.register_buffer("unread", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x * self.mask)


def test_buffers_of_skipped_blocks_are_in_the_graph() -> None:
    model = Deep(Masked)
    assert _traced(model) == _SIX
    assert list(trace(*_deep(model)).buffers) == [f"blocks.{i}.mask" for i in range(6)]


def test_blocks_whose_buffers_differ_are_captured_one_by_one() -> None:
    assert _traced(Deep(lambda index: Masked(index, 1.0 + index % 5 // 4))) == []


class Summed(Deep):
    """What every block makes is read after the last."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1]))
        return torch.stack(states).sum(0)


def test_a_model_that_reads_what_all_blocks_made_is_captured_whole() -> None:
    assert _traced(Summed(Block)) == []


class Counted(Deep):
    """The number of blocks that ran is a factor behind them."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        seen: list[int] = []
        for block in self.blocks:
            x = block(x, seen)
        return x * len(seen)


class Counting(Block):
    def forward(self, x: torch.Tensor, seen: list[int]) -> torch.Tensor:  # type: ignore[override]
        seen.append(self.layer_idx)
        return super().forward(x)


def test_what_a_block_does_besides_counts() -> None:
    assert _traced(Counted(Counting)) == []


def test_blocks_that_share_a_parameter_are_captured_one_by_one() -> None:
    model = Deep(Block)
    model.blocks[3].up.weight = model.blocks[2].up.weight  # type: ignore[union-attr]
    assert _traced(model) == []


class InPlace(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(super().forward(x))


def test_blocks_that_change_their_argument_are_captured_right() -> None:
    assert _traced(Deep(InPlace)) == []


class Frozen(Block):
    def __init__(self, layer_idx: int) -> None:
        super().__init__(layer_idx)
        self.requires_grad_(layer_idx > 2)


def test_frozen_blocks_are_blocks_of_another_kind() -> None:
    assert _traced(Deep(Frozen, 8)) == [(5, 1)]


@pytest.mark.parametrize("place", ["unroll", "alike_blocks"])
def test_whatever_goes_wrong_the_model_is_captured_whole(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    original = getattr(_MODULE, place)

    def fails(*arguments: Any) -> object:
        if place == "alike_blocks" or arguments[1]:
            raise UnlikeError("on purpose")
        return original(*arguments)

    model, batch = make("gpt", layers=6)
    wanted = trace(model, batch)
    monkeypatch.setattr(_MODULE, place, fails)
    _assert_same(trace(model, batch), wanted)


def test_kept_blocks_that_were_captured_unlike_are_told() -> None:
    run = Run(tuple((f"blocks.{i}",) for i in (0, 1, 9, 2)), {})
    graph = trace(*_deep(Deep(lambda index: Block(index, lambda i: 1.0 + i), 3))).module.graph
    with pytest.raises(UnlikeError, match="is not"):
        unroll(graph, [run])


def test_the_model_is_left_as_it_was() -> None:
    model, batch = make("llama", num_hidden_layers=6)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    trace(model, batch)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(value is before[name][key] for key, value in vars(module).items()), name
