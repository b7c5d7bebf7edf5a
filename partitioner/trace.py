"""``trace``: an unmodified nn.Module and an example batch become a normalized training Graph that ends in the loss."""

from __future__ import annotations

import inspect
import linecache
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from partitioner.assigned_state import check_assignments, noted_assignments
from partitioner.blocks import find_units
from partitioner.check import check_graph
from partitioner.constants import merge_equal
from partitioner.data_attribute import DataAsDetach
from partitioner.dropouts import separate_units
from partitioner.errors import InputError
from partitioner.graph import Graph, ParameterInfo, gradient_free, placeholders
from partitioner.normalize import normalize
from partitioner.rehearse import replaced
from partitioner.runs import Run, find_runs
from partitioner.separation import batch_layouts
from partitioner.unroll import unroll

Progress = Callable[[str], None]


def trace(model: nn.Module, batch: dict[str, torch.Tensor], progress: Progress = lambda text: None) -> Graph:
    """The training graph of ``model(**batch)``, whose output is a scalar loss, or has one as ``.loss`` or ``["loss"]``.

    ``model`` lies on any device, meta included, and is left as it was. ``batch`` maps argument names to example
    tensors; dimension 0 of the largest number of them is the batch dimension. Raises InputError, naming the module
    and source line, when torch.export can't capture the model, and when the loss is not a scalar tensor.
    ``progress`` is told what goes on, in words.
    """
    progress("tracing: looking for blocks that run alike")
    samples = _batch_size(batch)
    given = _on_cpu(_two_samples(batch, samples))
    with suppress(Exception):  # what goes wrong here either does not matter below or is named there
        runs = _rehearse(model, given)
        if runs:
            return _trace(model, given, max(samples, 2), runs, progress)
    return _trace(model, given, max(samples, 2), (), progress)


def _trace(
    model: nn.Module, batch: dict[str, torch.Tensor], samples: int, runs: tuple[Run, ...], progress: Progress
) -> Graph:
    """The graph of ``model``, of which export does not see the blocks that ``runs`` skip."""
    progress(f"tracing: capturing, {'alike blocks once' if runs else 'every block by itself'}")
    captured = _collect(model, _export(model, batch, runs))
    progress(f"tracing: {len(captured.module.graph.nodes):,} ops captured, putting them into one form")
    normalize(captured.module, captured.buffers, samples)
    graph = _graph(captured, unroll(captured.module.graph, runs), samples)
    progress(f"tracing: {len(graph.nodes):,} ops in {len(graph.blocks)} blocks")
    return graph


@dataclass(frozen=True)
class _Captured:
    module: fx.GraphModule
    parameters: dict[str, ParameterInfo]
    buffers: dict[str, torch.Tensor]
    inputs: tuple[str, ...]


def _graph(captured: _Captured, nodes: fx.Graph, batch: int) -> Graph:
    merge_equal(nodes)
    units = find_units(nodes)
    separate_units(nodes, units)
    fixed, prelude = gradient_free(nodes)
    layouts, mixed = batch_layouts(nodes, batch)
    buffers = {name: captured.buffers[name] for name in placeholders(nodes, "buffer")}
    module = fx.GraphModule(nn.Module(), nodes)
    graph = Graph(module, captured.parameters, buffers, captured.inputs, batch, units, fixed, prelude, layouts, mixed)
    check_graph(graph)
    return graph


def _batch_size(batch: dict[str, torch.Tensor]) -> int:
    values: list[object] = list(batch.values())
    if not all(isinstance(t, torch.Tensor) for t in values):
        raise InputError("the batch must be a dict of example tensors, one for each argument of the model's forward")
    sizes = [t.shape[0] for t in batch.values() if t.dim()]
    if not sizes:
        raise InputError("no tensor of the batch has a dimension: give each a leading batch dimension")
    return max(set(sizes), key=sizes.count)


def _two_samples(batch: dict[str, torch.Tensor], samples: int) -> dict[str, torch.Tensor]:
    """A batch of at least two samples (size 1 would broadcast), without shared storage, which export would merge."""
    if samples > 1:
        return {name: t.detach().clone() for name, t in batch.items()}
    return {name: torch.cat([t, t]) if t.dim() and t.shape[0] == 1 else t.detach().clone() for name, t in batch.items()}


def _step(model: nn.Module, names: list[str]) -> nn.Module:
    """A module that returns the loss; export needs its arguments spelled out, so the signature is made to order."""

    def forward(self: nn.Module, **batch: torch.Tensor) -> torch.Tensor:
        return _loss(model_of(self)(**batch))

    def model_of(self: nn.Module) -> nn.Module:
        return self.get_submodule("model")

    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ["self", *names]]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    step = type("Step", (nn.Module,), {"forward": forward})()
    step.add_module("model", model)
    return step


def _loss(output: object) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        loss = output
    elif isinstance(output, dict):
        loss = output.get("loss")
    else:
        loss = getattr(output, "loss", output[0] if isinstance(output, tuple | list) and output else None)
    if not isinstance(loss, torch.Tensor) or loss.dim():
        raise InputError(
            "the model must return a scalar loss, or an output with a scalar .loss: pass the labels in the batch, "
            f"or wrap the model; it returned {type(output).__name__}"
        )
    return loss


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


def _on_cpu(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: torch.empty(t.shape, dtype=t.dtype) if t.is_meta else t.to("cpu") for n, t in batch.items()}


def _rehearse(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[Run, ...]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _fake_state(model, mode):
        return find_runs(model, {n: mode.from_tensor(t) for n, t in batch.items()}, mode)


def _export(model: nn.Module, batch: dict[str, torch.Tensor], runs: tuple[Run, ...]) -> torch.export.ExportedProgram:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    step = _step(model, list(batch)).train(model.training)
    stubs = {path: stub for run in runs for path, stub in run.stubs.items()}
    try:
        with _fake_state(model, mode), replaced(model, stubs), DataAsDetach(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with noted_assignments(model) as assigned:
                given = {n: mode.from_tensor(t) for n, t in batch.items()}
                exported = torch.export.export(step, (), given, strict=False)
            check_assignments(exported, assigned)
            return exported
    except InputError:
        raise
    except Exception as error:
        where = _where(error, model)
        raise InputError(f"{type(model).__name__} can't be traced{where}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def _where(error: BaseException, model: nn.Module) -> str:
    """The innermost frame that runs in a submodule's forward, as ' in MODULE at FILE:LINE (source)'."""
    names = {id(module): name or "the top module" for name, module in model.named_modules()}
    found = ""
    frame = error.__traceback__
    while frame:
        first = frame.tb_frame.f_code.co_varnames[:1]  # self, whatever it is called
        owner = frame.tb_frame.f_locals.get(*first) if first else None
        if id(owner) in names and not frame.tb_frame.f_code.co_filename.startswith(torch.__path__[0]):
            file, line = frame.tb_frame.f_code.co_filename, frame.tb_lineno
            found = f" in {names[id(owner)]} at {file}:{line} ({linecache.getline(file, line).strip()})"
        frame = frame.tb_next
    return found


def _collect(model: nn.Module, exported: torch.export.ExportedProgram) -> _Captured:
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
            name, kind = str(node.target), "input"
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
