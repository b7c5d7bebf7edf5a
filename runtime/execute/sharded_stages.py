"""State divided over ranks of dp by torch's fully_shard (FSDP2): the only file that speaks to it.

    stage root        parameters that several calls read; gathered from the first forward to the last backward
      holder          of one call: the parameters that it alone reads, gathered for it
        holder        of the same call, of parameters of other data types, and so on
          the call    with all of them whole

    ZeRO    weights gathered                           gradients reduce-scattered
    1       for the first forward of a step            with the last backward
    2       for the first forward of a step            with each backward
    3       for each forward and each backward         with each backward

A holder's parameters are the rank's parts of the state, in the types in which they are held; FSDP2 casts, gathers,
prefetches, adds up and reduces. The optimizer sees the rank's rows as plain tensors, which share their memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from partitioner.errors import InputError
from partitioner.lowering.program import Call, Parameter, Program, Stage
from partitioner.lowering.shard_groups import ShardGroup, rank_shape, shard_groups
from partitioner.ops.collective_kinds import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER
from partitioner.plan.derived_rows import SYNC
from partitioner.sharding.mesh_axes import DP, REPLICA
from runtime.mesh.axis import all_gather, reduce_scatter
from runtime.mesh.communication_log import Phase
from runtime.mesh.groups import Groups

Arguments = list[Any]
Ops = Callable[..., Any]
Around = Callable[[Ops, Arguments], Any]


class ShardedStages:
    """The stages of one rank whose state is divided; ``held`` are its rows of the sharded parameters, by name.

    They lie in FSDP2's memory from now on.
    """

    def __init__(
        self, program: Program, groups: Groups, stages: Iterable[Stage], held: Mapping[str, nn.Parameter]
    ) -> None:
        self._program, self._groups = program, groups
        self.names = frozenset(name for name in held if program.is_sharded(program.parameters[name]))
        self._sharded, self._is_last = dict[str, nn.Parameter](), False
        self._roots: dict[int, Any] = {stage.index: self._root(stage) for stage in stages}
        for name in self.names:
            self._share(name, held[name])

    def run(self, stage: int, calls: Callable[[Mapping[str, torch.Tensor]], Any]) -> Any:
        """A stage's forward: ``calls`` is given the parameters that several of its calls read, and returns tensors."""
        with warnings.catch_warnings():  # of results that are views: nothing is written to what a call returns
            warnings.filterwarnings("ignore", "FSDP2-wrapped module")
            return self._roots[stage](calls)

    def around(self, stage: int, call: Call, number: int) -> Around:
        """What runs a call of a stage with the parameters that it alone reads, of which the arguments hold nothing.

        Those of the next call are gathered meanwhile. The call may be another Program's, of the same parameters:
        ``number`` is its place in its stage. Raises InputError where what it reads is divided and held by none.
        """
        root = self._roots[stage]
        places = {name: n for n, name in enumerate(call.arguments) if name in self.names}
        own = [n for n, holder in enumerate(root.holders) if not places.keys().isdisjoint(holder.names)]
        held = root.by_name().keys() | {name for n in own for name in root.holders[n].names}
        if missing := sorted(places.keys() - held):
            raise InputError(f"{call.block} reads {missing[0]}, which stage {stage} of the plan does not hold: zero=0")
        after = own[-1] if own else number
        ahead = _groups_in(*root.holders[after + 1 : after + 2])
        around = [root.holders[n] for n in own]
        here = _groups_in(*around)

        def run(ops: Ops, arguments: Arguments) -> Any:
            for holder in (*here, *ahead):
                holder.unshard(async_op=True)
            return _inside(around, ops, arguments, places)

        return run

    def before_backward(self, stage: int, is_last: bool) -> None:
        """``is_last``: whether no backward of the stage follows in this step."""
        root, zero = self._roots[stage], self._program.zero
        self._is_last = is_last
        root.set_requires_gradient_sync(is_last or zero > 1)
        root.set_requires_all_reduce(is_last)
        root.set_is_last_backward(is_last)
        root.set_reshard_after_backward(is_last or zero == 3)
        if zero == 3:
            root.set_reshard_after_backward(is_last, recurse=False)

    def _sums(self) -> bool:
        """Whether what is scattered is then summed over those that hold it again."""
        return self._is_last and self._groups.size(REPLICA) > 1

    def clear(self) -> None:
        """Forget the gradients of the last step, and weights that a forward without a backward has left gathered."""
        for root in self._roots.values():
            for part in _groups_in(root):
                part.reshard()
        for parameter in self._sharded.values():
            parameter.grad = None

    def gradient(self, name: str) -> torch.Tensor | None:
        """This rank's rows of a parameter's gradient, summed over dp; None where no backward has come to it."""
        return None if (found := self._sharded[name].grad) is None else _local(found)

    def _root(self, stage: Stage) -> _Root:
        groups = shard_groups(self._program, stage)
        runs = [self._holders(n, groups) for n in range(len(stage.calls))]
        several = [p for group in groups if group.call is None for p in group.parameters]
        root = _Root(runs, self._empty(several))
        self._divide(root, several, reshards=False)
        root.to_empty(device=self._groups.device)
        parts = [module for module in root.modules() if isinstance(module, _Root | _Holder)]
        for module in parts:
            self._sharded |= module.by_name()
        below = [run for run in runs[: self._first_backward(stage)] if isinstance(run, nn.Module)]
        without = {id(part) for run in below for part in run.modules()}
        _prefetch_in_turn([module for module in parts if module.by_name() and id(module) not in without])
        return root

    def _first_backward(self, stage: Stage) -> int:
        """The first call to which a gradient comes: below it nothing trains, and what it reads is gathered in vain."""
        if any(value.differentiable for value in stage.receives):
            return 0
        trained = {name for name, row in self._program.parameters.items() if row.requires_grad}
        reads = (not trained.isdisjoint(call.arguments) for call in stage.calls)
        return next((n for n, found in enumerate(reads) if found), len(stage.calls))

    def _holders(self, number: int, groups: Sequence[ShardGroup]) -> _Holder | _NoHolder:
        """Around a call, one for each of its groups."""
        made: _Holder | _NoHolder = _NoHolder()
        for rows in (group.parameters for group in groups if group.call == number):
            made = _Holder(made, self._empty(rows))
            self._divide(made, rows, reshards=self._program.zero == 3)
        return made

    def _empty(self, own: Sequence[Parameter]) -> dict[str, nn.Parameter]:
        """A rank's parts before dp divides them, without memory."""
        shapes = {p.name: rank_shape(self._program, p, self._groups.coordinates) for p in own}
        meta = {p.name: torch.empty(shapes[p.name], dtype=p.held_dtype, device="meta") for p in own}
        return {p.name: nn.Parameter(meta[p.name], p.requires_grad) for p in own}

    def _divide(self, module: nn.Module, own: Sequence[Parameter], reshards: bool) -> None:
        kinds = {(p.held_dtype, p.dtype, p.gradient_dtype) for p in own}
        if len(kinds) > 1:
            names = ", ".join(p.name for p in own)
            raise InputError(f"{names} are read by several calls in several data types: plan with zero=0")
        held, compute, gradient = next(iter(kinds), (None, None, None))
        policy = MixedPrecisionPolicy(
            param_dtype=None if compute == held else compute, reduce_dtype=gradient, cast_forward_inputs=False
        )
        made: Any = fully_shard(module, mesh=self._groups.state_mesh, mp_policy=policy, reshard_after_forward=reshards)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)
        if own:
            zero = self._program.zero
            often: Phase = "state" if zero == 3 and reshards else "sync"
            made.set_custom_all_gather(_Gather(self._groups, often))
            made.set_custom_reduce_scatter(_Scatter(self._groups, "state" if zero > 1 else "sync", self._sums))

    def _share(self, name: str, held: nn.Parameter) -> None:
        """Let FSDP2's memory and the rank's rows be one."""
        sharded = self._sharded[name]
        local = _local(sharded)
        with torch.no_grad():
            local.copy_(held)
        held.data = local


class _Root(nn.Module):
    """``holders``: what runs each call of a stage; it owns the parameters that several of them read."""

    def __init__(self, holders: Sequence[_Holder | _NoHolder], own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.holders = tuple(holders)
        for n, holder in enumerate(holders):
            if isinstance(holder, nn.Module):
                self.add_module(f"call{n}", holder)
        self._keys = {name: f"p{n}" for n, name in enumerate(own)}
        for name, parameter in own.items():
            self.register_parameter(self._keys[name], parameter)

    def by_name(self) -> dict[str, nn.Parameter]:
        """Its own parameters."""
        return {name: self.get_parameter(key) for name, key in self._keys.items()}

    def forward(self, calls: Callable[[Mapping[str, torch.Tensor]], Any]) -> Any:
        """With its parameters whole."""
        return calls(self.by_name())


class _Holder(nn.Module):
    """Parameters that one call alone reads; ``inner`` runs it with what it holds itself. ``names``: of both."""

    def __init__(self, inner: _Holder | _NoHolder, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.inner, self.names = inner, frozenset(own) | inner.names
        self._keys = {name: f"p{n}" for n, name in enumerate(own)}
        for name, parameter in own.items():
            self.register_parameter(self._keys[name], parameter)

    def by_name(self) -> dict[str, nn.Parameter]:
        """Its own parameters."""
        return {name: self.get_parameter(key) for name, key in self._keys.items()}

    def forward(self, run: Ops, arguments: Arguments, places: Mapping[str, int]) -> Any:
        """With its parameters whole, at their places among the arguments."""
        whole = list(arguments)
        for name, parameter in self.by_name().items():
            if name in places:
                whole[places[name]] = parameter
        return self.inner(run, whole, places)


class _NoHolder:
    """Of a call that reads nothing alone that is divided; inside all others."""

    names = frozenset[str]()

    def __call__(self, run: Ops, arguments: Arguments, places: Mapping[str, int]) -> Any:
        """As it is."""
        return run(*arguments)


def _inside(
    holders: Sequence[_Holder | _NoHolder], run: Ops, arguments: Arguments, places: Mapping[str, int]
) -> Any:
    """A call, inside each of the holders."""
    if not holders:
        return run(*arguments)
    return holders[0](lambda *whole: _inside(holders[1:], run, list(whole), places), arguments, places)


class _Noted:
    """A collective of FSDP2's that the log holds."""

    def __init__(self, groups: Groups, phase: Phase) -> None:
        self._groups = groups
        self._phase: Phase = phase

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory of its own for each."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Noted):
    """Its all_gather."""

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        """The payload is what is gathered."""
        self._groups.log.add(DP, ALL_GATHER, output_tensor, self._phase)
        with self._groups.log.timed(SYNC):
            return all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _Scatter(_Noted):
    """Its reduce_scatter, and the all_reduce that it starts next where ``sums``."""

    def __init__(self, groups: Groups, phase: Phase, sums: Callable[[], bool]) -> None:
        super().__init__(groups, phase)
        self._sums = sums

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType, async_op: bool = False,
    ) -> dist.Work | None:  # fmt: skip
        """The payload is what is scattered."""
        self._groups.log.add(DP, REDUCE_SCATTER, input_tensor, self._phase)
        with self._groups.log.timed(SYNC):
            work = reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        if self._sums():
            self._groups.log.add(DP, ALL_REDUCE, output_tensor, "sync")
        return work


def _groups_in(*holders: object) -> list[Any]:
    """The holders among these, and those inside them."""
    return [m for holder in holders if isinstance(holder, nn.Module) for m in holder.modules()]


def _prefetch_in_turn(modules: Sequence[Any]) -> None:
    """In backward each gathers the one before it: FSDP2 alone goes by the order of forwards, in which the last group of
    one micro-batch stands before the first of the next."""
    for n, module in enumerate(modules):
        module.set_modules_to_backward_prefetch([modules[max(n - 1, 0)]])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows."""
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        return tensor.to_local()


def plainly(run: Ops, arguments: Arguments) -> Any:
    """Of a call whose parameters nothing divides."""
    return run(*arguments)
