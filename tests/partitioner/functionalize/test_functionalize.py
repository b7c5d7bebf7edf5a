"""Stale views, detached tensors and regions without autograd: loss and gradients are the eager module's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from changes import WIDTH, Change, Net, assert_equal_to_eager, batch_of
from torch import nn
from torch.nn import functional as F

EQUAL: dict[str, Change] = {}


def equal(change: Change) -> Change:
    EQUAL[change.__name__] = change
    return change


@equal
def views_of_views_go_stale_twice(net, h, tokens):
    x = h * 1
    a = x.transpose(1, 2)
    b, c = a[:, 1:], a[:, :3].unflatten(1, (3, 1))
    b.mul_(2)
    c.add_(1)
    x[:, 0].sub_(b[..., 1].mean(-1, keepdim=True))
    return x + a.mT + F.pad(b.mT, (1, 0)) + F.pad(c.flatten(1, 2).mT, (0, 3))


@equal
def many_views_go_stale(net, h, tokens):
    x = net.frozen(tokens)
    q, k, v = x.chunk(3, -1)
    rows = x.unbind(1)
    x.mul_(2)
    k.add_(1)
    return h + torch.cat([v, q, k.cos()], -1) + torch.stack(rows[::-1], 1)


@equal
def shape_changed_in_place(net, h, tokens):
    x = h * 1
    x.unsqueeze_(1)
    x.squeeze_(1).transpose_(1, 2)
    x[:, 1:].mul_(2)
    y = (net.linear.weight * 1).t_()
    y[0].mul_(2)
    return x.mT @ y


@equal
def detached_in_place(net, h, tokens):
    x, y = h * 1, h * 2
    x.detach_()
    x.mul_(net.linear.bias)
    return x + y


@equal
def detached_with_a_gradient_of_its_own(net, h, tokens):
    x = h * 1
    d = x.detach()
    d.mul_(net.linear.bias)
    x.mul_(3)
    d.view(-1).add_(1)
    return x * 7 + d * 5


@equal
def detached_after_a_change(net, h, tokens):
    x = h * 1
    x[:, 1:].mul_(2)
    d = x.detach()
    x[:, :1].mul_(3)
    return x + d * net.linear.bias


@equal
def clamp_hidden_from_autograd(net, h, tokens):
    x = h.masked_fill((tokens == 1)[..., None], float("-inf"))
    x.detach().clamp_(min=-1)
    return x


@equal
def straight_through(net, h, tokens):
    return h + (h.round() - h).data


@equal
def weight_without_gradient(net, h, tokens):
    return F.linear(h, net.linear.weight.data)


@equal
def computed_without_gradient(net, h, tokens):
    with torch.no_grad():
        x = h * 2
        x[:, 1:].add_(net.linear.bias)
        same = h.contiguous().to(h.dtype)
        last = h[:, -1]
    x[:, 0].mul_(net.linear.bias)
    return x + same + last[:, None].cos() + h.mean()


@equal
def same_tensor_out_of_no_grad(net, h, tokens):
    x = h * 1
    with torch.no_grad():
        y = x.mul_(2).contiguous().float() if x.dtype == torch.float32 else x.mul_(2).contiguous()
        z = y * 3
    return x + y * 2 + z


@equal
def gradient_switched_on_inside(net, h, tokens):
    with torch.no_grad():
        x = h * 2
        with torch.enable_grad():
            y = net.linear(x)
        z = y * 2
    return y + z


@equal
def dropout_that_is_off_returns_its_operand(net, h, tokens):
    x = h * 1
    y = F.dropout(x, 0.5, training=False)
    y.mul_(2)
    return x + y


@equal
def table_made_when_first_needed(net, h, tokens):
    if not hasattr(net, "table"):
        net.register_buffer("table", None)
        net.again = None
    if net.table is None:
        net.table = torch.arange(WIDTH) * 0.1
    net.again = torch.arange(WIDTH) * 0.2
    return h * net.table + net.again


@pytest.mark.parametrize("name", EQUAL)
def test_loss_and_gradients_are_eagers(name: str) -> None:
    assert_equal_to_eager(Net(EQUAL[name]))


class Stack(nn.Module):
    """Six blocks, of which export is shown three, that change what they are handed through a view."""

    def __init__(self, block: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(8, WIDTH), nn.Linear(WIDTH, 8)
        self.layers = nn.ModuleList(Block(block) for _ in range(6))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens) * 1
        for layer in self.layers:
            h = layer(h)
        return F.cross_entropy(self.head(h).flatten(0, 1), labels.flatten())


class Block(nn.Module):
    def __init__(self, block: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.block, self.linear = block, nn.Linear(WIDTH, WIDTH)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.block(self.linear, h)


def _own(linear: nn.Linear, h: torch.Tensor) -> torch.Tensor:
    x = linear(h)
    x.view(-1, WIDTH)[:, 1:].mul_(0.5)
    return h + x


def _handed(linear: nn.Linear, h: torch.Tensor) -> torch.Tensor:
    x = linear(h)
    h.view(-1).mul_(0.5)
    return h + x


def _same(linear: nn.Linear, h: torch.Tensor) -> torch.Tensor:
    h += linear(h.clone()).tanh()
    return h


@pytest.mark.parametrize("block", [_own, _same, _handed])
def test_alike_blocks_that_change_in_place_are_eagers(block: Callable[[nn.Linear, torch.Tensor], torch.Tensor]) -> None:
    net = Stack(block)
    if block is _handed:  # the linear's backward reads what has changed since
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            net(**batch_of(5)).backward()
    else:
        assert_equal_to_eager(net)
