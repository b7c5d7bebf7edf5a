"""``parameters_on_meta``: modules that are built without memory for their parameters; buffers are real."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


@contextmanager
def parameters_on_meta(moved_to: Callable[[torch.Tensor], torch.Tensor] = _on_meta) -> Generator[None]:
    """Modules built inside hold parameters without storage, ``moved_to`` meta; one registered twice stays one."""
    original, moved = nn.Module.register_parameter, WeakTensorKeyDictionary()

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            if param not in moved:
                moved[param] = nn.Parameter(moved_to(param.detach()), param.requires_grad)
                moved[param].__dict__.update(param.__dict__)
            param = moved[param]
        original(self, name, param)

    nn.Module.register_parameter = register
    try:
        with _DataOnMeta(moved_to):
            yield
    finally:
        nn.Module.register_parameter = original


class _DataOnMeta(TorchFunctionMode):
    """``parameter.data = value`` takes a real value too."""

    def __init__(self, moved_to: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.moved_to = moved_to

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _SET_DATA and args[0].device.type == "meta":
            args = args[0], self.moved_to(args[1].detach())
        return func(*args, **(kwargs or {}))


_SET_DATA = torch.Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]
