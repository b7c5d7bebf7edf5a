"""What export can't capture, in words: where it stands, why, and what to write instead."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from partitioner.errors import InputError
from partitioner.user_code.places import place_here, place_of

_LOGS = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export._trace")
_DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
_BRANCH = (
    "a branch, a size or a Python number depends on values of the batch, and one program serves every batch: "
    "use torch.where or a mask, and keep numbers in tensors"
)
_NUMBER = (
    "a number is read out of a tensor that depends on the batch, and one program serves every batch: "
    "keep it a tensor (x.detach() in place of x.item())"
)
_SIZE = (
    "the size of the result depends on values of the batch, and one program serves every batch: keep the shape, and "
    "mask what does not count (torch.where, a product with the mask, ignore_index)"
)
_GENERATOR = (
    "it draws from a torch.Generator of its own, whose state is no part of a step: draw without generator= to have the "
    "numbers follow from the run's seed"
)
_BACKWARD = "it runs backward in its forward: use torch.autograd.grad, or leave the gradients to the training step"
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class RaisedInModel(BaseException):
    """Carries what a model's forward raised past export, which would print its half-made graph on the way."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def quiet() -> Generator[None]:
    """torch neither warns nor logs."""
    logs = [logging.getLogger(name) for name in _LOGS]
    before = [log.disabled for log in logs]
    try:
        for log in logs:
            log.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def refused(error: Exception, model: nn.Module) -> InputError:
    """What ``error`` comes to in one line; an InputError as it is."""
    if isinstance(error, InputError):
        return error
    words = _BRANCH if isinstance(error, _DATA_DEPENDENT) else in_a_line(error)
    return InputError(f"{type(model).__name__} can't be traced{place_of(error, model)}: {words}")


def in_a_line(error: BaseException) -> str:
    """An error's type and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


class ValuesRefused(TorchFunctionMode):
    """Refuses, where the model's code calls it, what makes a size or a number that hangs on values of the batch, what
    draws from a generator of the model's own, and a backward. Gradients that autograd.grad gives without a graph of
    their own are detached, which export forgets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        why = _GENERATOR if any(isinstance(value, torch.Generator) for value in given) else None
        why = _BACKWARD if func is torch.Tensor.backward else why
        result = None if why else func(*args, **(kwargs or {}))
        why = why or _hangs_on_values(result)
        if why:
            raise InputError(f"{type(self.model).__name__} can't be traced{place_here(self.model)}: {why}")
        if func is torch.autograd.grad and not (args[4] if len(args) > 4 else (kwargs or {}).get("create_graph")):
            return tuple(g if g is None else g.detach() for g in result or ())
        return result


def _hangs_on_values(result: Any) -> str | None:
    for value in result if isinstance(result, tuple | list) else (result,):
        if isinstance(value, _SYMBOLS):
            return _NUMBER
        if isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape):
            return _SIZE
    return None


def refuse_ops(module: fx.GraphModule, model: nn.Module) -> None:
    """Raise InputError for the first op whose result's size, or number, hangs on values of the batch; and for a sparse
    gradient."""
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            if node.op == "call_function":
                _refuse_op(node, model)


def _refuse_op(node: fx.Node, model: nn.Module) -> None:
    why = _hangs_on_values(node.meta.get("val"))
    if why:
        raise InputError(f"{type(model).__name__} can't be traced{_place(node)}: {why}")
    if _argument(node, "sparse") is True:
        raise InputError(
            f"an embedding has a sparse gradient (sparse=True){_place(node)}: ranks reduce dense ones; build it with "
            "sparse=False, which trains the same"
        )


def refuse_several(graph: fx.Graph, model: nn.Module) -> None:
    """Raise InputError for the first op that still returns several tensors once all are written as rules read them."""
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(node.meta["val"], torch.Tensor):
            raise InputError(
                f"{type(model).__name__} can't be traced{_place(node)}: {node.target} returns several tensors at once, "
                "which has no form here: write it by ops that return one"
            )


def _argument(node: fx.Node, name: str) -> Any:
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name)
    return None


def _place(node: fx.Node) -> str:
    """' in MODULE at FILE:LINE (source)' of a captured node, as far as its meta tells."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    module = paths[-1].removeprefix("model").removeprefix(".") if paths else ""
    lines = str(node.meta.get("stack_trace") or "").strip().splitlines()
    found = [(a.strip(), b.strip()) for a, b in zip(lines, lines[1:], strict=False) if a.strip().startswith("File ")]
    own = [row for row in found if torch.__path__[0] not in row[0]]
    where = ""
    if own:
        file, line = own[-1][0].removeprefix("File ").split(", ")[:2]
        where = f" at {file.strip(chr(34))}:{line.removeprefix('line ')} ({own[-1][1]})"
    return f" in {module or 'the top module'}{where}"
