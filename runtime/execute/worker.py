"""Walks a pipeline rank's row of the Action table; each action is one short method.

    F   receive, prelude, calls (recomputed ones under checkpoint), send, keep inputs and outputs
    B   receive gradients, torch.autograd.backward, send the gradients of the inputs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from partitioner.errors import InputError
from partitioner.graph.nodes import buffer_name
from partitioner.lowering.program import Call, Program, Recompute, Stage
from partitioner.schedule.tables import BACKWARD, FORWARD, KINDS, Action, releasing_kind
from partitioner.sharding.mesh_axes import PP
from runtime.execute.recompute import REGION, Again, Run, checkpointed, outlined
from runtime.execute.sharded_stages import Around, ShardedStages, plainly
from runtime.execute.stage_transport import Transport
from runtime.mesh.bind import bind
from runtime.mesh.communication_log import Phase
from runtime.mesh.groups import Groups

Named = dict[str, torch.Tensor]


@dataclass(frozen=True)
class BoundCall:
    """A call whose module communicates; ``spent``: values of which it is the last reader in its stage.

    ``module`` is all of it, as it is run; ``run`` runs it, and ``rerun`` is what a backward runs again, None where not
    the whole call is recomputed. ``around`` runs it, with parameters that are not among the values.
    """

    call: Call
    module: fx.GraphModule
    run: Run
    rerun: Run | None = None
    spent: tuple[str, ...] = ()
    around: Around = plainly

    def __call__(self, values: Named) -> None:
        """Add the results to ``values``, and let go what is spent."""
        results = self.around(self._ran, [values.get(name) for name in self.call.arguments])
        names = self.call.results
        values.update(zip(names, results if isinstance(results, tuple | list) else (results,), strict=True))
        for name in self.spent:
            del values[name]

    def _ran(self, *arguments: torch.Tensor) -> Any:
        if self.rerun is None or self.call.recompute is None:
            return self.run(*arguments)
        return checkpointed(self.run, self.rerun, bool(self.call.recompute.kept))(*arguments)


@dataclass(frozen=True)
class BoundStage:
    """A stage whose calls communicate."""

    stage: Stage
    constants: BoundCall | None
    prelude: BoundCall | None
    calls: tuple[BoundCall, ...]


@dataclass
class Stash:
    """What a backward needs of its forward."""

    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    loss: torch.Tensor | None


class Worker:
    """Runs the stages of this rank; ``parameters`` are its parts of them by name, but for those that ``sharded``
    brings."""

    def __init__(
        self, program: Program, groups: Groups, parameters: Mapping[str, nn.Parameter],
        sharded: ShardedStages | None = None,
    ) -> None:  # fmt: skip
        self.program, self.groups, self._sharded = program, groups, sharded
        here = groups.coordinates[PP]
        self.actions = program.actions[here]
        self._bound: dict[tuple[int, int, Phase], fx.GraphModule] = {}
        self._outlined: dict[tuple[int, int], fx.GraphModule] = {}
        own = [stage for stage in program.stages if stage.rank == here]
        self.stages = {stage.index: self._bind_stage(stage) for stage in own}
        self.transport = Transport(program, groups)
        self.buffers = {buffer_name(name): _real(name, b).to(groups.device) for name, b in program.buffers.items()}
        self._fixed = self._run_constants(parameters)
        self._stash: dict[tuple[int, int], Stash] = {}
        self._now: Action | None = None
        self._scale, self._counted = 1.0, None
        kind = releasing_kind(self.actions)
        self._last_of = {action.stage: action for action in self.actions if action.kind == kind}
        self._last = self._last_backwards()

    def _bind_stage(self, stage: Stage) -> BoundStage:
        rows = (self._bind_call(stage.constants, "control"), self._bind_call(stage.prelude))
        calls = [c for call in stage.calls if (c := self._bind_call(call))]
        calls = [replace(c, spent=s) for c, s in zip(calls, _spent(stage), strict=True)]
        if self._sharded is not None:
            calls = [replace(c, around=self._sharded.around(stage.index, c.call, n)) for n, c in enumerate(calls)]
        return BoundStage(stage, *rows, tuple(calls))

    def _bind_call(self, call: Call | None, phase: Phase = "forward") -> BoundCall | None:
        if call is None:
            return None
        module = self.bind(call.module, phase, call.recompute)
        if call.recompute is None:
            return BoundCall(call, module, module.forward)
        if call.recompute.regions is not None:
            return BoundCall(call, module, self._with_region(call.module, call.recompute).forward)
        return BoundCall(call, module, module.forward, self.bind(call.module, "recompute", call.recompute).forward)

    def bind(self, module: fx.GraphModule, phase: Phase, recompute: Recompute | None = None) -> fx.GraphModule:
        """The module on this rank's groups; blocks that share a module share the bound one."""
        key = id(module), id(recompute), phase
        if key not in self._bound:
            self._bound[key] = bind(module, self.groups, phase, recompute)
        return self._bound[key]

    def _with_region(self, module: fx.GraphModule, recompute: Recompute) -> fx.GraphModule:
        """The module, of which regions run again."""
        key = id(module), id(recompute)
        if key not in self._outlined:
            assert recompute.regions is not None
            found = bind(outlined(module, recompute.regions), self.groups)
            for name, part in list(found.named_children()):
                if name.startswith(REGION) and isinstance(part, fx.GraphModule):
                    setattr(found, name, Again(bind(part, self.groups), bind(part, self.groups, "recompute")))
            self._outlined[key] = found
        return self._outlined[key]

    def _run_constants(self, parameters: Mapping[str, nn.Parameter]) -> dict[int, Named]:
        """By stage: parameters, buffers and constants, once for the whole run."""
        found: dict[int, Named] = {}
        for index, stage in self.stages.items():
            given = {**parameters, **self.buffers}
            found[index] = dict(given)
            if stage.constants:
                with torch.no_grad():
                    stage.constants(found[index])
                    made = {name: _alone(value) for name, value in found[index].items() if name not in given}
                found[index] |= made
        return found

    def _last_backwards(self) -> dict[str, Action]:
        """By parameter: the action in which its gradient becomes complete on this rank."""
        found = dict[str, Action]()
        for action in self._last_of.values():
            read = {name for call in self.program.stages[action.stage].calls for name in call.arguments}
            found |= dict.fromkeys(read & self.program.parameters.keys(), action)
        return found

    @property
    def now(self) -> Action | None:
        """The action that runs, None between steps."""
        return self._now

    def is_complete(self, parameter: str) -> bool:
        """Whether the backward that runs now is the last that reaches the parameter."""
        return self._now is not None and self._last.get(parameter) == self._now

    def run(
        self, batches: list[Named], loss_scale: float | None = None, counted: int | None = None
    ) -> list[torch.Tensor]:
        """All actions of a step on these micro-batches; the losses of the last stage's, in order (else empty).

        Gradients are added to the parameters' ``grad``, times ``loss_scale``. Only the first ``counted`` micro-batches
        (None: all) add to them, and have losses.
        """
        self._scale, self._counted = 1.0 if loss_scale is None else loss_scale, counted
        return self._walked(self.actions, batches)

    @torch.no_grad()
    def losses(self, batches: list[Named], counted: int | None = None) -> list[torch.Tensor]:
        """The forwards of a step alone; the losses of the first ``counted`` micro-batches."""
        self._counted = counted
        return self._walked([a for a in self.actions if KINDS[a.kind].is_forward], batches)

    def _walked(self, actions: Sequence[Action], batches: list[Named]) -> list[torch.Tensor]:
        losses: dict[int, torch.Tensor] = {}
        self.transport.begin()
        for n, action in enumerate(actions):
            for ahead in actions[n : n + 2]:
                self.transport.expect(ahead)
            self._now = action
            with self.groups.log.around(str(action), KINDS[action.kind].name):
                loss = _ACTS[action.kind](self, action, batches[action.micro_batch])
            if loss is not None and self._counts(action):
                losses[action.micro_batch] = loss.detach()
        self._now = None
        self.transport.finish()
        return [losses[m] for m in sorted(losses)]

    def _counts(self, action: Action) -> bool:
        return self._counted is None or action.micro_batch < self._counted

    def forward(self, action: Action, batch: Named) -> torch.Tensor | None:
        """Run a stage on one micro-batch; its loss, if it makes one."""
        stage = self.stages[action.stage].stage
        inputs = self.transport.receive(action)
        is_training = torch.is_grad_enabled()
        for value, tensor in zip(stage.receives, inputs, strict=True):
            if value.differentiable and is_training:
                tensor.requires_grad_()
        made = self.made(action.stage, self.values(action.stage, batch, inputs))
        outputs, loss = [made[v.name] for v in stage.sends], made[stage.loss] if stage.loss else None
        if outputs:
            self.transport.send(action, [t.detach().contiguous() for t in outputs])
        if not is_training:
            return loss
        carried = [t for v, t in zip(stage.sends, outputs, strict=True) if v.differentiable]
        given = [t for v, t in zip(stage.receives, inputs, strict=True) if v.differentiable]
        self._stash[action.stage, action.micro_batch] = Stash(given, carried, loss)
        return loss

    def made(self, stage: int, values: Named, run: Callable[[BoundCall, Named], object] = BoundCall.__call__) -> Named:
        """What a stage sends, and its loss, of ``values``; ``run`` runs each call."""
        bound = self.stages[stage]
        wanted = [*(v.name for v in bound.stage.sends), *([bound.stage.loss] if bound.stage.loss else [])]

        def calls(shared: Mapping[str, torch.Tensor]) -> Named:
            values.update(shared)
            for call in bound.calls:
                run(call, values)
            return {name: values[name] for name in wanted}

        return self._sharded.run(stage, calls) if self._sharded is not None else calls({})

    def values(self, stage: int, batch: Named, inputs: list[torch.Tensor]) -> Named:
        """What the calls of a stage read, before the first."""
        bound = self.stages[stage]
        received = {v.name: t for v, t in zip(bound.stage.receives, inputs, strict=True)}
        values = {**self._fixed[stage], **batch, **received}
        if bound.prelude:
            with torch.no_grad():
                bound.prelude(values)
        return values

    def backward(self, action: Action, batch: Named) -> None:
        """Gradients of what a stage sent, then of its parameters and of what it received; one passed on adds up."""
        stash = self._stash.pop((action.stage, action.micro_batch))
        if self._sharded is not None:
            self._sharded.before_backward(action.stage, action == self._last_of[action.stage])
        rows = zip(stash.outputs, self.transport.receive(action), strict=True)
        roots = [(output, grad) for output, grad in rows if output.requires_grad]
        tensors, grads = [t for t, _ in roots], [g for _, g in roots]
        if stash.loss is not None:
            scale = self._scale if self._counts(action) else 0.0
            torch.autograd.backward([*tensors, stash.loss], [*grads, torch.full_like(stash.loss, scale)])
        elif tensors:
            torch.autograd.backward(tensors, grads)
        if stash.inputs:
            grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in stash.inputs]
            self.transport.send(action, [g.contiguous() for g in grads])


_ACTS: dict[str, Callable[[Worker, Action, Named], torch.Tensor | None]] = {
    FORWARD: lambda worker, action, batch: worker.forward(action, batch),
    BACKWARD: lambda worker, action, batch: worker.backward(action, batch),
}
EXECUTED = frozenset(_ACTS)  # kinds of actions


def _alone(value: torch.Tensor) -> torch.Tensor:
    """The value without the larger one that it is a part of."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    if value.numel() == 0 or value.untyped_storage().nbytes() <= reach * value.itemsize:
        return value
    return value.as_strided((reach,), (1,)).clone().as_strided(value.shape, value.stride())


def _spent(stage: Stage) -> list[tuple[str, ...]]:
    """By call: what other calls have made and none behind it reads, nor a later stage."""
    made = {name for call in stage.calls for name in call.results}
    needed = {v.name for v in stage.sends} | {stage.loss}
    found: list[tuple[str, ...]] = []
    for call in reversed(stage.calls):
        mine = {*call.arguments, *call.results} & made
        found.append(tuple(sorted(mine - needed)))
        needed |= mine
    return found[::-1]


def _real(name: str, buffer: torch.Tensor) -> torch.Tensor:
    if buffer.is_meta:
        raise InputError(
            f"buffer {name} lies on the meta device and has no value: build the model with real buffers to run it"
        )
    return buffer
