"""Changes that outlive a step or can not be followed are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from changes import SEQUENCE, WIDTH, Change, Net, batch_of
from torch import nn
from torch.nn import functional as F

from partitioner.errors import InputError
from partitioner.tracing.trace import trace

REFUSED: dict[str, tuple[Change, str]] = {}


def refused(words: str) -> Callable[[Change], Change]:
    def note(change: Change) -> Change:
        REFUSED[change.__name__] = change, words
        return change

    return note


@refused("changes average in its forward in the top module at .*changes.py:\\d+ .*outlives a step")
def buffer(net, h, tokens):
    with torch.no_grad():
        net.average.mul_(0.9).add_(h.mean((0, 1)) * 0.1)
    return h * net.average


@refused("changes seen in its forward .*outlives a step")
def counter(net, h, tokens):
    net.seen += 1
    return h


@refused("changes average in its forward .*outlives a step")
def buffer_through_a_view(net, h, tokens):
    net.average.view(2, 3)[0].mul_(2)
    return h * net.average


@refused("changes average in its forward, where it assigns it: .*outlives a step")
def buffer_assigned(net, h, tokens):
    net.average = net.average * 0.9
    return h * net.average


@refused("changes average in its forward .*outlives a step")
def buffer_detached(net, h, tokens):
    net.average.detach()[1:].copy_(h[0, 0, 1:])
    return h


@refused("changes plain in its forward .*outlives a step")
def attribute(net, h, tokens):
    net.plain.mul_(2)
    return h * net.plain


@refused("changes plain in its forward, where it assigns it: .*outlives a step")
def attribute_assigned(net, h, tokens):
    net.plain = net.plain * 0.9
    return h * net.plain


@refused("changes linear.weight in its forward .*outlives a step")
def weight(net, h, tokens):
    with torch.no_grad():
        net.linear.weight.clamp_(-0.1, 0.1)
    return h


@refused("changes linear.weight in its forward .*outlives a step")
def weight_data(net, h, tokens):
    net.linear.weight.data.clamp_(-0.1, 0.1)
    return net.linear(h)


@refused("assigns to a tensor's .data")
def data_assigned(net, h, tokens):
    net.linear.weight.data = net.linear.weight.data.clamp(-0.1, 0.1)
    return net.linear(h)


@refused("changes frozen.weight in its forward .*outlives a step")
def frozen_weight(net, h, tokens):
    net.frozen.weight[0].zero_()
    return h + net.frozen(tokens)


@refused("changes mean in its forward .*outlives a step")
def batch_statistics(net, h, tokens):
    return F.batch_norm(h.flatten(0, 1), net.mean, net.variance, training=True).view_as(h)


@refused("changes variance|changes mean in its forward .*outlives a step")
def instance_statistics(net, h, tokens):
    return F.instance_norm(h.mT, net.mean, net.variance, use_input_stats=True).mT


@refused("aten.batch_norm writes into other operands .*changes.py")
def statistics_of_no_module(net, h, tokens):
    return F.batch_norm(h.flatten(0, 1), net.mean.clone(), net.variance.clone(), training=True).view_as(h)


@refused("_foreach_mul_.Scalar writes into other operands .*changes.py:\\d+")
def foreach(net, h, tokens):
    x = h * 1
    torch._foreach_mul_([x], 2)
    return x


@refused("mul.out writes into other operands .*changes.py")
def out_argument(net, h, tokens):
    x = net.frozen(tokens)
    torch.mul(net.frozen(tokens), 2, out=x)
    return h + x


@refused("expand.*can't be inverted")
def one_row_of_an_expanded_tensor(net, h, tokens):
    x = net.frozen(tokens)[:, :1].clone()
    x.expand(-1, 3, -1)[:, 1].mul_(2)
    return h + x


@refused("unfold.*can't be inverted")
def overlapping_windows(net, h, tokens):
    x = net.frozen(tokens)
    x.unfold(1, 2, 2)[..., 0].mul_(2)
    return h + x


@refused("as_strided.*can't be inverted")
def strided_by_hand(net, h, tokens):
    x = h * 1
    x.as_strided((2, 3), (6, 2)).mul_(2)
    return x


@refused("as_strided.*has changed")
def read_by_hand_after_a_change(net, h, tokens):
    x = h * 1
    x.T.mul_(2) if x.dim() == 2 else x.mul_(2)
    return x + x.as_strided((6,), (1,))


@refused("reads .*unfold.*changed since: take the view after")
def stale_windows(net, h, tokens):
    x = h * 1
    windows = x.unfold(1, 2, 2)
    x.mul_(2)
    return x + windows.mean()


@refused("overlapping parts of one tensor.*changes.py.*clone")
def shifted_onto_itself(net, h, tokens):
    x = net.frozen(tokens)
    x[..., 1:] += x[..., :-1]
    return h + x


@refused("fill_diagonal_ wraps around .*changes.py")
def wrapping_diagonal(net, h, tokens):
    x = h.flatten(0, 1) * 1
    x.fill_diagonal_(0, wrap=True)
    return x.view_as(h)


@refused("another storage .*changes.py|can't be traced")
def resized(net, h, tokens):
    x = net.frozen(tokens)
    x.resize_(h.shape[0], SEQUENCE, 2)
    return h + x.mean()


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_that_can_not_be_followed_is_refused_by_name(name: str) -> None:
    change, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as caught:
        trace(Net(change), batch_of(5))
    assert "\n" not in str(caught.value)


def test_an_embedding_that_renormalizes_its_weight_is_refused_and_left_alone() -> None:
    net = Net(lambda net, h, tokens: h)
    net.embed = nn.Embedding(8, WIDTH, max_norm=0.1)
    before = net.embed.weight.detach().clone()
    with pytest.raises(InputError, match=r"changes embed.weight in its forward in embed .*outlives a step"):
        trace(net, batch_of(5))
    assert torch.equal(net.embed.weight, before)
