"""Hooks that export would drop: those of modules' and tensors' gradients, and of what autograd saves, refused by name.

Forward hooks and forward pre-hooks, global ones too, are called by the modules themselves and are captured as they run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

from partitioner.errors import InputError
from partitioner.ops.autograd_functions import Unhooked
from partitioner.user_code.places import place_here

_MODULE_HOOKS = {
    "_backward_hooks": "a backward hook (register_full_backward_hook)",
    "_backward_pre_hooks": "a backward pre-hook (register_full_backward_pre_hook)",
}
_TENSOR_HOOKS = {
    "_backward_hooks": "a gradient hook (register_hook)",
    "_post_accumulate_grad_hooks": "a gradient hook (register_post_accumulate_grad_hook)",
}
_GLOBAL_HOOKS = {
    "_global_backward_hooks": "a global backward hook (register_module_full_backward_hook)",
    "_global_backward_pre_hooks": "a global backward pre-hook (register_module_full_backward_pre_hook)",
}
_GRAD_FN: Any = torch.Tensor.grad_fn.__get__  # type: ignore[attr-defined]
_REGISTERS = (torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook)
_MEND = (
    "it runs in backward, where a rank sees a part of a gradient or none; remove it before training, and express what "
    "it does in the forward, by frozen parameters or in the optimizer"
)
_LEFT_OUT = "save_on_cpu in the model's forward is left out: it changes where memory lies, and no number"


def refuse_hooks(model: nn.Module) -> None:
    """Raise InputError naming the first module or parameter that has a hook which runs in backward, and the hook."""
    for who, what in _found(model):
        raise InputError(f"{who} has {what}: {_MEND}")


def _found(model: nn.Module) -> Iterator[tuple[str, str]]:
    for attribute, what in _GLOBAL_HOOKS.items():
        if getattr(modules, attribute, None):
            yield "torch.nn", what
    for path, module in model.named_modules():
        for attribute, what in _MODULE_HOOKS.items():
            if getattr(module, attribute, None):
                yield f"module {path or type(module).__name__}", what
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for path, tensor in tensors:
        for attribute, what in _TENSOR_HOOKS.items():
            if getattr(tensor, attribute, None):
                yield f"parameter {path}", what


@contextmanager
def hooks_refused(model: nn.Module, notes: list[str]) -> Generator[None]:
    """Inside, a forward that hooks what autograd saves raises InputError where it does so.

    What torch.utils.checkpoint hooks is its own affair. ``save_on_cpu`` moves memory and changes no number: it is left
    out and added to ``notes``.
    """
    enter, leave = saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__

    def entered(self: saved_tensors_hooks) -> None:
        if isinstance(self, save_on_cpu):
            notes.extend([] if _LEFT_OUT in notes else [_LEFT_OUT])
        elif isinstance(self, Unhooked) or type(self).__module__ == "torch.utils.checkpoint":
            enter(self)
        else:
            _refuse(model, f"{type(self).__name__} (torch.autograd.graph.saved_tensors_hooks)")

    def left(self: saved_tensors_hooks, *arguments: Any) -> None:
        if not isinstance(self, save_on_cpu):
            leave(self, *arguments)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(saved_tensors_hooks, "__enter__", entered))
        stack.enter_context(mock.patch.object(saved_tensors_hooks, "__exit__", left))
        yield


class HookingRefused(TorchFunctionMode):
    """Refuses calls that hook a tensor's gradient, or the node of its gradient, where the model's code makes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _REGISTERS:
            _refuse(self.model, f"Tensor.{func.__name__}")
        result = func(*args, **(kwargs or {}))
        return _Unhooked(self.model, result) if func == _GRAD_FN and result is not None else result


class _Unhooked:
    """The node of a gradient, which can't be hooked."""

    def __init__(self, model: nn.Module, node: Any) -> None:
        self._model, self._node = model, node

    def __getattr__(self, name: str) -> Any:
        if name in ("register_hook", "register_prehook"):
            _refuse(self._model, f"grad_fn.{name}")
        return getattr(self._node, name)


def _refuse(model: nn.Module, what: str) -> NoReturn:
    raise InputError(f"the model calls {what}{place_here(model)}: {_MEND}")
