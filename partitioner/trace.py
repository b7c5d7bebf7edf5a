"""``trace``: an unmodified nn.Module and an example batch become a normalized training Graph that ends in the loss."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.batches import Flat, carriers, flat
from partitioner.blocks import find_units
from partitioner.check import check_graph
from partitioner.constants import merge_equal
from partitioner.dropouts import separate_units
from partitioner.graph import Graph, ParameterInfo, gradient_free, placeholders
from partitioner.hooks import hooks_refused, refuse_hooks
from partitioner.kept_functions import Kept, kept_functions
from partitioner.normalize import normalize
from partitioner.outputs import loss_of
from partitioner.rehearse import CantRehearse, replaced
from partitioner.runs import Run, find_runs
from partitioner.separation import batch_layouts
from partitioner.uncapturable import RaisedInModel, ValuesRefused, quiet, refuse_ops, refused
from partitioner.unroll import UnlikeError, unroll
from partitioner.untouched import untouched

Progress = Callable[[str], None]


def trace(model: nn.Module, batch: Mapping[str, Any], progress: Progress = lambda text: None) -> Graph:
    """The training graph of ``model(**batch)``, whose output is a scalar loss, or has one (``outputs.loss_of``).

    ``model`` lies on any device, meta included, and is left as it was, and so is the random state. ``batch`` maps
    argument names to example tensors, to plain values, which stay as they are, or to dicts, lists and tuples of them.
    Raises InputError, naming the module and source line, when the model can't be captured as it would run.
    ``progress`` is told what goes on, in words.
    """
    progress("tracing: looking for blocks that run alike")
    refuse_hooks(model)
    given = _given(batch)
    notes = list[str]()
    with untouched(model, lambda: _run(model, given)), kept_functions(model) as kept, hooks_refused(model, notes):
        try:
            runs = _rehearse(model, given)
            return _trace(model, given, runs, kept, notes, progress)
        except (CantRehearse, UnlikeError) as error:
            notes.append(f"every block was traced by itself: {error}")
            return _trace(model, given, (), kept, notes, progress)


def _trace(
    model: nn.Module, batch: _Batch, runs: tuple[Run, ...], kept: Kept, notes: list[str], progress: Progress
) -> Graph:
    """The graph of ``model``, of which export does not see the blocks that ``runs`` skip."""
    progress(f"tracing: capturing, {'alike blocks once' if runs else 'every block by itself'}")
    exported = _export(model, batch, runs)
    kept.settle(exported.graph_module)
    captured = _collect(model, exported, batch)
    progress(f"tracing: {len(captured.module.graph.nodes):,} ops captured, putting them into one form")
    normalize(captured.module, captured.buffers, batch.samples)
    graph = _graph(captured, unroll(captured.module.graph, runs), batch, tuple(notes))
    progress(f"tracing: {len(graph.nodes):,} ops in {len(graph.blocks)} blocks")
    return graph


@dataclass(frozen=True)
class _Batch:
    """An example of at least two samples (size 1 would broadcast); ``batched`` names the tensors that carry them."""

    flat: Flat
    samples: int
    batched: tuple[str, ...]

    def arguments(self) -> dict[str, torch.Tensor]:
        """The tensors by names that an argument of Python's may have, in order."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.flat.tensors.items():
            word = re.sub(r"\W|^(?=\d)", "_", name)
            while word in found:
                word += "_"
            found[word] = tensor
        return found


@dataclass(frozen=True)
class _Captured:
    module: fx.GraphModule
    parameters: dict[str, ParameterInfo]
    buffers: dict[str, torch.Tensor]
    inputs: tuple[str, ...]


def _graph(captured: _Captured, nodes: fx.Graph, batch: _Batch, notes: tuple[str, ...]) -> Graph:
    merge_equal(nodes)
    units = find_units(nodes)
    separate_units(nodes, units)
    fixed, prelude = gradient_free(nodes)
    layouts, mixed = batch_layouts(nodes, batch.samples, batch.batched)
    buffers = {name: captured.buffers[name] for name in placeholders(nodes, "buffer")}
    module = fx.GraphModule(nn.Module(), nodes)
    graph = Graph(
        module, captured.parameters, buffers, captured.inputs, batch.samples, units, fixed, prelude, layouts, mixed,
        notes=notes, batched=batch.batched, plain=batch.flat.plain,
    )  # fmt: skip
    check_graph(graph)
    return graph


def _given(batch: Mapping[str, Any]) -> _Batch:
    """On the CPU, without shared storage, which export would merge, and of at least two samples."""
    found = flat(batch)
    samples, batched = carriers(found.tensors)
    repeated = batched if samples == 1 else ()
    tensors = {n: torch.empty(t.shape, dtype=t.dtype) if t.is_meta else t.cpu() for n, t in found.tensors.items()}
    tensors = {n: torch.cat([t, t]) if n in repeated else t.detach().clone() for n, t in tensors.items()}
    return _Batch(Flat(tensors, found.plain, found.names, found.spec), max(samples, 2), batched)


def _step(model: nn.Module, batch: _Batch) -> nn.Module:
    """A module that returns the loss; export needs its arguments spelled out, so the signature is made to order."""
    names, words = list(batch.flat.tensors), list(batch.arguments())

    def forward(self: nn.Module, **tensors: torch.Tensor) -> torch.Tensor:
        given = batch.flat.together(dict(zip(names, (tensors[word] for word in words), strict=True)))
        try:
            return loss_of(self.get_submodule("model")(**given), type(model).__name__)
        except Exception as error:  # any model code may run here
            raise RaisedInModel(error) from error

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ["self", *words]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
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


def _rehearse(model: nn.Module, batch: _Batch) -> tuple[Run, ...]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _fake_state(model, mode):
        return find_runs(model, batch.flat.together(_faked(batch.flat.tensors, mode)), mode)


def _run(model: nn.Module, batch: _Batch) -> None:
    """One forward without values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _fake_state(model, mode), quiet(), mode:
        model(**batch.flat.together(_faked(batch.flat.tensors, mode)))


def _faked(tensors: Mapping[str, torch.Tensor], mode: FakeTensorMode) -> dict[str, torch.Tensor]:
    return {name: mode.from_tensor(t) for name, t in tensors.items()}


def _export(model: nn.Module, batch: _Batch, runs: tuple[Run, ...]) -> torch.export.ExportedProgram:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    stubs = {path: stub for run in runs for path, stub in run.stubs.items()}
    try:
        with _fake_state(model, mode), replaced(model, stubs), quiet(), ValuesRefused(model):
            arguments = _faked(batch.arguments(), mode)
            exported = torch.export.export(_step(model, batch), (), arguments, strict=False)
    except RaisedInModel as raised:
        raise refused(raised.error, model) from raised.error
    except Exception as error:  # export's own passes say in many types of errors what they can't capture
        raise refused(error, model) from error
    refuse_ops(exported.graph_module, model)
    return exported


def _collect(model: nn.Module, exported: torch.export.ExportedProgram, batch: _Batch) -> _Captured:
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
    return _Captured(module, parameters, buffers, inputs)


def _merge(node: fx.Node, name: str, kind: str, kept: dict[str, fx.Node]) -> None:
    if name in kept:
        node.replace_all_uses_with(kept[name])
        node.graph.erase_node(node)
        return
    kept[name] = node
    node.meta["source"], node.meta["kind"] = name, kind
