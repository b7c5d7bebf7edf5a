"""Is a graph its module? Both run on fresh batches of other sizes than the traced one, losses and gradients compared.

A copy of the module runs eagerly in float64, constant parameters perturbed so that every gradient tells, what is random
drawn by the graph's keys; the graph runs promoted to float64. What differs is refused, and the module where it does is
named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from partitioner.comparing.eager_float64 import Rounding, Widening, copied, float64_by_default, wide, widened
from partitioner.comparing.graph_float64 import promote
from partitioner.comparing.perturb import perturb
from partitioner.comparing.resample import resample
from partitioner.draws.eager_draws import eager_draws
from partitioner.errors import InputError
from partitioner.graph.dependence import module_path
from partitioner.graph.graph import Graph
from partitioner.graph.interpret import arguments, step_values
from partitioner.graph.nodes import op_of
from partitioner.graph.resize_batch import resize
from partitioner.sharding.op_rules import rule_of
from partitioner.user_code.batches import flat
from partitioner.user_code.outputs import loss_of

MOST_PARAMETERS = 20_000_000
MOST_FLOPS = 1e11  # forward and backward of graph and module on both batches
LIMIT = 1e-9  # of float64: a larger relative error is a difference
ROUNDED = 64  # times the unit of a lower dtype, where the module rounds to it even in float64
SMALLEST = 1e-6  # what is smaller is a difference of numbers that are not: its error is measured against this
FLOOR = 1e-3  # of the median gradient, or its module's largest: below it an error is measured against this

Batch = Mapping[str, Any]  # of tensors, or nested ones


class _FailsItself(InputError):
    """The module can't run, forward or backward, on a batch of valid samples."""


@dataclass(frozen=True)
class _Ran:
    """Loss and gradients; ``outputs`` of modules in the order in which they ended, ``limit`` of what is rounding."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor | None]
    limit: float
    outputs: list[tuple[str, torch.Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pair:
    """A graph and its module: ``exact`` in float64 throughout, else in the model's own dtypes."""

    graph: Graph
    module: nn.Module
    exact: bool

    def resized(self, samples: int) -> _Pair:
        return replace(self, graph=resize(self.graph, samples))

    def given(self, batch: Batch) -> dict[str, Any]:
        """The batch, copied, since forward may change it."""
        return tree_map_only(torch.Tensor, lambda t: wide(t.clone()) if self.exact else t.clone(), dict(batch))

    def dtypes(self) -> AbstractContextManager[object]:
        return float64_by_default() if self.exact else nullcontext()

    def widening(self) -> AbstractContextManager[object]:
        return Widening() if self.exact else nullcontext()

    def limit(self, rounding: Rounding) -> float:
        """The relative error that is a difference, for a run that rounded so."""
        if not self.exact:
            made = [torch.finfo(dtype).eps for dtype in rounding.made]
            return math.sqrt(max(made, default=torch.finfo(torch.float32).eps))
        return LIMIT if rounding.first is None else ROUNDED * torch.finfo(rounding.first[1]).eps


def check_capture(graph: Graph, model: nn.Module, batch: Batch, sizes: tuple[int, int]) -> str:
    """Compare ``graph`` with ``model``; "" when they are equal, why they were not compared when that is too dear.

    ``batch`` is the example, ``sizes`` those that were traced. Raises InputError when loss or a gradient differs.
    """
    tried = _other_sizes(sizes)
    why = _too_dear(graph, model, batch, sum(tried))
    if why:
        return f"the graph was not compared with the module: {why}; partitioner verify compares them"
    module = copied(model).to("cpu")
    perturb(module)
    exact, own = _Pair(promote(graph), widened(module), True), _Pair(graph, module, False)
    for seed, samples in enumerate(tried):
        given = tree_map_only(torch.Tensor, torch.Tensor.cpu, resample(batch, graph.batched, samples, seed))
        loss = _compare(exact.resized(samples), own.resized(samples), given)
        if not math.isfinite(loss):
            return f"the graph was not compared with the module: on the example's samples its loss is {loss}"
    return ""


def _other_sizes(sizes: tuple[int, int]) -> tuple[int, int]:
    """Two batch sizes that were not traced; even ones where only even ones can run."""
    unit = sizes[0] if sizes[1] == 2 * sizes[0] and sizes[0] > 1 else 1
    found = [n for n in range(unit, 8 * unit, unit) if n not in sizes and n > 1]
    return found[0], found[1]


def _too_dear(graph: Graph, model: nn.Module, batch: Batch, samples: int) -> str:
    tensors = [*model.parameters(), *model.buffers(), *flat(batch).tensors.values()]
    parameters = sum(p.numel() for p in model.parameters())
    if parameters > MOST_PARAMETERS:
        return f"it has {parameters:,} parameters, more than {MOST_PARAMETERS:,}"
    if any(t.is_meta for t in tensors):
        return "it has no values, on the meta device"
    flops = 6.0 * samples / graph.batch * _flops(graph)
    return f"it would take {flops:.1g} FLOPs, more than {MOST_FLOPS:.1g}" if flops > MOST_FLOPS else ""


def _flops(graph: Graph) -> float:
    """Of a forward of the traced batch."""
    rows = ((n, rule_of(str(n.target))) for n in graph.nodes.values() if n.op == "call_function")
    return sum(rule.flops(op_of(n)) for n, rule in rows if rule)


def _compare(exact: _Pair, own: _Pair, batch: Batch) -> float:
    """The module's loss; raises InputError when the graph's or a gradient is another.

    What differs in float64 is another graph, unless the module itself is another there, since it asks for its dtypes,
    or rounds to lower ones than float32, as what was captured then does too.
    """
    wanted = _tried(exact, batch)
    name = _different(_interpreted(exact, batch), wanted) if wanted else ""
    if wanted and not name:
        return float(wanted.loss)
    plain = _eagerly(own, batch)
    rounds_low = plain.limit > math.sqrt(torch.finfo(torch.float32).eps)
    if wanted and not rounds_low and not _different(replace(wanted, limit=plain.limit), plain):
        raise _refusal(name, exact, batch)
    name = _different(_interpreted(own, batch), plain)
    if name:
        raise _refusal(name, own, batch)
    return float(plain.loss)


def _tried(pair: _Pair, batch: Batch) -> _Ran | None:
    """None where the module has no float64; in its own dtypes it must run."""
    try:
        return _eagerly(pair, batch)
    except _FailsItself:
        return None


def _refusal(name: str, pair: _Pair, batch: Batch) -> InputError:
    where = _first_module(pair, batch)
    return InputError(
        f"what was traced is not the module: {name} differs on a batch of {pair.graph.batch} samples"
        f"{f', first in {where}' if where else ''}; partitioner refuses to train something else"
    )


def _different(found: _Ran, wanted: _Ran) -> str:
    """What is not equal: "the loss", or the gradient of the parameter that backward reaches first."""
    if not _close(found.loss, wanted.loss, wanted.limit, 0.0):
        return "the loss"
    given = [g for g in wanted.gradients.values() if g is not None and g.numel()]
    sizes = sorted(size for g in given if math.isfinite(size := float(g.abs().max())))
    median, largest = sizes[len(sizes) // 2] if sizes else 0.0, largest_of_modules(wanted.gradients)
    for name, gradient in reversed(wanted.gradients.items()):
        other = found.gradients[name]
        if gradient is None and other is None:
            continue
        a, b = (torch.zeros(()) if g is None else g for g in (other, gradient))
        if not _close(a, b, wanted.limit, FLOOR * max(median, largest[name])):
            return f"the gradient of {name}"
    return ""


def largest_of_modules(gradients: Mapping[str, torch.Tensor | None]) -> dict[str, float]:
    """For each parameter the largest number in the gradients of those of its module.

    A bias that changes nothing (of the keys of an attention) has a gradient of rounding, as large as this rounds.
    """
    found: dict[str, float] = {}
    for name, gradient in gradients.items():
        if gradient is not None and gradient.numel():
            owner = name.rpartition(".")[0]
            found[owner] = max(found.get(owner, 0.0), float(gradient.abs().max()))
    return {name: found.get(name.rpartition(".")[0], 0.0) for name in gradients}


def _close(a: torch.Tensor, b: torch.Tensor, limit: float, floor: float) -> bool:
    if a.numel() == 0 and b.numel() == 0:
        return True
    finite = b.isfinite()
    if not bool((finite | (a == b) | a.isnan() & b.isnan()).all()):
        return False
    scale = max(float(b.where(finite, 0.0).abs().max()), floor, SMALLEST)
    return float((a - b).where(finite, 0.0).abs().max()) <= limit * scale


def _eagerly(pair: _Pair, batch: Batch, watch: bool = False) -> _Ran:
    module, graph = pair.module, pair.graph
    module.zero_grad()
    outputs: list[tuple[str, torch.Tensor]] = []
    handles = [m.register_forward_hook(_noting(name, outputs)) for name, m in module.named_modules()] if watch else []
    rounding = Rounding()
    try:
        with pair.dtypes(), eager_draws(module, graph, 0, 0, range(graph.batch)), rounding, pair.widening():
            loss = _step(module, pair.given(batch))
    finally:
        for handle in handles:
            handle.remove()
    own = dict(module.named_parameters(remove_duplicate=False))
    return _Ran(loss.detach(), {n: own[n].grad for n in graph.parameters}, pair.limit(rounding), outputs)


def _step(module: nn.Module, batch: Batch) -> torch.Tensor:
    """The loss, after its backward."""
    try:
        loss = loss_of(module(**batch), type(module).__name__)
        if loss.requires_grad:
            loss.backward()
    except InputError:
        raise
    except Exception as error:  # any code of the user's runs here
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in flat(batch).tensors.items())
        words = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise _FailsItself(f"{type(module).__name__} itself fails on a batch of {shapes}: {words}") from error
    return loss


def _noting(name: str, outputs: list[tuple[str, torch.Tensor]]) -> Any:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        tensors = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()]
        outputs.extend((name, t.detach().clone()) for t in tensors[:1])

    return note


def _interpreted(pair: _Pair, batch: Batch, watch: bool = False) -> _Ran:
    own, graph = dict(pair.module.named_parameters(remove_duplicate=False)), pair.graph
    copies = {n: own[n].detach().clone().requires_grad_(p.requires_grad) for n, p in graph.parameters.items()}
    with pair.dtypes():
        given = arguments(graph, copies, step_values(graph, flat(pair.given(batch)).tensors))
        keeping = _Keeping(graph.module)
        result = (keeping if watch else fx.Interpreter(graph.module)).run(*given)
        loss = result[0] if isinstance(result, tuple | list) else result
        if loss.requires_grad:
            loss.backward()
    return _Ran(loss.detach(), {n: p.grad for n, p in copies.items()}, LIMIT, keeping.outputs)


class _Keeping(fx.Interpreter):
    """Keeps what each op of each module makes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.outputs: list[tuple[str, torch.Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor) and result.is_floating_point():
            self.outputs += [(name, result.detach()) for name in dict.fromkeys(module_path(n))]
        return result


def _first_module(pair: _Pair, batch: Batch) -> str:
    """The first module whose output no op of the graph that it made is equal to; "" where all have one."""
    ran = _eagerly(pair, batch, watch=True)
    made: dict[str, list[torch.Tensor]] = {}
    for name, tensor in _interpreted(pair, batch, watch=True).outputs:
        made.setdefault(name, []).append(tensor)
    for name, output in ran.outputs:
        alike = [t for t in made.get(name, []) if t.numel() == output.numel()]
        if alike and not any(_close(t.flatten(), output.flatten(), max(ran.limit, 1e-6), 0.0) for t in alike):
            return name or "the model"
    return ""
