"""One capture of a module by torch.export: its graph in few ops, placeholders by the names of the source model.

    module --untouched--> export --> autograd Functions, names --> normal_ops --> Captured
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.functionalize.assigned_state import check_assignments, noted_assignments
from partitioner.functionalize.regions import noted_regions
from partitioner.graph.graph import ParameterInfo
from partitioner.normalize.normalize import normal_ops
from partitioner.tracing.record_calls import hollowed, replaced
from partitioner.tracing.repeated_modules import Run, find_runs
from partitioner.user_code.batches import Flat, carriers, flat
from partitioner.user_code.constant_branches import ConstantBranches
from partitioner.user_code.data_attribute import DataAsDetach
from partitioner.user_code.hooks import HookingRefused, hooks_refused
from partitioner.user_code.kept_functions import kept_functions
from partitioner.user_code.outputs import loss_of
from partitioner.user_code.uncapturable import (
    RaisedInModel,
    ValuesRefused,
    quiet,
    refuse_ops,
    refuse_several,
    refused,
)
from partitioner.user_code.untouched import Untouched


@dataclass(frozen=True)
class Example:
    """A batch of at least two samples (size 1 would broadcast); ``long`` names the tensors that carry them."""

    flat: Flat
    samples: int
    long: tuple[str, ...]

    def resized(self, samples: int) -> Example:
        """The same samples again and again."""
        rows = torch.arange(samples) % self.samples
        tensors = {n: t[rows] if n in self.long else t for n, t in self.flat.tensors.items()}
        return replace(self, flat=replace(self.flat, tensors=tensors), samples=samples)

    def hollow(self, samples: int) -> Example:
        """So many samples, without values."""
        tensors, long = self.flat.tensors, self.long
        made = {n: torch.empty(samples, *t.shape[1:], dtype=t.dtype) if n in long else t for n, t in tensors.items()}
        return replace(self, flat=replace(self.flat, tensors=made), samples=samples)

    def arguments(self) -> dict[str, torch.Tensor]:
        """The tensors by names that an argument of Python's may have, in order."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.flat.tensors.items():
            word = re.sub(r"\W|^(?=\d)", "_", name)
            while word in found:
                word += "_"
            found[word] = tensor
        return found


def example(batch: Mapping[str, Any]) -> Example:
    """On the CPU, without shared storage, which export would merge, and of at least two samples."""
    found = flat(batch)
    samples, long = carriers(found.tensors)
    repeated = long if samples == 1 else ()
    tensors = {n: torch.empty(t.shape, dtype=t.dtype) if t.is_meta else t.cpu() for n, t in found.tensors.items()}
    tensors = {n: torch.cat([t, t]) if n in repeated else t.detach().clone() for n, t in tensors.items()}
    return Example(replace(found, tensors=tensors), max(samples, 2), long)


@dataclass(frozen=True)
class Captured:
    """A graph of few ops, not divided by samples yet, with what its placeholders stand for."""

    module: fx.GraphModule
    parameters: dict[str, ParameterInfo]
    buffers: dict[str, torch.Tensor]
    inputs: tuple[str, ...]


def capture(
    model: nn.Module, batch: Example, runs: tuple[Run, ...], notes: list[str], before: Untouched
) -> Captured:
    """``model`` on a batch, but for the blocks that ``runs`` skip; what there is to say is added to ``notes``. Left as
    it was ``before``.

    Raises InputError, naming the module and source line, when the model can't be captured as it would run.
    """
    drawing = before.after(lambda: _run(model, batch))
    with drawing, kept_functions(model) as kept, hooks_refused(model, notes):
        exported = _export(model, batch, runs)
        kept.settle(exported.graph_module)
    captured = _collect(model, exported, batch)
    normal_ops(captured.module, captured.buffers)
    refuse_several(captured.module.graph, model)
    return captured


def alike_blocks(model: nn.Module, batch: Example, before: Untouched) -> tuple[Run, ...]:
    """The runs of blocks that do the same; raises CantRehearse if the model can't run on fake tensors."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with before.after(lambda: _run(model, batch)), kept_functions(model), _fake_state(model, mode):
        return find_runs(model, batch.flat.together(_faked(batch.flat.tensors, mode)), mode)


def _step(model: nn.Module, batch: Example) -> nn.Module:
    """A module that returns the loss; export needs its arguments spelled out, so the signature is made to order."""
    names, words = list(batch.flat.tensors), list(batch.arguments())
    real = dict(model.named_buffers(remove_duplicate=False))

    def forward(self: nn.Module, **tensors: torch.Tensor) -> torch.Tensor:
        given = batch.flat.together(dict(zip(names, (tensors[word] for word in words), strict=True)))
        plain = self.get_submodule("model")
        try:
            with HookingRefused(plain), ValuesRefused(plain), DataAsDetach(plain), ConstantBranches(plain, real):
                return loss_of(plain(**given), type(model).__name__)
        except Exception as error:  # any model code may run here
            raise RaisedInModel(error) from error

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ["self", *words]]
    forward.__signature__ = inspect.Signature(parameters)
    step = type("Step", (nn.Module,), {"forward": forward})()
    step.add_module("model", model)
    step.training = model.training
    return step


@contextmanager
def _fake_state(model: nn.Module, mode: FakeTensorMode) -> Generator[None]:
    """Parameters become storage-free CPU tensors while tracing, so that meta and real models trace alike."""
    fakes: dict[int, torch.Tensor] = {}
    saved: list[tuple[nn.Module, str, torch.Tensor]] = []
    for module in model.modules():
        saved += [(module, *item) for item in module.named_parameters(recurse=False, remove_duplicate=False)]
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        saved += [(module, name, buffer) for name, buffer in buffers if buffer.is_meta]
    try:
        for module, name, tensor in saved:
            if id(tensor) not in fakes:
                with mode:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                is_parameter = isinstance(tensor, nn.Parameter)
                fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
            setattr(module, name, fakes[id(tensor)])
        yield
    finally:
        for module, name, tensor in saved:
            setattr(module, name, tensor)


def _run(model: nn.Module, batch: Example) -> None:
    """One forward without values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _fake_state(model, mode), quiet(), mode:
        model(**batch.flat.together(_faked(batch.flat.tensors, mode)))


def _faked(tensors: Mapping[str, torch.Tensor], mode: FakeTensorMode) -> dict[str, torch.Tensor]:
    return {name: mode.from_tensor(t) for name, t in tensors.items()}


def _export(model: nn.Module, batch: Example, runs: tuple[Run, ...]) -> torch.export.ExportedProgram:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stubs = {path: stub for run in runs for path, stub in run.stubs.items()}
    unread = [path for run in runs if run.is_unread for path in run.stubs]
    try:
        with hollowed(model, unread), _fake_state(model, mode), replaced(model, stubs), quiet(), noted_regions():
            arguments = _faked(batch.arguments(), mode)
            with noted_assignments(model) as assigned:
                exported = torch.export.export(_step(model, batch), (), arguments, strict=False)
            check_assignments(exported, assigned)
    except RaisedInModel as raised:
        raise refused(raised.error, model) from raised.error
    except Exception as error:  # export's own passes say in many types of errors what they can't capture
        raise refused(error, model) from error
    refuse_ops(exported.graph_module, model)
    return exported


def _collect(model: nn.Module, exported: torch.export.ExportedProgram, batch: Example) -> Captured:
    """Placeholders take the source names; parameters tied by identity become one."""
    module = exported.graph_module
    signature = exported.graph_signature
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    first = {name: names[0] for names in groups.values() for name in names}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    parameters = {
        names[0]: ParameterInfo(tuple(names), tuple(t.shape), t.dtype, t.requires_grad)
        for names, t in ((names, tensors[names[0]]) for names in groups.values())
    }
    buffers: dict[str, torch.Tensor] = {}
    state = {**dict(model.named_buffers(remove_duplicate=False)), **exported.constants}
    buffer_of = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    parameter_of = signature.inputs_to_parameters
    names = dict(zip(signature.user_inputs, batch.flat.tensors, strict=True))
    kept: dict[str, fx.Node] = {}
    for node in [n for n in module.graph.nodes if n.op == "placeholder"]:
        source, buffer = parameter_of.get(node.name), buffer_of.get(node.name)
        if source is not None:
            name, kind = first[source.removeprefix("model.")], "parameter"
        elif buffer is not None:
            name, kind = buffer.removeprefix("model."), "buffer"
            value = state[name] if name in state else state[buffer]
            assert isinstance(value, torch.Tensor)
            buffers[name] = value
        else:
            name, kind = names[node.name], "input"
        _merge(node, name, kind, kept)
        if kind == "parameter":
            kept[name].meta["trains"] = parameters[name].requires_grad
    inputs = tuple(n.meta["source"] for n in kept.values() if n.meta["kind"] == "input")
    module.graph.lint()
    return Captured(module, parameters, buffers, inputs)


def _merge(node: fx.Node, name: str, kind: str, kept: dict[str, fx.Node]) -> None:
    if name in kept:
        node.replace_all_uses_with(kept[name])
        node.graph.erase_node(node)
        return
    kept[name] = node
    node.meta["source"], node.meta["kind"] = name, kind
