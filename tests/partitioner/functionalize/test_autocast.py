from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from check import error, interpret, run_eagerly
from torch import fx, nn
from torch.nn import functional as F

from partitioner.comparing.graph_float64 import promote
from partitioner.errors import InputError
from partitioner.functionalize.functionalize import functionalize, inline_regions
from partitioner.functionalize.regions import noted_regions
from partitioner.graph.nodes import to_meta
from partitioner.tracing.trace import trace

BF16 = torch.bfloat16
Batch = dict[str, torch.Tensor]
Answer = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Net(nn.Module):
    """Two products, a norm and a convolution; what runs is given."""

    def __init__(self, body: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(8)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.body = body

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.body(self, x).float(), y)


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(4, 6, generator=generator), "y": torch.arange(4)}


def _captured(model: nn.Module, batch: Batch) -> Answer:
    """Loss and gradients of what is captured once regions are written as ops, before any other pass."""
    with noted_regions(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = torch.export.export(model, (), batch, strict=False)
    names = exported.graph_signature.inputs_to_parameters
    holders = [n for n in exported.graph_module.graph.nodes if n.op == "placeholder"]
    for node in holders:
        trains = node.name in names
        node.meta |= {"trains": trains, "kind": "parameter" if trains else "input", "source": node.name}
    inline_regions(exported.graph_module)
    to_meta(exported.graph_module.graph)
    functionalize(exported.graph_module.graph)
    copies = {id(p): nn.Parameter(p.detach().clone()) for p in model.parameters()}
    parameters = {n: copies[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
    lifted = exported.graph_signature.inputs_to_lifted_tensor_constants | exported.graph_signature.inputs_to_buffers
    state = {**dict(model.named_buffers(remove_duplicate=False)), **exported.constants}
    others = {**batch, **{name: state[source] for name, source in lifted.items()}}
    given = [parameters[names[n.name]] if n.name in names else others[n.name] for n in holders]
    (loss,) = fx.Interpreter(exported.graph_module).run(*given)
    loss.backward()
    found = {n: copies[id(p)].grad for n, p in model.named_parameters()}
    return loss.detach(), {n: gradient for n, gradient in found.items() if gradient is not None}


def _plain(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        return net.b(net.norm(net.a(x)))


def _nested(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.amp.autocast("cpu", dtype=BF16):
        h = net.a(x)
        with torch.autocast("cpu", enabled=False):
            h = net.norm(h.float()) * 2 @ net.table.t() @ net.table
        with torch.autocast("cpu", dtype=torch.float16):
            return net.b(h)


@torch.autocast("cpu", dtype=BF16)
def _decorated(net: Net, x: torch.Tensor) -> torch.Tensor:
    return net.b(net.a(x))


def _frozen_inside(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        h = net.a(x)
        with torch.no_grad():
            target = net.a(x * 2)
        return net.b(h * target)


def _cast_inside(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=BF16):
        frozen = net.a(x)
        with torch.enable_grad():
            trained = net.a(x)
        frozen = frozen * 2
    return net.b((frozen + trained).float())


def _asks(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        scale = 2.0 if torch.is_autocast_enabled("cpu") else 3.0
        return net.b(net.a(x)) * scale


def _shares(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        for _ in range(3):
            x = net.b(net.a(x))
        return x


def _products(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        h = torch.einsum("bi,ij->bj", x, net.table) + torch.addmm(net.a.bias, x, net.table)
        pair = torch.baddbmm(h.float()[:, :, None].expand(-1, -1, 6), h[:, :, None], x[:, None, :])
        return pair.mean(1) + net.b(h)


def _sums_first(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        return torch.einsum("bi,ij->b", x, net.table)[:, None] + net.b(net.a(x))


def _widest(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        h = net.a(x)
        rows = torch.cat([h, net.table]) + torch.stack([h, h.float()]).sum(0).repeat(3, 1)[:10]
        return net.b(torch.index_copy(rows, 0, torch.tensor([0, 2]), net.norm(h.float())[:2]))[:4]


def _attends(net: Net, x: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    with torch.autocast("cpu", dtype=BF16):
        q = net.a(x).view(1, 4, 2, 4).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, q.float(), q, attn_mask=mask).transpose(1, 2).reshape(4, 8)
        return net.b(h).softmax(-1)


def _loss_inside(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=BF16):
        z = net.b(net.a(x))
        return z + F.cross_entropy(z, torch.arange(4)) + F.mse_loss(z, x)


BODIES = (
    _plain, _nested, _decorated, _frozen_inside, _cast_inside, _asks, _shares, _products, _sums_first, _widest,
    _attends, _loss_inside,
)  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_casts_are_torchs_own_to_the_bit(body: Callable[..., torch.Tensor]) -> None:
    model, batch = Net(body), _batch()
    (loss, gradients), (eager, wanted) = _captured(model, batch), run_eagerly(model, batch)
    assert loss.dtype == eager.dtype
    assert torch.equal(loss, eager)
    assert gradients.keys() == wanted.keys()
    assert all(torch.equal(gradients[n], wanted[n]) for n in wanted)


class Block(nn.Module):
    """A pre-norm layer that opens an autocast of its own, and turns it off for its norm."""

    def __init__(self, dtype: torch.dtype | None = BF16) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.dtype = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype or BF16, enabled=self.dtype is not None):
            with torch.autocast("cpu", enabled=False):
                h = self.norm(x)
            with torch.no_grad():
                scale = F.linear(h, self.up.weight).abs().mean() + 1
            return x + self.down(F.gelu(self.up(h))) / scale


class Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks, self.head = nn.Embedding(16, 8), nn.ModuleList(blocks), nn.Linear(8, 16)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def _tokens(samples: int = 3) -> Batch:
    tokens = torch.randint(0, 16, (samples, 5), generator=torch.Generator().manual_seed(2))
    return {"tokens": tokens, "labels": tokens.roll(-1, 1)}


def _stacked(blocks: list[nn.Module]) -> tuple[Stack, Batch]:
    return Stack(blocks), _tokens()


def test_the_traced_graph_is_the_eager_module_to_rounding() -> None:
    model, batch = _stacked([Block() for _ in range(3)])
    found, eager = interpret(trace(model, batch), model, batch), run_eagerly(model, batch)
    assert {n.dtype for n in found[1].values()} == {torch.float32}
    assert error(found, eager) < 2e-2


def test_regions_leave_blocks_alike_and_their_rehearsal_fast() -> None:
    words: list[str] = []
    graph = trace(*_stacked([Block() for _ in range(6)]), progress=words.append)
    assert [unit.kind for unit in graph.blocks] == [graph.blocks[0].kind] * 6
    assert any("alike blocks once" in word for word in words)


def test_blocks_of_other_casts_are_not_alike() -> None:
    """The calls of the third block are those of the others, but for the autocast around them."""
    model, batch = _stacked([Block(None if place == 2 else BF16) for place in range(6)])
    graph = trace(model, batch)
    calls = [node for node in graph.nodes.values() if node.op == "call_function"]
    low = {_module(node).split(".")[1] for node in calls if node.meta["val"].dtype == BF16}
    assert low == set("01345")
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 2e-2


def _module(node: fx.Node) -> str:
    return "".join(node.meta.get("modules", ())[-1:])


def test_casts_become_none_in_float64() -> None:
    model, batch = _stacked([Block() for _ in range(4)])
    low = trace(model, batch)
    graph = promote(low)
    assert [str(n.target) for n in graph.nodes.values()] == [str(n.target) for n in low.nodes.values()]
    model.double()
    assert error(interpret(graph, model, batch), run_eagerly(model, batch)) < 1e-12


class OnGpu(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.float16):
            return self.down(self.up(x))


def test_an_autocast_for_another_device_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"blocks.3.*autocast\('cuda'\).*x.device.type"):
        trace(*_stacked([*[Block() for _ in range(3)], OnGpu()]))


class OnXpu(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("xpu", dtype=BF16):
            return self.down(self.up(x))


def test_an_autocast_that_is_on_for_another_device_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"autocast\('xpu'\).*x.device.type.* in blocks.0"):
        trace(*_stacked([OnXpu()]))


class OffGpu(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", enabled=False):
            return x + self.down(self.up(x))


def test_an_autocast_for_another_device_that_is_off_is_none() -> None:
    model, batch = _stacked([OffGpu()])
    assert error(interpret(trace(model, batch), model, batch), run_eagerly(model, batch)) < 1e-6
