"""A change through any view reaches base and siblings, as in eager, whatever autograd sees of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from changes import SEQUENCE, WIDTH, Net, assert_equal_to_eager, batch_of
from torch.nn import functional as F

from partitioner.errors import InputError
from partitioner.tracing.trace import trace

# one view a line, each changed while its base and a sibling taken before are read afterwards
VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "view": lambda h: h.view(h.shape[0], -1),
    "flat": lambda h: h.view(-1),
    "reshape": lambda h: h.reshape(-1, WIDTH),
    "flatten": lambda h: h.flatten(1),
    "unflatten": lambda h: h.unflatten(-1, (2, 3)),
    "transpose": lambda h: h.transpose(1, 2),
    "permute": lambda h: h.permute(2, 0, 1),
    "mT": lambda h: h.mT,
    "movedim": lambda h: h.movedim(0, -1),
    "swapaxes": lambda h: h.swapaxes(0, 2),
    "t": lambda h: h.view(-1, WIDTH).t(),
    "T": lambda h: h.view(-1, WIDTH).T,
    "unsqueeze": lambda h: h.unsqueeze(1),
    "squeeze": lambda h: h[:, :1].squeeze(1),
    "squeezed twice": lambda h: h[:, None, :, None].squeeze(),
    "slice": lambda h: h[:, 1:3],
    "steps": lambda h: h[..., ::2],
    "negative slice": lambda h: h[:, -2:],
    "select": lambda h: h[:, 1],
    "last": lambda h: h[:, -1],
    "narrow": lambda h: h.narrow(1, -3, 2),
    "tensor_split": lambda h: h.tensor_split(4, -1)[2],
    "split at places": lambda h: h.tensor_split((1, 4), -1)[1],
    "diagonal": lambda h: h.diagonal(0, 1, 2),
    "alias": lambda h: torch.ops.aten.alias(h),
    "view_as": lambda h: h.view_as(h),
    "expand of one size": lambda h: h.expand(-1, -1, -1),
    "expand_as": lambda h: h.expand_as(h),
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(h.dtype),
    "type_as": lambda h: h.type_as(h),
    "chain": lambda h: h.transpose(0, 1)[1:].unflatten(-1, (3, 2))[..., 0].permute(2, 1, 0)[1],
    "heads": lambda h: h.view(h.shape[0], SEQUENCE, 2, 3).transpose(1, 2)[:, 1],
    "ellipsis": lambda h: h[..., None, 2:5][:, 0],
    "view_as_complex": lambda h: torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (3, 2))))[..., 1],
}
MANY = {  # eager refuses to change these where they have a gradient
    "unbind": lambda h: h.unbind(1)[2],
    "chunk": lambda h: h.chunk(3, -1)[1],
    "split": lambda h: h.split(4, -1)[1],
    "split_with_sizes": lambda h: h.split([1, 2, 3], -1)[1],
    "one chunk": lambda h: h.chunk(1, -1)[0],
}
COPIES = {
    "reshape of strided": lambda h: h.transpose(1, 2).reshape(-1, SEQUENCE),
    "contiguous of strided": lambda h: h.transpose(1, 2).contiguous(),
    "flatten of strided": lambda h: h[:, :, 1:].flatten(1),
    "clone": lambda h: h.clone(),
    "index": lambda h: h[:, torch.arange(2)],
}


@pytest.mark.parametrize("name", [*VIEWS, *COPIES])
def test_a_change_through_a_view_reaches_its_base_and_every_sibling(name: str) -> None:
    view = {**VIEWS, **COPIES}[name]

    def change(net: Net, h: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        before, flat, part = h.clone().square(), h.view(-1), h.transpose(1, 2)[:, 1:4]
        changed = view(h)
        changed.mul_(0.7).add_(changed.clone().tanh() * net.linear.weight[0, 0])
        return h + before + flat.sin().view_as(h) + F.pad(part.mT, (1, 2)) + changed.cos().sum() * 0.1

    assert_equal_to_eager(Net(change))


@pytest.mark.parametrize("name", [*VIEWS, *MANY, *COPIES])
def test_a_change_of_what_has_no_gradient_takes_the_written_value_gradient(name: str) -> None:
    view = {**VIEWS, **MANY, **COPIES}[name]

    def change(net: Net, h: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        x = net.frozen(tokens)
        flat, last, changed = x.flatten(1), x[:, -1], view(x)
        changed.mul_(2).add_(0.1)
        x[:, 1:3].add_(h[:, :2])
        return h + x + flat.cos().view_as(x) + last[:, None] * 3

    assert_equal_to_eager(Net(change))


@pytest.mark.parametrize("name", MANY)
def test_integers_are_changed_through_many_views(name: str) -> None:
    def change(net: Net, h: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ids = tokens[..., None].repeat(1, 1, WIDTH)
        kept = ids.view(-1)
        MANY[name](ids).fill_(3)
        return h + net.embed(ids[..., 2]) + net.frozen(kept.view_as(ids)[:, :, 5])

    assert_equal_to_eager(Net(change))


WAYS = ("detach", "data", "no_grad", "view in no_grad", "detached view")


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        pytest.param(name, way, marks=() if n % len(WAYS) == m else pytest.mark.parity)
        for n, name in enumerate([*VIEWS, *MANY, *COPIES]) for m, way in enumerate(WAYS)
    ],
)  # fmt: skip
def test_a_change_that_autograd_does_not_see_leaves_the_gradient(name: str, hidden: str) -> None:
    view = {**VIEWS, **MANY, **COPIES}[name]

    def change(net: Net, h: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        h, flat = h * 1.0, None
        flat = h.flatten(1)
        if hidden == "detach":
            view(h.detach()).mul_(0.5)
        elif hidden == "data":
            view(h.data).mul_(0.5)
        elif hidden == "view in no_grad":
            with torch.no_grad():
                view(h).mul_(0.5)
        elif hidden == "no_grad":
            part = view(h)
            with torch.no_grad():
                part.mul_(0.5)
        else:
            view(h).detach().mul_(0.5)
        return h + flat.sin().view_as(h)

    assert_equal_to_eager(Net(change))


@pytest.mark.parametrize("name", MANY)
def test_what_eager_refuses_to_change_is_refused(name: str) -> None:
    def change(net: Net, h: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        x = h * 1
        MANY[name](x).mul_(2)
        return x

    with pytest.raises(RuntimeError, match="returns multiple views"):
        Net(change)(**batch_of(5))
    with pytest.raises(InputError, match=r"can't be traced.*test_view_inverses.py:\d+ .*multiple views"):
        trace(Net(change), batch_of(5))


def test_a_refusal_names_the_line_whatever_self_is_called() -> None:
    class Short(Net):
        def forward(s, tokens, labels):  # noqa: N805
            s.embed(tokens).unbind(1)[0].mul_(2)

    with pytest.raises(InputError, match=r"in the top module at .*test_view_inverses.py:\d+ \(s.embed"):
        trace(Short(lambda net, h, tokens: h), batch_of(5))
