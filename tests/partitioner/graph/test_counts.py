"""Losses of many spellings: micro-batches of the graph, added up, are the eager module on the whole batch."""

from __future__ import annotations

import pytest
import torch
from spellings import MIXING, SEPARATE, Loss, Net, make_batch
from torch.nn import functional as F

from partitioner.comparing.graph_float64 import promote
from partitioner.errors import InputError
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import arguments, step_values
from partitioner.graph.resize_batch import resize
from partitioner.graph.step_inputs import BATCH_SHARE, SAMPLE_COUNT
from partitioner.tracing.trace import trace

TRACED, MICRO, MANY = 4, 2, 3  # samples traced, samples of a micro-batch, micro-batches


def _of(loss: Loss) -> tuple[Net, Graph]:
    torch.manual_seed(0)
    net = Net(loss)
    return net, trace(net, make_batch(TRACED))


def _in_micro_batches(net: Net, graph: Graph, batch: dict[str, torch.Tensor], micro: int) -> list[torch.Tensor]:
    """Loss and gradients, as an engine adds them up."""
    graph = resize(promote(graph), micro)
    samples = len(batch["x"])
    rows = [
        {n: t[i : i + micro] if n in graph.batched else t for n, t in batch.items()} for i in range(0, samples, micro)
    ]
    own = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    values = [step_values(graph, row) for row in rows]
    for value in values:
        value[SAMPLE_COUNT] = torch.tensor(samples)
        value[BATCH_SHARE] = torch.tensor(micro / samples, dtype=torch.float64)
    for count in graph.counts:
        buffers = {f"buffer:{n}": b for n, b in graph.buffers.items()}
        whole = sum(count.module(*({**buffers, **v}[n] for n in count.arguments)) for v in values)
        for value in values:
            value[count.name] = whole  # type: ignore[assignment]
    losses = [graph.module(*arguments(graph, own, value)) for value in values]
    loss = sum(one[0] if isinstance(one, tuple) else one for one in losses)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in own.values())]


def _eagerly(net: Net, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    loss = net(**batch)
    loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters())]


@pytest.fixture
def _float64() -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", SEPARATE)
def test_micro_batches_add_up_to_the_eager_module(name: str) -> None:
    net, graph = _of(SEPARATE[name])
    assert graph.inseparable is None
    batch = make_batch(MICRO * MANY)
    batch = {n: t.double() if t.is_floating_point() else t for n, t in batch.items()}
    found, wanted = _in_micro_batches(net, graph, batch, MICRO), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_samples_is_named_and_right_in_one_micro_batch(name: str) -> None:
    net, graph = _of(MIXING[name])
    assert graph.inseparable is not None
    batch = {n: t.double() if t.is_floating_point() else t for n, t in make_batch(6).items()}
    found, wanted = _in_micro_batches(net, graph, batch, 6), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in SEPARATE if "nll of log" in n or "log s" in n or n == "none then mean"])
def test_every_spelling_of_a_cross_entropy_is_one_op(name: str) -> None:
    _, graph = _of(SEPARATE[name])
    assert any(n.target == torch.ops.partitioner.cross_entropy.default for n in graph.nodes.values())
    assert not any("log_softmax" in str(n.target) or "logsumexp" in str(n.target) for n in graph.nodes.values())


def test_a_number_of_another_law_is_refused() -> None:
    with pytest.raises(InputError, match=r"aten.mul.Tensor in the model has the number 2.0 for 4 samples and 2.236"):
        _of(lambda net, z, y, h: F.cross_entropy(z.flatten(0, 1), y.flatten()) * len(y) ** 0.5)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", [n for n in SEPARATE if n.endswith(("nothing counts", "be none")) or "where it" in n])
def test_where_nothing_is_counted_the_loss_is_the_modules(name: str) -> None:
    """Its gradient is the module's too, which is no number where it divides by zero."""
    net, graph = _of(SEPARATE[name])
    batch = {n: t.double() if t.is_floating_point() else t for n, t in make_batch(MICRO * MANY).items()}
    batch["m"].zero_()
    found, wanted = _in_micro_batches(net, graph, batch, MICRO), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", [n for n in MIXING if "preference" in n or "pairs" in n or "halves" in n])
def test_what_takes_halves_or_pairs_is_right_though_it_was_not_compared(name: str) -> None:
    """Half of four is half of five: other sizes are traced."""
    torch.manual_seed(0)
    net = Net(MIXING[name])
    graph = trace(net, make_batch(TRACED), compare=False)
    batch = {n: t.double() if t.is_floating_point() else t for n, t in make_batch(6).items()}
    found, wanted = _in_micro_batches(net, graph, batch, 6), _eagerly(net, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_two_dimensions_of_samples_made_one_are_refused() -> None:
    with pytest.raises(InputError, match=r"(reshape|flatten)\S* in the model .* does not grow evenly"):
        _of(lambda net, z, y, h: (h.mean(1) @ h.mean(1).T).flatten().logsumexp(0))
