"""``parameters_on_meta``: modules that are built without memory for their parameters; buffers are real."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


@contextmanager
def parameters_on_meta() -> Generator[None]:
    """Modules built inside hold parameters without storage; a parameter registered twice stays one."""
    original, moved = nn.Module.register_parameter, WeakTensorKeyDictionary()

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            if param not in moved:
                moved[param] = nn.Parameter(param.detach().to("meta"), param.requires_grad)
            param = moved[param]
        original(self, name, param)

    nn.Module.register_parameter = register
    try:
        with _DataOnMeta():
            yield
    finally:
        nn.Module.register_parameter = original


class _DataOnMeta(TorchFunctionMode):
    """``parameter.data = value`` takes a real value too."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _SET_DATA and args[0].device.type == "meta":
            args = args[0], args[1].detach().to("meta")
        return func(*args, **(kwargs or {}))


_SET_DATA = torch.Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]
