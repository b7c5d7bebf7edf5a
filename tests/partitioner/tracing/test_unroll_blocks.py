from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from check import error, interpret, run_eagerly
from models import FEW, Gpt, make
from torch import nn
from torch.nn import functional as F
from traced_twice import TRACE, Block, Deep, Traced, assert_same, deep

from partitioner import trace
from partitioner.graph.resize_batch import resize
from partitioner.tracing.repeated_modules import Run
from partitioner.tracing.unroll_blocks import UnlikeError, unroll
from tools.models.load import load

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


_MODELS = [pytest.param(*c, id=c[0], marks=() if c[0] in FEW else pytest.mark.parity) for c in _CASES]


@pytest.mark.parametrize(("name", "changes", "runs"), _MODELS)
def test_the_graph_is_that_of_the_whole_model(
    name: str, changes: dict[str, object], runs: list[tuple[int, int]]
) -> None:
    traced = Traced(*make(name, dropout=0.0 if name in ("llama", "gemma2") else 0.1, **changes))
    assert traced.runs == runs
    assert_same(traced.graph, traced.whole)


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
    assert_same(traced.graph, traced.whole)


@pytest.mark.parametrize("name", ["gpt", "llama", "t5"])
def test_loss_and_gradients_are_the_models(name: str) -> None:
    depth = {"gpt": "layers", "llama": "num_hidden_layers", "t5": "num_layers"}[name]
    model, batch = make(name, 3, **{depth: 6})
    graph = resize(trace(model, batch), 3)
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-6


def _traced(model: nn.Module) -> list[tuple[int, int]]:
    """The runs that were taken, the graph proven right."""
    traced = Traced(*deep(model))
    assert_same(traced.graph, traced.whole)
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


class Penalized(Deep):
    """A penalty on all weights reads those of blocks that are skipped."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return super().run(x) + 1e-2 * sum(p.square().sum() for p in self.blocks.parameters())


class Asking(Deep):
    """Code outside asks a skipped block for its weight."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return super().run(x.to(self.blocks[3].up.weight.dtype))


@pytest.mark.parametrize(("model", "is_unread"), [(Deep, True), (Penalized, False), (Asking, False)])
def test_parameters_that_are_read_from_outside_stay_in_sight(model: type[Deep], is_unread: bool) -> None:
    traced = Traced(*deep(model(Block)))
    assert traced.runs == _SIX
    assert traced.unread == [is_unread]
    assert_same(traced.graph, traced.whole)


class Named(Gpt):
    """Blocks whose path export spells otherwise, or whose names stand in others."""

    def __init__(self, stack: str, names: str) -> None:
        super().__init__(layers=0)
        del self.blocks
        self.add_module(stack, nn.ModuleDict({name: Block(n) for n, name in enumerate(names.split())}))
        self.stack = stack

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.get_submodule(self.stack).values():  # type: ignore[operator]
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), labels)


@pytest.mark.parametrize(
    ("stack", "names"),
    [
        ("Blocks", "0 1 2 3 4 5"), ("blocks", "L0 L1 L2 L3 L4 L5"), ("blocks", "d e f g h i"),
        ("blocks", "b-0 b-1 b-2 b-3 b-4 B_5"),
    ],
)  # fmt: skip
def test_names_are_spelled_as_export_spells_them(stack: str, names: str) -> None:
    traced = Traced(*deep(Named(stack, names)))
    assert traced.runs == _SIX
    assert_same(traced.graph, traced.whole)


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
    assert list(trace(*deep(model)).buffers) == [f"blocks.{i}.mask" for i in range(6)]


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
    original = getattr(TRACE, place)

    def fails(*arguments: Any) -> object:
        if place == "alike_blocks" or arguments[1]:
            raise UnlikeError("on purpose")
        return original(*arguments)

    model, batch = make("gpt", layers=6)
    wanted = trace(model, batch)
    monkeypatch.setattr(TRACE, place, fails)
    assert_same(trace(model, batch), wanted)


def test_kept_blocks_that_were_captured_unlike_are_told() -> None:
    run = Run(tuple((f"blocks.{i}",) for i in (0, 1, 9, 2)), {})
    graph = trace(*deep(Deep(lambda index: Block(index, lambda i: 1.0 + i), 3))).module.graph
    with pytest.raises(UnlikeError, match="is not"):
        unroll(graph, [run])


def test_the_model_is_left_as_it_was() -> None:
    model, batch = make("llama", num_hidden_layers=6)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    trace(model, batch)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(value is before[name][key] for key, value in vars(module).items()), name
