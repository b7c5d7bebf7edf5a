from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from check import error, interpret, run_eagerly
from torch import nn
from torch.nn import functional as F

from partitioner.errors import InputError
from partitioner.tracing.trace import trace

Batch = dict[str, torch.Tensor]
PLAIN = torch.tensor([0.5, 0.25])


class Layer(nn.Module):
    """A residual layer that scales by what it is told of constants."""

    def __init__(self, number: int, asks: Callable[[Layer, torch.Tensor], float]) -> None:
        super().__init__()
        self.up, self.down, self.number, self.asks = nn.Linear(8, 16), nn.Linear(16, 8), number, asks
        self.register_buffer("table", torch.arange(12.0).view(3, 4), persistent=False)
        self.register_buffer("steps", torch.tensor([3, 1, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.asks(self, x) * self.down(F.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, asks: Callable[[Layer, torch.Tensor], float], layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.layers = nn.ModuleList(Layer(number, asks) for number in range(layers))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def _batch() -> Batch:
    tokens = torch.randint(0, 16, (3, 5), generator=torch.Generator().manual_seed(1))
    return {"tokens": tokens, "labels": tokens.roll(-1, 1)}


def _causal(layer: Layer, x: torch.Tensor) -> float:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    causal = torch.triu(torch.full_like(mask, float("-inf")), diagonal=1)
    return 0.5 if bool((mask == causal).all()) else 2.0


def _buffer(layer: Layer, x: torch.Tensor) -> float:
    return float(layer.table[1:, 2].sum()) / 10 + PLAIN[1].item()


def _numbers(layer: Layer, x: torch.Tensor) -> float:
    first, *rest = layer.steps.tolist()
    return first + int(layer.steps.max()) + sum(rest) * [0.1, 0.2, 0.3][layer.steps[1]]


def _compares(layer: Layer, x: torch.Tensor) -> float:
    same = torch.equal(layer.steps, torch.tensor([3, 1, 2])) and torch.allclose(PLAIN * 2, torch.tensor([1, 0.5]))
    return 0.5 if same and 3 in layer.steps else 2.0


def _changed(layer: Layer, x: torch.Tensor) -> float:
    kept = torch.zeros(2, 3)
    before = kept + 1
    view = kept.t()[1]
    view += 4
    kept[0].mul_(2)
    kept[1, 2] = 0.5
    return float(kept.sum() + before.sum()) / 20


def _asked_between(layer: Layer, x: torch.Tensor) -> float:
    count, found = torch.ones(()), 0.0
    late = count * 3
    for _ in range(3):
        found += count.item()
        count.add_(1)
    return found / 10 + late.item()


def _low(layer: Layer, x: torch.Tensor) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = torch.full((2, 2), 1 / 3) @ torch.full((2, 2), 1 / 3)
    return float(product.float().sum())


def _no_gradient(layer: Layer, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(torch.linspace(0, 1, x.shape[-1]).square().sum())


ASKING = (_causal, _buffer, _numbers, _compares, _changed, _asked_between, _low, _no_gradient)


@pytest.mark.parametrize("layers", [2, 6])
@pytest.mark.parametrize("asks", ASKING, ids=lambda asks: asks.__name__)
def test_a_constants_value_is_known(asks: Callable[..., float], layers: int) -> None:
    model, batch, words = Net(asks, layers), _batch(), list[str]()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    graph = trace(model, batch, progress=words.append)
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-6
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert (layers > 2) == any("alike blocks once" in word for word in words)


def test_layers_that_are_told_other_values_are_not_alike() -> None:
    def asks(layer: Layer, x: torch.Tensor) -> float:
        return 0.5 if bool(torch.arange(6)[layer.number] == 2) else 2.0

    model, batch = Net(asks, 6), _batch()
    assert error(interpret(trace(model, batch), model, batch), run_eagerly(model, batch)) < 1e-6


def _input(layer: Layer, x: torch.Tensor) -> float:
    return 0.5 if x.sum() > 0 else 2.0


def _parameter(layer: Layer, x: torch.Tensor) -> float:
    return 0.5 if (layer.up.weight.detach() * 2).sum() > 0 else 2.0


def _drawn(layer: Layer, x: torch.Tensor) -> float:
    return 0.5 if torch.rand(3).sum() > 1 else 2.0


def _drawn_by_own(layer: Layer, x: torch.Tensor) -> float:
    return 0.5 if torch.rand(3, generator=torch.Generator().manual_seed(0)).sum() > 1 else 2.0


def _filled_by_input(layer: Layer, x: torch.Tensor) -> float:
    kept = torch.zeros(3)
    kept[1] = x.detach().sum()
    return 0.5 if (kept + 1).sum() > 1 else 2.0


def _view_filled_by_input(layer: Layer, x: torch.Tensor) -> float:
    kept = torch.zeros(2, 3)
    kept.view(-1)[:3].copy_(x.detach()[0, 0, :3])
    return 0.5 if kept.sum() > 1 else 2.0


def _data_set(layer: Layer, x: torch.Tensor) -> float:
    kept = torch.zeros(3)
    kept.data = x.detach()[0, 0, :3]
    return 0.5 if kept.sum() > 1 else 2.0


UNKNOWN = (_input, _parameter, _drawn, _drawn_by_own, _filled_by_input, _view_filled_by_input, _data_set)


@pytest.mark.parametrize("asks", UNKNOWN, ids=lambda asks: asks.__name__)
def test_what_is_no_constant_is_refused(asks: Callable[..., float]) -> None:
    state = torch.get_rng_state()
    model = Net(asks)
    torch.set_rng_state(state)
    with pytest.raises(InputError, match="can't be traced"):
        trace(model, _batch())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_buffer_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = Net(_buffer)
    with pytest.raises(InputError, match="can't be traced"):
        trace(model, _batch())


class Translator(nn.Module):
    """torch's own encoder and decoder, which compare their masks with a causal one."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.options = nn.Embedding(16, 8), nn.Linear(8, 16), options
        self.body = nn.Transformer(8, 2, 2, 5, 16, 0.0, batch_first=True, **options)

    def forward(self, source: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        memory = torch.zeros(tokens.shape[1], source.shape[1])
        h = self.body(self.embed(source), self.embed(tokens), tgt_mask=mask, memory_mask=memory)
        return F.cross_entropy(self.head(h).flatten(0, 1), labels.flatten())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_with_masks(norm_first: bool) -> None:
    model, batch, words = Translator(norm_first=norm_first), _batch(), list[str]()
    batch = {"source": batch["tokens"][:, :4].clone(), **batch}
    graph = trace(model, batch, progress=words.append)
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-6
    assert any("alike blocks once" in word for word in words)
