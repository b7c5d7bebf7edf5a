from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from check import error, interpret, run_eagerly
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from partitioner import Cluster, lower, search
from partitioner.errors import InputError
from partitioner.tracing.trace import trace
from partitioner.user_code.compiled import as_written, unwrap, written_parameters
from runtime.state.module_start import ModuleStart
from runtime.state.parameters import materialize

Batch = dict[str, torch.Tensor]


def _no_backend(module: object, example: object) -> Callable[..., object]:
    raise AssertionError("tracing compiled something")


def _compile(what: object) -> object:
    return torch.compile(what, backend=_no_backend)  # type: ignore[call-overload]


@torch.compile(backend=_no_backend)
def _gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x) * 1.5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x)


class GeluBlock(Block):
    def act(self, x: torch.Tensor) -> torch.Tensor:
        return _gelu(x)


class Net(nn.Module):
    def __init__(self, block: type[Block] = Block, layers: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.blocks = nn.ModuleList(block() for _ in range(layers))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.head(self.body(self.embed(tokens))).flatten(0, 1), labels.flatten())

    def body(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block(x)


def _batch() -> Batch:
    tokens = torch.randint(0, 16, (4, 5), generator=torch.Generator().manual_seed(1))
    return {"tokens": tokens, "labels": tokens.roll(-1, 1)}


def _whole() -> nn.Module:
    return _compile(Net())  # type: ignore[return-value]


def _each_block() -> nn.Module:
    net = Net()
    net.blocks = nn.ModuleList(_compile(block) for block in net.blocks)  # type: ignore[misc]
    return net


def _both() -> nn.Module:
    return _compile(_each_block())  # type: ignore[return-value]


def _in_place() -> nn.Module:
    net = Net()
    for module in (net, *net.blocks):
        module.compile(backend=_no_backend)
    return net


def _function() -> nn.Module:
    return Net(GeluBlock)


def _method() -> nn.Module:
    net = Net()
    net.body = _compile(net.body)  # type: ignore[method-assign, assignment]
    for block in net.blocks:
        block.forward = _compile(block.forward)  # type: ignore[method-assign, assignment]
    return net


WAYS = (_whole, _each_block, _both, _in_place, _function, _method)
NAMES = [name for name, _ in Net().named_parameters()]


@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__)
def test_what_is_compiled_is_traced_as_it_was_written(make: Callable[[], nn.Module]) -> None:
    model, words = make(), list[str]()
    before = _inner(model)
    graph = trace(model, _batch(), progress=words.append)
    assert list(graph.parameters) == NAMES
    assert any("alike blocks once" in word for word in words)
    assert _inner(model) == before
    with as_written(model) as plain:
        assert error(interpret(graph, plain, _batch()), run_eagerly(plain, _batch())) < 1e-6


def _inner(model: nn.Module) -> list[tuple[str, int, int]]:
    """What tells whether a model is as it was."""
    modules = model.named_modules(remove_duplicate=False)
    return [(n, id(m), id(getattr(m, "_compiled_call_impl", None))) for n, m in modules]


@pytest.mark.parametrize("make", WAYS, ids=lambda make: make.__name__)
def test_weights_are_found_under_the_same_names(make: Callable[[], nn.Module]) -> None:
    model = make()
    graph = trace(model, _batch())
    program = lower(graph, search(graph, Cluster.load("local-cpu", devices=1), 4))
    own = written_parameters(model)
    found = materialize(program, {"pp": 0, "dp": 0, "tp": 0}, model, "cpu")
    assert list(own) == NAMES
    assert all(torch.equal(found[name], own[name]) for name in NAMES)


def test_a_compiled_module_on_meta_starts_as_the_plain_one() -> None:
    with torch.device("meta"):
        plain, compiled = Net(), _both()
    graph = trace(compiled, _batch())
    program = lower(graph, search(graph, Cluster.load("local-cpu", devices=1), 4))
    places = {"pp": 0, "dp": 0, "tp": 0}
    found = [materialize(program, places, ModuleStart(model, 3), "cpu") for model in (plain, compiled)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in NAMES)


@pytest.mark.parametrize("make", [_both, _in_place])
def test_unwrapping_for_good(make: Callable[[], nn.Module]) -> None:
    model = unwrap(make())
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert run_eagerly(model, _batch())[0] == run_eagerly(Net(), _batch())[0]


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def run(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, x, use_reentrant=self.reentrant)  # type: ignore[return-value]


class Frozen(Checkpointed):
    """The first block's input has no gradient: reentrant checkpoints then give that block none."""

    def __init__(self) -> None:
        super().__init__(True)
        self.embed.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_whose_input_is_frozen_trains_nothing() -> None:
    model = Frozen()
    found, eager = interpret(trace(model, _batch()), model, _batch()), run_eagerly(model, _batch())
    assert not any(name.startswith("blocks") for name in eager[1])
    assert error(found, eager) < 1e-6


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(InputError, match="must be an nn.Module, not function"):
        trace(_compile(_whole()), _batch())  # type: ignore[arg-type]


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_in_the_model_changes_nothing(reentrant: bool) -> None:
    model, words = Checkpointed(reentrant), list[str]()
    graph = trace(model, _batch(), progress=words.append)
    assert error(interpret(graph, model, _batch()), run_eagerly(model, _batch())) < 1e-6
    assert len(graph.blocks) == 5
    assert any("alike blocks once" in word for word in words)
