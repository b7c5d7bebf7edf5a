"""What an optimizer's update reads, found by trying it: ranks hold parts of some parameters, and stages some of them.

    whole      p (4, 4)                 three steps on the same gradients are, element by element,
    parts      p[:2], then p[2:]        the same: a part is updated as the whole is
    alone      p without its like       the same: what other stages hold is not read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from partitioner.errors import InputError
from partitioner.lowering.program import Program
from partitioner.sharding.layout import Shard
from partitioner.sharding.mesh_axes import PP
from runtime.state.optimizer import Factory

SIZE, STEPS = 4, 3  # of each dimension; of an optimizer
CLOSE = 1e-9  # relative: an update of the same values in another order
Tensors = dict[str, torch.Tensor]


def check_updates(program: Program, made: Factory, device: torch.device) -> None:
    """Raise InputError for an optimizer whose update of a parameter reads what not every rank holds of the model.

    It is tried on small tensors of the names and numbers of dimensions of the trained parameters, in float64.
    """
    shapes = {name: (SIZE,) * len(p.shape) for name, p in program.parameters.items() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    start = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    grads = [
        {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in start.items()} for _ in range(STEPS)
    ]
    kind, whole = _updated(made, start, grads, device)
    divided = [name for name in start if _is_divided(program, name)]
    for parts in _parts(start, divided):
        for name in _differing(whole, _joined(made, parts, start, grads, device)):
            raise InputError(
                f"optimizer {kind} updates {name} as a whole, and ranks hold parts of it: plan with tp=1 and zero=0, "
                "or take one that updates each element by itself"
            )
    if program.mesh[PP] > 1:
        _, alone = _updated(made, dict([*start.items()][::2]), grads, device)
        for name in _differing({n: whole[n] for n in alone}, alone):
            raise InputError(
                f"optimizer {kind} updates {name} by what other parameters have, of which stages hold some each: plan "
                "with pp=1, or take one that updates each parameter by itself"
            )


def _is_divided(program: Program, name: str) -> bool:
    parameter = program.parameters[name]
    axes = zip(program.axes, parameter.layout, strict=True)
    return program.is_sharded(parameter) or any(
        ranks > 1 and isinstance(placement, Shard) for (_, ranks), placement in axes
    )


def _parts(start: Mapping[str, torch.Tensor], divided: Sequence[str]) -> Iterator[dict[str, int]]:
    """Along which dimension each divided parameter is halved: along the first, then along the second, ..."""
    for dim in range(max((start[name].dim() for name in divided), default=0)):
        yield {name: dim for name in divided if dim < start[name].dim()}


def _joined(
    made: Factory, parts: Mapping[str, int], start: Tensors, grads: list[Tensors], device: torch.device
) -> Tensors:
    """What the halves become, one after the other, put together."""
    halves = list[Tensors]()
    for half in (0, 1):

        def own(tensors: Tensors, half: int = half) -> Tensors:
            return {n: t.chunk(2, parts[n])[half] if n in parts else t for n, t in tensors.items()}

        halves.append(_updated(made, own(start), [own(g) for g in grads], device)[1])
    return {name: torch.cat([half[name] for half in halves], dim) for name, dim in parts.items()}


def _updated(made: Factory, start: Tensors, grads: list[Tensors], device: torch.device) -> tuple[str, Tensors]:
    """The optimizer's name, and what it makes of parameters."""
    parameters = {name: nn.Parameter(t.clone().to(device)) for name, t in start.items()}
    try:
        optimizer = made(list(parameters.items()))
    except InputError:
        raise
    except Exception as error:  # any optimizer's code may run here
        raise InputError(f"the optimizer can't be made: {error}") from error
    kind = type(optimizer).__name__
    for step in grads:
        for name, parameter in parameters.items():
            parameter.grad = step[name].clone().to(device)
        try:
            optimizer.step()
        except Exception as error:  # any optimizer's code may run here
            raise InputError(f"optimizer {kind} can't step: {error}") from error
    return kind, {name: p.detach().cpu() for name, p in parameters.items()}


def _differing(whole: Mapping[str, torch.Tensor], found: Tensors) -> Iterator[str]:
    return (n for n, t in found.items() if not torch.allclose(whole[n], t, rtol=CLOSE, atol=CLOSE))
