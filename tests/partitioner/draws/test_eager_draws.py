"""Graph and eager module draw the same at any batch size: equal loss and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest
import torch
from check import Result, error
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from partitioner import Graph, trace
from partitioner.draws.eager_draws import KeyedDraws, eager_draws
from partitioner.errors import InputError
from partitioner.graph.interpret import interpret as run
from partitioner.graph.resize_batch import resize

VOCAB, WIDTH, SEQ, TRACED, SEED, STEP = 11, 8, 6, 3, 7, 2
Map = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True)
def _float64() -> Generator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tokens(samples: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return {n: torch.randint(VOCAB, (samples, SEQ), generator=generator) for n in ("x", "y")}


class Net(nn.Module):
    """An embedding, something that draws, a head."""

    def __init__(self, *middle: Map) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.middle = nn.ModuleList(f if isinstance(f, nn.Module) else Calls(f) for f in middle)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for module in self.middle:
            h = module(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())


class Calls(nn.Module):
    def __init__(self, function: Map) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def in_graph(graph: Graph, model: nn.Module, samples: int) -> Result:
    state = dict(model.named_parameters(remove_duplicate=False))
    weights = {n: state[n].detach().clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    loss = run(resize(graph, samples), weights, tokens(samples), SEED, STEP)
    loss.backward()
    return loss.detach(), {n: w.grad for n, w in weights.items() if w.grad is not None}


def in_module(graph: Graph, model: nn.Module, samples: int, step: int = STEP) -> tuple[Result, KeyedDraws]:
    model.zero_grad()
    batch = tokens(samples)
    with eager_draws(model, graph, SEED, step, range(samples)) as mode:
        loss = model(**batch)
        loss.backward()
    return (loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}), mode


def check(model: nn.Module, sites: int, unknown: int = 0) -> Graph:
    """The model draws at so many sites, and alike in both at two sizes that are not the traced one."""
    graph = trace(model, tokens(TRACED))
    for samples in (2, 5):
        found, mode = in_module(graph, model, samples)
        assert error(in_graph(graph, model, samples), found) < 1e-12
        assert (len(mode.sites), len(mode.unknown)) == (sites, unknown)
    assert error(in_module(graph, model, 9, STEP + 1)[0], in_module(graph, model, 9)[0]) > 1e-6
    return graph


def places(graph: Graph) -> list[tuple[int, ...] | None]:
    """Of each site: dimension, repeat and granule of the samples in it."""
    found = [n.meta["site"].place for n in graph.nodes.values() if "site" in n.meta]
    return [p and (p.dim, p.segments[0].repeat, p.segments[0].granule) for p in found]


FIRST, STEPS = (0, 1, 1), None
# what is drawn, and where its samples lie
CALLS: dict[str, tuple[Map, tuple[int, ...] | None]] = {
    "rand": (lambda x: x + torch.rand(len(x), 1, 1), FIRST),
    "rand of the step": (lambda x: x * torch.rand(()), STEPS),
    "rand of positions": (lambda x: x + torch.rand(SEQ, WIDTH), STEPS),
    "rand_like": (lambda x: x + torch.rand_like(x), FIRST),
    "a position for each sample": (lambda x: x + (torch.rand(x.shape[:1])[:, None, None] < 0.5), FIRST),
    "randn": (lambda x: x + torch.randn(x.shape), FIRST),
    "randn_like": (lambda x: x + torch.randn_like(x[:, :1]), FIRST),
    "normal of numbers": (lambda x: x + torch.normal(0.5, 2.0, x.shape), FIRST),
    "normal of a mean": (lambda x: x * torch.normal(x, 0.1), FIRST),
    "normal of a deviation": (lambda x: x * torch.normal(0.1, x.abs()), FIRST),
    "normal of both": (lambda x: x * torch.normal(x, x.abs()), FIRST),
    "normal_": (lambda x: x + torch.empty_like(x).normal_(0.1, 3.0), FIRST),
    "log_normal_": (lambda x: x + torch.empty_like(x).log_normal_(), FIRST),
    "uniform_": (lambda x: x + torch.empty_like(x).uniform_(-1, 2), FIRST),
    "exponential_": (lambda x: x + torch.empty_like(x).exponential_(2.0), FIRST),
    "geometric_": (lambda x: x + torch.empty_like(x).geometric_(0.5), FIRST),
    "cauchy_": (lambda x: x + torch.empty_like(x).cauchy_().tanh(), FIRST),
    "random_": (lambda x: x + torch.empty_like(x).random_(3), FIRST),
    "randint": (lambda x: x + torch.randint(4, (len(x), 1, 1)), FIRST),
    "randint in a range": (lambda x: x + torch.randint(-3, 4, (len(x), 1, 1)), FIRST),
    "randint_like": (lambda x: x + torch.randint_like(x, 3), FIRST),
    "randint_like in a range": (lambda x: x + torch.randint_like(x, 3, 6), FIRST),
    "randperm of positions": (lambda x: x + torch.randperm(SEQ)[:, None], STEPS),
    "bernoulli of probabilities": (lambda x: x * torch.bernoulli(x.sigmoid()), FIRST),
    "bernoulli of a number": (lambda x: x * x.detach().bernoulli(0.4), FIRST),
    "bernoulli_ of a number": (lambda x: x * torch.empty_like(x).bernoulli_(0.4), FIRST),
    "bernoulli_ of probabilities": (lambda x: x * torch.empty_like(x).bernoulli_(x[:1, :1].detach().sigmoid()), FIRST),
    "stochastic depth": (lambda x: x + x.sin() * x.new_empty((len(x), 1, 1)).bernoulli_(0.8).div_(0.8), FIRST),
    "into a part": (lambda x: _into_a_part(x), FIRST),
    "without gradient": (lambda x: x + _without_gradient(x), FIRST),
    "gumbel": (lambda x: x + F.gumbel_softmax(x, tau=0.7), FIRST),
    "dropout": (lambda x: F.dropout(x, 0.3), FIRST),
    "dropout in place": (lambda x: F.dropout(x + 1, 0.3, inplace=True), FIRST),
    "dropout of merged rows": (lambda x: F.dropout(x.flatten(0, 1), 0.3).view(x.shape), (0, 1, SEQ)),
    "dropout, positions first": (lambda x: F.dropout(x.transpose(0, 1), 0.3).transpose(0, 1), (1, 1, 1)),
    "dropout, heads before samples": (
        lambda x: F.dropout(x.unflatten(2, (2, -1)).permute(2, 0, 1, 3).flatten(0, 1), 0.3)
        .unflatten(0, (2, -1)).permute(1, 2, 0, 3).flatten(2), (0, 2, 1),
    ),
    "feature dropout": (lambda x: F.dropout1d(x, 0.3), FIRST),
    "feature dropout of images": (lambda x: F.dropout2d(x.unflatten(2, (2, -1)), 0.3).flatten(2), FIRST),
    "alpha dropout": (lambda x: F.alpha_dropout(x, 0.3, True), FIRST),
    "feature alpha dropout": (lambda x: F.feature_alpha_dropout(x, 0.3, True), FIRST),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3), FIRST),
    "attention of heads": (lambda x: F.scaled_dot_product_attention(*[x[:, None]] * 3, None, 0.3)[:, 0], FIRST),
}  # fmt: skip


def _into_a_part(x: torch.Tensor) -> torch.Tensor:
    noise = torch.zeros_like(x)
    noise[:, 1:3].normal_()
    return x + noise


def _without_gradient(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.rand_like(x) * x


@pytest.mark.parametrize("name", CALLS)
def test_each_call_draws_alike(name: str) -> None:
    call, place = CALLS[name]
    graph = check(Net(call), 1)
    assert places(graph) == [place]


def test_dropout_of_a_weight_is_one_draw_a_step() -> None:
    class Dropped(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return F.linear(input, F.dropout(self.weight, 0.3), self.bias)

    graph = check(Net(Dropped(WIDTH, TRACED * WIDTH), nn.Linear(TRACED * WIDTH, WIDTH)), 1)
    assert places(graph) == [STEPS]


class Layer(nn.Module):
    """Attention and an MLP, with stochastic depth."""

    def __init__(self, depth: float = 0.2, weights: bool = False) -> None:
        super().__init__()
        self.norm, self.weights, self.depth = nn.LayerNorm(WIDTH), weights, depth
        self.attend = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        x = x + self.path(self.drop(self.attend(y, y, y, need_weights=self.weights)[0]))
        return x + self.path(self.drop(self.mlp(x)))

    def path(self, x: torch.Tensor) -> torch.Tensor:
        keep = 1 - self.depth
        return x * x.new_empty((len(x), 1, 1)).bernoulli_(keep).div_(keep) if self.training else x


@pytest.mark.parametrize("weights", [False, True])
def test_alike_blocks_written_out_anew(weights: bool) -> None:
    graph = check(Net(*(Layer(weights=weights) for _ in range(6))), 36)
    assert len(graph.blocks) == 6


def test_blocks_that_drop_more_and_more() -> None:
    graph = check(Net(*(Layer(0.1 * n) for n in range(1, 5))), 24)
    assert len({unit.kind for unit in graph.blocks}) == 1


def test_torchs_own_layers() -> None:
    layers = [nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=first) for first in (True, False)]
    check(Net(layers[0], lambda x: x.transpose(0, 1), layers[1], lambda x: x.transpose(0, 1)), 8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_forward_draws_again_what_it_drew(reentrant: bool) -> None:
    class Again(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            h = self.embed(x)
            for module in self.middle:
                h = checkpoint(module, h, use_reentrant=reentrant)
            return F.cross_entropy(self.head(h).flatten(0, 1), y.flatten())

    plain = Net(Layer(), Layer())
    graph = trace(plain, tokens(TRACED))
    again = Again(Layer(), Layer())
    again.load_state_dict(plain.state_dict())
    assert error(in_module(graph, again, 4)[0], in_module(graph, plain, 4)[0]) < 1e-12


def test_a_module_of_several_names_called_by_each() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.3)
            self.first, self.second = (nn.Sequential(nn.Linear(WIDTH, WIDTH), self.drop) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.first(x) + self.drop(self.second(x)))

    check(Net(Tied()), 4)


def test_a_draw_that_the_loss_does_not_read_is_told_and_does_no_harm() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        F.dropout(x, 0.5)
        return x + torch.rand_like(x)

    check(Net(call), 1, unknown=1)


def test_nothing_is_drawn_at_the_ends_and_in_evaluation() -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return x + F.dropout(x, 1.0) + F.dropout(x, 0.0) + F.dropout2d(x[:, None], 1.0)[:, 0]

    model = Net(
        call,
        lambda x: F.dropout(x, 0.5, training=False),
        lambda x: x + F.scaled_dot_product_attention(x, x, x, dropout_p=1.0),
    )
    graph = trace(model, tokens(TRACED))
    found, mode = in_module(graph, model, 2)
    assert error(in_graph(graph, model, 2), found) < 1e-12
    assert not mode.sites


def test_the_random_state_and_the_modules_hooks_are_left_as_they_were() -> None:
    model = Net(nn.Dropout(0.5))
    graph, before = trace(model, tokens(TRACED)), torch.get_rng_state()
    in_module(graph, model, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def drawing(call: Map) -> tuple[Graph, Net]:
    return trace(Net(F.dropout), tokens(TRACED)), Net(call)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: x, "random call 0 of middle.0 is in the traced graph, and the module does not make it"),
        (lambda x: F.dropout(x, 0.4), r"middle.0 draws bernoulli \[0.6\] in \[4, 6, 8\], its traced graph"),
        (lambda x: F.dropout(x[:, :2], 0.5), r"draws bernoulli \[0.5\] in \[4, 2, 8\].*must not change"),
        (lambda x: F.dropout(torch.cat([x, x]), 0.5), r"draws bernoulli \[0.5\] in \[8, 6, 8\].*must not change"),
        (lambda x: x + torch.rand_like(x), "draws uniform"),
        (lambda x: F.dropout(x + 0 * torch.manual_seed(3).initial_seed(), 0.5), "seeds torch in its forward"),
    ],
)
def test_what_is_not_its_site_is_refused(call: Map, words: str) -> None:
    (graph, model), batch = drawing(call), tokens(4)
    with pytest.raises(InputError, match=words), eager_draws(model, graph, 0, 0, range(4)):
        model(**batch).backward()


def test_a_checkpoint_that_forgets_the_random_state_is_refused() -> None:
    graph, model = drawing(lambda x: checkpoint(F.dropout, x, use_reentrant=False, preserve_rng_state=False))
    batch = tokens(4)
    with pytest.raises(InputError, match="preserve_rng_state"), eager_draws(model, graph, 0, 0, range(4)):
        model(**batch).backward()


class _Twice(nn.Module):
    """One dropout under two names, called by both, and one that only its second name calls."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.line, self.first, self.second = nn.Linear(8, 8), drop, drop
        self.kept = nn.Dropout(0.2)
        self.again = self.kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.second(self.line(self.first(x))))


class _Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.parts, self.last = nn.Sequential(_Twice(self.drop), _Twice(self.drop)), self.drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.parts(self.drop(x))).pow(2).mean()


def test_a_module_under_two_names_draws_its_own() -> None:
    graph = trace(_Shares(), {"x": torch.randn(4, 3, 8)})  # compares
    assert len([n for n in graph.nodes.values() if "site" in n.meta]) == 8
